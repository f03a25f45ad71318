"""Token and sequence log-probabilities, in fp32 whatever dtype the weights have.

Axes: B sequences or prompts, k responses to each prompt, T tokens, N positions, D model width,
V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from forty2.inference.padding import PairBatch, positions
from forty2.machine import on_gpu
from forty2.model import cpu_kernels
from forty2.model.kv_cache import CacheLayer, keeps_plain_keys
from forty2.model.surgery import (
    BlockInput,
    blocks,
    body,
    can_split,
    compute_block_input,
    head,
    sample_ids,
    scores_agree,
    trained_outside_blocks,
)
from forty2.model.tag_rows import head_table, is_tag_rows, with_tag_rows

HEAD_GPU, HEAD_CPU = 1 << 24, 1 << 22
"""Number of logits in memory at once in the backward pass (in several copies). Each chunk of logits
reads the head's weights again. A GPU waits for that, so its chunks are larger."""
ROW = 256
"""Terms summed in one level of the log-sum-exp; two levels of 256 span a vocabulary of 65k."""


# --- log-probabilities of tokens ---


def logsumexp(logits: mx.array) -> mx.array:
    """Compute log Σ exp over the last axis, in fp32, in two levels: (..., V) to (...).

    One fp32 sum over a large vocabulary drifts on the CPU: by 1e-4 a token at 49k entries, which
    adds up to 0.05 over an answer of 500 tokens. Summing rows of 256 first is right to 6e-7.
    """
    rows = _in_rows(logits.astype(mx.float32), -mx.inf)
    return cpu_kernels.logsumexp(cpu_kernels.logsumexp(rows))


def token_logps(logits: mx.array, targets: mx.array) -> mx.array:
    """Compute log p(target) at each position: logits (B, T, V), targets (B, T) to (B, T), fp32."""
    picked = mx.take_along_axis(logits, targets[..., None], axis=-1).squeeze(-1)
    return picked.astype(mx.float32) - logsumexp(logits)


def supervised_logps(
    model: nn.Module, states: mx.array, targets: mx.array, where: mx.array
) -> mx.array:
    """Compute log p of the targets at some positions, without the logits of other positions.

    The head runs on chunks of positions. A log-probability depends only on its own state, so its
    gradient is computed while the chunk's logits exist, and the backward pass only scales it. So
    memory never holds all logits, nor their gradient. Of the head, only the rows of tags get a gradient
    in this way: where more of it is trained, or the embedding, mlx differentiates each chunk, and keeps
    its logits.

    Args:
        states: (B, T, D), from `body`.
        targets: (B, T) token ids.
        where: (N,) positions in the flattened (B, T); -1 is padding.

    Returns:
        (N,) log-probabilities in nats, fp32, 0 on padding.
    """
    index = mx.maximum(where, 0)
    rows, wanted = states.reshape(-1, states.shape[-1])[index], targets.reshape(-1)[index]
    at_once = model.training and head_is_frozen(model)
    logps = _logps_with_gradient(model) if at_once else functools.partial(_logps, model)
    (result,) = in_chunks(
        lambda *part: (logps(*part),), rows, wanted, chunk=head_chunk(model, rows)
    )
    return mx.where(where >= 0, result, 0.0)


def head_is_frozen(model: nn.Module) -> bool:
    """Return whether nothing outside of the blocks is trained but the rows of tags."""
    return all(map(is_tag_rows, trained_outside_blocks(model)))


def head_chunk(model: nn.Module, states: mx.array) -> int:
    """Return the number of positions whose logits this machine should hold in memory at once."""
    vocabulary = head(model, states[:1]).shape[-1]  # lazy: nothing is computed
    return max(1, head_elements() // vocabulary)


def in_chunks(
    function: Callable[..., tuple[mx.array, ...]], *inputs: mx.array, chunk: int
) -> list[mx.array]:
    """Apply a function to chunks of N positions, one after the other, so that memory holds one.

    Args:
        function: of the inputs' chunks; each result has a value for each position.
        inputs: (N, ...), the first with a gradient.
    """
    parts: list[tuple[mx.array, ...]] = []
    for start in range(0, inputs[0].shape[0], chunk):
        first, *others = (values[start : start + chunk] for values in inputs)
        if parts:
            first = mx.depends(first, parts[-1][0])
        parts.append(function(first, *others))
    return [mx.concatenate([*values]) for values in zip(*parts, strict=True)]


def head_elements() -> int:
    """Return the number of logits that this machine should hold in memory at once."""
    return HEAD_GPU if on_gpu() else HEAD_CPU


def _logps(model: nn.Module, states: mx.array, targets: mx.array) -> mx.array:
    """Compute log-probabilities (N,) of targets (N,) from states (N, D)."""
    return token_logps(head(model, states), targets)


def _logps_with_gradient(model: nn.Module) -> Callable[[mx.array, mx.array], mx.array]:
    """Return a version of `_logps` that computes its gradient (N, D) in the forward pass.

    The gradient for the rows of n tags needs, of all logits' gradients, only those of the tags, (N, n).
    """
    table = head_table(model)

    @mx.custom_function
    def logps(states: mx.array, targets: mx.array, *rows: mx.array) -> tuple[mx.array, ...]:
        states = mx.stop_gradient(states)
        run_head = _head_with(model, [mx.stop_gradient(one) for one in rows])
        logits = run_head(states)
        probabilities, log_total = softmax(logits.astype(mx.float32))
        picked = mx.take_along_axis(logits, targets[:, None], axis=-1).astype(mx.float32)
        is_target = mx.arange(logits.shape[-1])[None] == targets[:, None]
        cotangent = (mx.where(is_target, 1.0, 0.0) - probabilities).astype(logits.dtype)
        _, (gradient,) = mx.vjp(run_head, [states], [cotangent])
        own = [] if table is None else [_of_tags(cotangent, table)]
        return (picked - log_total).squeeze(-1), gradient, *own

    @logps.vjp
    def backward(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        gradient = outputs[1]
        scaled = (cotangents[0][:, None] * gradient).astype(gradient.dtype)
        of_states = scaled, mx.zeros(gradient.shape[:1])
        if table is None:
            return of_states
        states, tags = primals[0], table.tags
        own = (cotangents[0][:, None] * outputs[2]).astype(outputs[2].dtype)
        # lazy: of the frozen rows' logits, nothing is computed
        _, of_rows = mx.vjp(
            lambda rows: _head_with(model, [rows])(states)[:, tags.first : tags.end],
            [primals[2]],
            [own],
        )
        return *of_states, *of_rows

    rows = [] if table is None else [table.tag_rows]
    return lambda states, targets: logps(states, targets, *rows)[0]  # type: ignore[index]


def _of_tags(values: mx.array, table: nn.Module) -> mx.array:
    """Copy the tags' columns (N, n) of values (N, V): a view would keep the whole in memory."""
    return mx.contiguous(values[:, table.tags.first : table.tags.end])


def _head_with(model: nn.Module, rows: Sequence[mx.array]) -> Callable[[mx.array], mx.array]:
    """Return the head as a function of states, with these rows of tags, if there are any."""
    table = head_table(model)

    def run(states: mx.array) -> mx.array:
        if table is None:
            return head(model, states)
        with with_tag_rows(table, rows[0]):
            return head(model, states)

    return run


def softmax(logits: mx.array) -> tuple[mx.array, mx.array]:
    """Compute softmax (N, V) and log Σ exp (N, 1) of fp32 logits, with a sum in two levels."""
    top = logits.max(axis=-1, keepdims=True)
    powers = cpu_kernels.exp(logits - top)
    total = sum_over_vocabulary(powers)[:, None]
    return powers / total, top + mx.log(total)


def sum_over_vocabulary(terms: mx.array) -> mx.array:
    """Sum fp32 terms (..., V) to (...), in two levels, as `logsumexp` does."""
    return _in_rows(terms, 0.0).sum(axis=-1).sum(axis=-1)


def _in_rows(values: mx.array, padding: float) -> mx.array:
    """Reshape (..., V) to (..., rows, 256), with padding at the end."""
    missing = -values.shape[-1] % ROW
    if missing:
        widths = [(0, 0)] * (values.ndim - 1) + [(0, missing)]
        values = mx.pad(values, widths, constant_values=padding)
    return values.reshape(*values.shape[:-1], -1, ROW)


# --- shortcuts ---


class Shortcuts(NamedTuple):
    """Optimisations that a model supports; none changes the numbers."""

    shared_prompts: bool = False
    """Compute a prompt once for all its responses."""
    split_head: bool = False
    """Run the head on supervised positions only, and the upper blocks on stored states."""


NO_SHORTCUTS = Shortcuts()


def supported_shortcuts(model: nn.Module) -> Shortcuts:
    """Find the shortcuts that this model supports, by trying them on short rows."""
    return Shortcuts(can_share_prompts(model), can_split(model))


def can_share_prompts(model: nn.Module) -> bool:
    """Return whether `response_logps` can share prompts: tried on two short rows, not guessed.

    Some models take no attention mask for each row, or do not cache plain keys and values.
    """
    if not keeps_plain_keys(model):
        return False
    ids, lengths = sample_ids(model, 14), mx.array([3, 1])
    prefixes, inputs = ids[:6].reshape(2, 3), ids[6:].reshape(4, 2)
    pairs = PairArrays(prefixes, lengths, inputs, inputs, mx.arange(inputs.size))
    try:
        shared, plain = (
            response_logps(model, pairs, Shortcuts(shared_prompts=s)) for s in (True, False)
        )
        return scores_agree(model, shared, plain)
    except (ValueError, TypeError, AttributeError, IndexError):
        return False


def run_model(
    model: nn.Module,
    ids: mx.array,
    shortcuts: Shortcuts,
    *,
    cache: Sequence[object] | None = None,
    block_input: BlockInput | None = None,
) -> mx.array:
    """Run a model up to the input of `target_logps`: states, or logits if the head cannot be split.

    Args:
        ids: (B, T)
        cache: one entry for each block; None: nothing precedes the ids.
        block_input: stored states to go on from; only if the head can be split.

    Returns:
        States (B, T, D) or logits (B, T, V).
    """
    if shortcuts.split_head:
        return body(model, ids, cache=cache, block_input=block_input)
    logits: mx.array = model(ids, cache=cache)
    return logits


def target_logps(
    model: nn.Module, output: mx.array, targets: mx.array, where: mx.array, shortcuts: Shortcuts
) -> mx.array:
    """Compute log p of the targets at some positions.

    Args:
        output: result of `run_model`.
        targets: (B, T) token ids.
        where: (N,) positions in the flattened (B, T); -1 is padding.

    Returns:
        (N,) log-probabilities in nats, fp32, 0 on padding.
    """
    if shortcuts.split_head:
        return supervised_logps(model, output, targets, where)
    return at_positions(token_logps(output, targets), where)


def at_positions(values: mx.array, where: mx.array) -> mx.array:
    """Take the values (B, T) at positions (N,) in the flattened array; 0 where a position is -1."""
    return mx.where(where >= 0, values.reshape(-1)[mx.maximum(where, 0)], 0.0)


# --- log-probabilities of responses ---


class PairArrays(NamedTuple):
    """A batch of B prompts with k responses each; row r of the kB responses is prompt r mod B's."""

    prefixes: mx.array
    """Prompts without their last token, (B, P), padded on the right."""
    prefix_lengths: mx.array
    """Tokens of each prefix without padding, (B,)."""
    inputs: mx.array
    """Last token of the prompt and response without its last token, (kB, T), padded on the right."""
    targets: mx.array
    """Tokens of the response, (kB, T), padded on the right."""
    where: mx.array
    """Positions of response tokens in the flattened (kB, T), (N,); -1 is padding."""


class PairBlockInput(NamedTuple):
    """Stored states to go on from, at the entry of block `depth`."""

    prefixes: mx.array
    """States of the prefixes, (B, P, D)."""
    inputs: mx.array
    """States of the responses' inputs, (kB, T, D)."""
    depth: int


def pair_arrays(batch: PairBatch) -> PairArrays:
    """Convert the part of a batch that `response_logps` reads to mlx arrays."""
    return PairArrays(
        mx.array(batch.prefixes),
        mx.array(batch.prefix_lengths),
        mx.array(batch.inputs),
        mx.array(batch.targets),
        mx.array(positions(batch.mask)),
    )


def compute_pair_block_input(model: nn.Module, pairs: PairArrays, depth: int) -> PairBlockInput:
    """Compute the states at the entry of block `depth`, each prompt once."""
    prompts = [CacheLayer() for _ in blocks(model)]
    prefixes = compute_block_input(model, pairs.prefixes, depth, prompts)
    return PairBlockInput(
        prefixes,
        compute_block_input(model, pairs.inputs, depth, _continuation_caches(pairs, prompts)),
        depth,
    )


def response_logps(
    model: nn.Module,
    pairs: PairArrays,
    shortcuts: Shortcuts,
    block_input: PairBlockInput | None = None,
) -> mx.array:
    """Compute log p of each response token; differentiable through responses and prompts.

    Args:
        block_input: stored states to go on from; needs both shortcuts.

    Returns:
        (kB, T) log-probabilities in nats, fp32, 0 on padding.
    """
    output = run_on_responses(model, pairs, shortcuts, block_input)
    return at_tokens(pairs, target_logps(model, output, pairs.targets, pairs.where, shortcuts))


def run_on_responses(
    model: nn.Module,
    pairs: PairArrays,
    shortcuts: Shortcuts,
    block_input: PairBlockInput | None = None,
) -> mx.array:
    """Run a model on responses up to the input of `target_logps`.

    With shared prompts, a prompt is computed once and all its responses attend to its keys and
    values. Otherwise whole rows are computed, with the same result.

    Args:
        block_input: stored states to go on from; needs both shortcuts.

    Returns:
        States (kB, T, D), or logits (kB, T, V) if the head cannot be split.
    """
    if not shortcuts.shared_prompts:
        return _run_whole_rows(model, pairs, shortcuts)
    prefix_input = response_input = None
    if block_input is not None:
        prefix_input = BlockInput(block_input.prefixes, block_input.depth)
        response_input = BlockInput(block_input.inputs, block_input.depth)
    prompts = [CacheLayer() for _ in blocks(model)]
    run_model(model, pairs.prefixes, shortcuts, cache=prompts, block_input=prefix_input)
    return run_model(
        model,
        pairs.inputs,
        shortcuts,
        cache=_continuation_caches(pairs, prompts),
        block_input=response_input,
    )


def at_tokens(pairs: PairArrays, values: mx.array) -> mx.array:
    """Put values (N,) of the positions `pairs.where` at their tokens: (kB, T), 0 elsewhere."""
    flat = mx.zeros(pairs.targets.size).at[mx.maximum(pairs.where, 0)].add(values)
    return flat.reshape(pairs.targets.shape)


def _continuation_caches(pairs: PairArrays, prompts: Sequence[CacheLayer]) -> list[CacheLayer]:
    """Make the cache of the responses from the cache of their prompts, which have been run."""
    copies = pairs.inputs.shape[0] // pairs.prefixes.shape[0]
    lengths = mx.concatenate([pairs.prefix_lengths] * copies)
    width = pairs.prefixes.shape[1]
    return [CacheLayer(prompt.keys_and_values(copies), lengths, width) for prompt in prompts]


def _run_whole_rows(model: nn.Module, pairs: PairArrays, shortcuts: Shortcuts) -> mx.array:
    """Run prompt and response as one row; return the result of `run_model` for the responses."""
    copies = pairs.inputs.shape[0] // pairs.prefixes.shape[0]
    lengths = mx.concatenate([pairs.prefix_lengths] * copies)
    # A row is its prefix, then its inputs, then padding.
    columns = mx.arange(pairs.prefixes.shape[1] + pairs.inputs.shape[1])[None]
    within = columns - lengths[:, None]
    rows = mx.where(
        within < 0,
        mx.pad(mx.concatenate([pairs.prefixes] * copies), [(0, 0), (0, pairs.inputs.shape[1])]),
        mx.take_along_axis(pairs.inputs, mx.clip(within, 0, pairs.inputs.shape[1] - 1), axis=1),
    )
    return at_responses(pairs, run_model(model, rows, shortcuts))


def at_responses(pairs: PairArrays, values: mx.array) -> mx.array:
    """Take the values of the responses' inputs from those of whole rows: (kB, P + T, D) to (kB, T, D)."""
    lengths = mx.concatenate([pairs.prefix_lengths] * (values.shape[0] // pairs.prefixes.shape[0]))
    where = lengths[:, None] + mx.arange(pairs.inputs.shape[1])[None]
    return mx.take_along_axis(values, where[..., None], axis=1)
