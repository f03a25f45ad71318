"""What a phase minimises: a model and a batch in, a summed loss and summed metrics out.

The training loop divides both by the batch's weight (supervised tokens for SFT, pairs for
preferences), so that accumulated batches weigh exactly as one large batch would.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from forty2.errors import TrainingError
from forty2.files import write_bytes
from forty2.inference.logprobs import (
    NO_SHORTCUTS,
    PairArrays,
    PairBlockInput,
    Shortcuts,
    pair_arrays,
    response_logps,
    run_model,
    segment_cache,
    supported_shortcuts,
    target_logps,
)
from forty2.model.surgery import BlockInput, evaluating
from forty2.progress import Progress, silent
from forty2.text.row_kinds import CONVERSATIONS, PAIRS, RATED
from forty2.text.rows import AnyPair, PairRow, RatedRow, Row
from forty2.training.batches import (
    BOTH,
    CHOSEN,
    REJECTED,
    Batch,
    PairBatch,
    SftBatch,
    grouped,
    lengths_of,
    pair_batch,
    parts_of,
    positions,
    sft_batch,
    weights_of,
)
from forty2.training.frozen_states import FrozenStates
from forty2.training.losses import PairLogps
from forty2.training.objectives.kto import KtoPhase
from forty2.training.objectives.pairs import PairPhase
from forty2.training.objectives.phase import Phase
from forty2.training.processes import ALONE, Group

START_APART = 0.1
"""Nats a token that a policy in 16 bits may seem to be from itself, computed in another order."""


class Loss(NamedTuple):
    """Sums over a batch, to be divided by its weight."""

    total: mx.array
    """Scalar, fp32."""
    metrics: dict[str, mx.array]
    """Scalars."""


class BatchedLoss(Protocol):
    """An objective on the rows of a phase: the summed loss of any batch of them."""

    lengths: list[int]
    """Tokens of each row."""
    parts: npt.NDArray[np.int64]
    """Lengths by part, for batches of like length."""
    weights: list[float]
    """How often an epoch has each row, on average."""
    spared: dict[str, Any]
    """Which shortcuts are taken, for the record."""
    metrics: tuple[str, ...]
    """What `loss` measures."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """These rows as one batch."""

    def arrays(self, batch: Batch) -> list[mx.array]:
        """What `loss` reads, as arrays, so that the step can be compiled over them."""

    def shared(self, model: nn.Module, batches: Iterable[Batch], group: Group) -> list[mx.array]:
        """What `loss` reads after each batch's arrays: measured on all of a step's rows at once.

        Args:
            batches: this process's part of them; what is measured is summed over the group.
        """
        return []

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> Loss:
        """Compute the summed loss, differentiable with respect to the model."""


def micro_batches(batched_loss: BatchedLoss, indices: Sequence[int]) -> Iterator[Batch]:
    """These rows in batches of what is best computed at once; their sums are those of one batch."""
    for group in grouped(batched_loss.parts[list(indices)]):
        yield batched_loss.batch([indices[n] for n in group])


class ConversationLoss(BatchedLoss):
    """Cross-entropy on supervised tokens: -Σ log p(token)."""

    metrics: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        rows: Sequence[Row],
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        self.rows = rows
        self._shortcuts, self._frozen = shortcuts, frozen
        self.spared = _shortcuts_taken(shortcuts, frozen)
        self.lengths, self.weights = lengths_of(rows), weights_of(rows)
        self.parts = parts_of(rows)

    def batch(self, indices: Sequence[int]) -> SftBatch:
        return sft_batch([self.rows[i] for i in indices], indices)

    def arrays(self, batch: Batch) -> list[mx.array]:
        assert isinstance(batch, SftBatch)
        stored = self._frozen.of_rows(batch) if self._frozen is not None else []
        packed = [mx.array(batch.segments)] if batch.segments is not None else []
        return [mx.array(batch.ids), mx.array(positions(batch.mask[:, 1:])), *stored, *packed]

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> Loss:
        ids, where, *rest = arrays
        entry = BlockInput(rest.pop(0), self._frozen.depth) if self._frozen is not None else None
        cache = segment_cache(model, rest[0][:, :-1]) if rest else None
        output = run_model(model, ids[:, :-1], self._shortcuts, cache=cache, entry=entry)
        total = -target_logps(model, output, ids[:, 1:], where, self._shortcuts).sum()
        return Loss(total, {"loss": total})


class ResponseLoss(BatchedLoss):
    """A loss of responses to prompts, with a reference's log-probabilities where it needs them."""

    name: str
    """What messages call the loss."""
    slack = 1.0
    """How many times a rounding error counts in the loss at the start."""
    sides: Sequence[int] = BOTH
    """Of a row's two responses, what the loss reads."""

    def __init__(
        self,
        rows: Sequence[AnyPair],
        reference: Mapping[int, npt.NDArray[np.float32]] | None,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        """
        Args:
            reference: by row index, token log-probabilities: the chosen's, then the rejected's.
                Needed for rows that come in a batch; None: the loss reads none.
        """
        self.rows = rows
        self.reference = reference
        self._shortcuts, self._frozen = shortcuts, frozen
        self.spared = _shortcuts_taken(shortcuts, frozen)
        self.lengths, self.weights = lengths_of(rows), weights_of(rows)
        self.parts = parts_of(rows)

    @abstractmethod
    def loss_at_start(self, batch: PairBatch) -> float:
        """Mean loss while the policy is the reference."""

    def batch(self, indices: Sequence[int]) -> PairBatch:
        return self._batch(indices, self.sides)

    def arrays(self, batch: Batch) -> list[mx.array]:
        assert isinstance(batch, PairBatch)
        return self._arrays(batch, self.sides)

    def check_start(self, model: nn.Module, batch: Batch, *, tolerance: float | None) -> None:
        """Refuse a reference that is not the policy: the loss must be its value at zero margin.

        Args:
            tolerance: of the loss, relative. None, for weights in 16 bits or fewer, whose rounding
                adds up over a response: the tokens' log-probabilities are compared instead.

        Raises:
            TrainingError: the loss is another (for sigmoid: not ln 2).
        """
        assert isinstance(batch, PairBatch)
        if tolerance is None:
            policy, reference, mask = self._policy(model, self._arrays(batch, self.sides))
            apart = float(mx.abs(policy - reference).sum() / mask.sum())
            good = apart <= START_APART
            told = f"tokens differ by {apart:.3f} nats from the reference"
        else:
            arrays = [*self.arrays(batch), *self.shared(model, [batch], ALONE)]
            loss = float(self.loss(model, arrays).total) / batch.weight
            expected = self.loss_at_start(batch)
            good = abs(loss / expected - 1) <= tolerance * self.slack
            told = f"the {self.name} loss is {loss:.6f}, not {expected:.6f}"
        if not good:
            raise TrainingError(
                f"before the first step {told}: the stored reference is not this policy; delete the "
                "reference cache and start again"
            )

    def _batch(self, indices: Sequence[int], sides: Sequence[int]) -> PairBatch:
        return pair_batch([self.rows[i] for i in indices], indices, sides)

    def _arrays(self, batch: PairBatch, sides: Sequence[int]) -> list[mx.array]:
        """For `_policy`: a batch of these sides, its mask, its reference, its stored states."""
        reference = np.zeros(batch.targets.shape, np.float32)
        for n, index in enumerate(batch.rows if self.reference is not None else ()):
            assert self.reference is not None
            both = np.split(self.reference[index], [len(self.rows[index].responses[0])])
            for k, side in enumerate(sides):
                reference[n + k * batch.weight, : len(both[side])] = both[side]
        stored = self._frozen.of_pairs(batch, sides) if self._frozen is not None else []
        return [*pair_arrays(batch), mx.array(batch.mask), mx.array(reference), *stored]

    def _policy(self, model: nn.Module, arrays: Sequence[mx.array]) -> tuple[mx.array, ...]:
        """Log-probabilities of each response's tokens (kB, T), the reference's, and the mask."""
        pairs, (mask, reference), stored = PairArrays(*arrays[:5]), arrays[5:7], arrays[7:]
        entry = (
            PairBlockInput(stored[0], stored[1], self._frozen.depth)
            if self._frozen is not None
            else None
        )
        return response_logps(model, pairs, self._shortcuts, entry), reference, mask


def _kl(policy: mx.array, reference: mx.array, mask: mx.array) -> mx.array:
    """KL(policy‖start) a token, (kB,), on the data's tokens, to second order: ½ E[(log ratio)²].

    Schulman 2020, "Approximating KL divergence", k2.
    """
    squares = mx.where(mask, mx.square(policy - reference), 0.0).sum(axis=-1)
    return 0.5 * squares / mask.sum(axis=-1)


class PairLoss(ResponseLoss):
    """The loss of a `PairPhase`: DPO and its kin."""

    def __init__(
        self,
        rows: Sequence[PairRow],
        reference: Mapping[int, npt.NDArray[np.float32]] | None,
        phase: PairPhase,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        super().__init__(rows, reference, shortcuts, frozen)
        self.phase, self.name, self.slack = phase, phase.loss_name, phase.start_slack
        self.metrics = tuple(phase.metrics)

    def loss_at_start(self, batch: PairBatch) -> float:
        return self.phase.initial_loss()

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> Loss:
        policy, reference, mask = self._policy(model, arrays)
        chosen_logps, rejected_logps = mx.split(policy.sum(axis=-1), 2)
        logps = PairLogps(chosen_logps, rejected_logps, *mx.split(reference.sum(axis=-1), 2))
        total = self.phase.losses(logps, *mx.split(mask.sum(axis=-1), 2)).sum()
        chosen, rejected = self.phase.rewards(logps)
        metrics = {
            "loss": total,
            "chosen_logps": chosen_logps.sum(),
            "rejected_logps": rejected_logps.sum(),
            "chosen_rewards": chosen.sum(),
            "rejected_rewards": rejected.sum(),
            "margin": (chosen - rejected).sum(),
            "accuracy": (chosen > rejected).astype(mx.float32).sum(),
            "kl": 0.5 * _kl(policy, reference, mask).sum(),
        }
        return Loss(total, {name: metrics[name] for name in self.metrics})


class RatedLoss(ResponseLoss):
    """KTO: desirable responses likelier than the policy's own drift, others less likely.

    A step takes two passes: the drift, measured on responses to other prompts, enters every row's
    loss, so it is known before the first gradient, and parts and processes sum to one batch.
    """

    sides = (CHOSEN,)
    name = "kto"

    def __init__(
        self,
        rows: Sequence[RatedRow],
        reference: Mapping[int, npt.NDArray[np.float32]] | None,
        phase: KtoPhase,
        shortcuts: Shortcuts = NO_SHORTCUTS,
        frozen: FrozenStates | None = None,
    ) -> None:
        super().__init__(rows, reference, shortcuts, frozen)
        self.phase = phase
        self.metrics = tuple(phase.metrics)
        self._desirable = np.array([row.desirable for row in rows])

    def arrays(self, batch: Batch) -> list[mx.array]:
        assert isinstance(batch, PairBatch)
        return [mx.array(self._desirable[batch.rows]), *super().arrays(batch)]

    def shared(self, model: nn.Module, batches: Iterable[Batch], group: Group) -> list[mx.array]:
        """z0: KL(policy‖reference) a response, as responses to other prompts show it; at least 0.

        The mean log ratio, which no gradient passes: the estimate of Ethayarajh et al. 2024.
        """
        total, rows = mx.array(0.0), 0
        with evaluating(model):  # without dropout
            for batch in batches:
                assert isinstance(batch, PairBatch)
                others = self._batch(batch.rows.tolist(), [REJECTED])
                policy, reference, _ = self._policy(model, self._arrays(others, [REJECTED]))
                total = total + (policy - reference).sum()
                rows += batch.weight
                mx.async_eval(total)
        total, whole = group.total((total, rows))
        return [mx.maximum(0.0, total / whole)]

    def loss_at_start(self, batch: PairBatch) -> float:
        verdicts = self._desirable[batch.rows].tolist()
        return float(np.mean([self.phase.initial_loss(desirable) for desirable in verdicts]))

    def loss(self, model: nn.Module, arrays: Sequence[mx.array]) -> Loss:
        desirable, *arrays, baseline = arrays
        policy, reference, mask = self._policy(model, arrays)
        logps, reference_logps = policy.sum(axis=-1), reference.sum(axis=-1)
        total = self.phase.losses(logps, reference_logps, desirable, baseline).sum()
        beyond = self.phase.beta * (logps - reference_logps - baseline)
        margin = mx.where(desirable, beyond, -beyond)
        metrics = {
            "loss": total,
            "logps": logps.sum(),
            "margin": margin.sum(),
            "accuracy": (margin > 0).astype(mx.float32).sum(),
            "baseline": baseline * desirable.size,
            "kl": _kl(policy, reference, mask).sum(),
        }
        return Loss(total, metrics)


def batched_loss(
    phase: Phase,
    rows: Sequence[Any],
    reference: Mapping[int, npt.NDArray[np.float32]] | None,
    shortcuts: Shortcuts = NO_SHORTCUTS,
    frozen: FrozenStates | None = None,
) -> BatchedLoss:
    """The loss of a phase over its rows.

    Args:
        reference: by row index, (chosen + rejected tokens,) fp32; None where the phase needs none.
    """
    if phase.row_kind is CONVERSATIONS:
        return ConversationLoss(rows, shortcuts, frozen)
    kind: Any = {PAIRS: PairLoss, RATED: RatedLoss}[phase.row_kind]
    made: BatchedLoss = kind(rows, reference, phase, shortcuts, frozen)
    return made


def _shortcuts_taken(shortcuts: Shortcuts, frozen: FrozenStates | None) -> dict[str, Any]:
    return {
        "prompts_shared": shortcuts.shared_prompts,
        "head_where_supervised": shortcuts.split_head,
        "blocks_replayed": frozen.depth if frozen is not None else 0,
        "replayed_gb": round(frozen.bytes / 1e9, 3) if frozen is not None else 0.0,
    }


# --- the reference --------------------------------------------------------------------------------


def reference_key(fingerprint: str, adapter: dict[str, mx.array], rows: Sequence[AnyPair]) -> str:
    """What reference log-probabilities depend on: base weights, adapter, and the rows' ids."""
    digest = hashlib.sha256(fingerprint.encode())
    for name, value in sorted(adapter.items()):
        digest.update(name.encode())
        digest.update(np.asarray(value.astype(mx.float32)).tobytes())
    for row in rows:
        digest.update(json.dumps([row.prompt, *row.responses]).encode())
    return digest.hexdigest()


def reference_logps(
    model: nn.Module,
    rows: Sequence[AnyPair],
    which: Sequence[int],
    store: Path,
    *,
    allowed: Shortcuts | None = None,
    replay: FrozenStates | None = None,
    progress: Progress = silent,
    stage: str = "reference",
    group: Group = ALONE,
) -> dict[int, npt.NDArray[np.float32]]:
    """Token log-probabilities of some rows under the model as it stands; from `store` if there.

    Args:
        which: indices of the rows.
        store: an .npz file whose name carries `reference_key`; written whole or not at all.
        allowed: by the model, where that is known; else it is tried.
        replay: stored states of these rows.
        group: computes them together; each process gets and stores all.

    Returns:
        By index, (chosen + rejected tokens,) fp32.
    """
    sizes = [sum(map(len, rows[i].responses)) for i in which]
    flat = read_store(store, sum(sizes))
    kept = not group.most(flat is None)
    if not kept:
        by = allowed or supported_shortcuts(model)
        own = _token_logps(model, rows, group.share(which), by, replay, progress, stage)
        nothing = [np.zeros(size, np.float32) for size in sizes]
        parts = [own.get(i, zeros) for i, zeros in zip(which, nothing, strict=True)]
        flat = np.asarray(group.total([mx.array(np.concatenate(parts))])[0])
    assert flat is not None
    result = dict(zip(which, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
    if not kept:
        for i in which:
            if not np.isfinite(result[i]).all():
                raise TrainingError(
                    f"{rows[i].origin}: the model gives this row a log-probability that is not finite"
                )
        _write_store(store, flat)
    return result


def pair_logprobs(
    model: nn.Module, rows: Sequence[PairRow], *, progress: Progress = silent
) -> list[dict[str, Any]]:
    """What `forty2 logprobs` writes for each row: supervised ids and their summed log-probability."""
    result = []
    scored = _token_logps(
        model, rows, range(len(rows)), supported_shortcuts(model), None, progress, "logprobs"
    )
    for i, row in enumerate(rows):
        logps, split = scored[i], len(row.chosen)
        result.append(
            {
                "prompt_tokens": len(row.prompt),
                "chosen": {"ids": row.chosen, "logprob": math.fsum(logps[:split].tolist())},
                "rejected": {"ids": row.rejected, "logprob": math.fsum(logps[split:].tolist())},
            }
        )
    return result


def _token_logps(
    model: nn.Module,
    rows: Sequence[AnyPair],
    which: Sequence[int],
    allowed: Shortcuts,
    replay: FrozenStates | None,
    progress: Progress,
    stage: str,
) -> dict[int, npt.NDArray[np.float32]]:
    """By index, the log-probability of each response token: the chosen's, then the rejected's."""
    result: dict[int, npt.NDArray[np.float32]] = {}
    for places in grouped(parts_of(rows, apart=False)[list(which)]):
        indices = [which[n] for n in places]
        batch = pair_batch([rows[i] for i in indices], indices)
        entry = None
        if replay is not None:
            prefixes, inputs = replay.of_pairs(batch)
            entry = PairBlockInput(prefixes, inputs, replay.depth)
        logps = np.asarray(response_logps(model, pair_arrays(batch), allowed, entry))
        for n, index in enumerate(indices):
            sides = (n, n + len(indices))
            result[index] = np.concatenate([logps[side][batch.mask[side]] for side in sides])
        progress(stage, len(result), len(which), {})
    return result


def read_store(store: Path, size: int) -> npt.NDArray[np.float32] | None:
    """The stored log-probabilities, so many; None where the file is absent or damaged."""
    try:
        with np.load(io.BytesIO(store.read_bytes()), allow_pickle=False) as saved:
            logps: Any = saved["logps"]
            intact = hashlib.sha256(logps.tobytes()).hexdigest() == str(saved["sha256"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return logps if intact and logps.shape == (size,) else None


def _write_store(store: Path, logps: npt.NDArray[np.float32]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, logps=logps, sha256=np.array(hashlib.sha256(logps.tobytes()).hexdigest()))
    write_bytes(store, buffer.getvalue())
