"""Coupled phases: exact at the start, causal, and the same through every cache and shortcut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt
import pytest
from mlx.utils import tree_map
from mlx_lm.models.cache import RotatingKVCache, make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from support.models import save_tiny, tiny_loaded, tiny_model
from support.small_run import TEMPLATE
from support.training import (
    ALL,
    PAIRS,
    ROWS,
    SPEC,
    ListLog,
    dpo,
    preference,
    run,
    sft,
    values,
)

from forty2.errors import ModelError
from forty2.export.fusing import fuse
from forty2.inference.chat import ChatSession
from forty2.inference.generation import generate_replies, logits_after, prefix_cache
from forty2.inference.logprobs import Shortcuts, pair_arrays, response_logps, supported_shortcuts
from forty2.inference.shared_prefix import SharedPrefix, score_rows
from forty2.model.adapter import (
    adapter_weights,
    attach_adapter,
    load_adapter,
    save_adapter,
    without_adapter,
)
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.model.kv_cache import segment_cache
from forty2.model.loading import load
from forty2.model.phase_attention import (
    ORDER_PARAMETER,
    PhaseCoupling,
    attach_phase_attention,
    phase_coupling,
    recorded_order,
)
from forty2.recipe.schema import PhaseAttention
from forty2.text.rows import RatedRow, Row
from forty2.training.batched_loss import BatchedLoss, ConversationLoss, PairLoss, RatedLoss
from forty2.training.batches import pair_batch
from forty2.training.frozen_states import frozen_states_size, store_states
from forty2.training.objectives.kto import KtoPhase
from forty2.training.processes import ALONE
from forty2.training.reference import reference_logps

SETTINGS = PhaseAttention(block=1, oscillators=5, steps=3, dt=0.3, coupling=1.5)
PHASED = replace(SPEC, phase_attention=SETTINGS)
RNG = np.random.default_rng(5)
TWO = pytest.mark.parametrize("architecture", ["llama", "qwen2"])


def ids(rows: int, length: int) -> mx.array:
    return mx.array(RNG.integers(2, 258, (rows, length)))


def row(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(2, 258, length)]


def open_gate(model: Any) -> Any:
    """Give the gate values that change the logits a lot."""
    coupling = phase_coupling(model)
    assert coupling is not None
    coupling.gate = mx.random.normal(coupling.gate.shape, key=mx.random.key(3))
    return model


def coupled(architecture: str = "llama") -> Any:
    """A tiny model whose coupled phases do something."""
    model = tiny_model(architecture)
    attach_phase_attention(model, SETTINGS)
    return open_gate(model)


def agree(one: mx.array, other: mx.array) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-5)


# --- the layer ------------------------------------------------------------------------------------


@TWO
def test_a_new_layer_leaves_the_output_as_it_is_to_the_bit(architecture: str) -> None:
    model, rows = tiny_model(architecture), ids(2, 9)

    def outputs() -> list[npt.NDArray[np.uint32]]:
        cache = make_prompt_cache(model)
        parts = [model(rows), model(rows[:, :6], cache=cache), model(rows[:, 6:], cache=cache)]
        return [np.asarray(part).view(np.uint32) for part in parts]

    before = outputs()
    attach_phase_attention(model, SETTINGS)
    for one, other in zip(before, outputs(), strict=True):
        assert np.array_equal(one, other)
    open_gate(model)
    assert not np.allclose(model(rows), before[0].view(np.float32), atol=0.1)


def test_the_phases_are_those_of_kuramotos_sum_over_pairs() -> None:
    """In float64, token by token: θ_t += dt · K · mean over s ≤ t of sin(θ_s - θ_t)."""
    layer, x = PhaseCoupling(8, SETTINGS), mx.random.normal((2, 6, 8), key=mx.random.key(1))
    layer.gate = mx.random.normal((8,), key=mx.random.key(2))
    added, shown, order = layer(x, "causal", [])
    wide = [np.asarray(a).astype(np.float64) for a in (x, layer.to_phases, layer.from_phases)]
    states, inwards, outwards = wide
    theta = states / np.sqrt((states**2).mean(-1, keepdims=True) + 1e-6) @ inwards
    for step in range(SETTINGS.steps):
        np.testing.assert_allclose(shown[:, :, step], theta, atol=1e-5)
        moved = theta.copy()
        for t in range(6):
            pulls = np.sin(theta[:, : t + 1] - theta[:, t : t + 1]).mean(axis=1)
            r = np.abs(np.exp(1j * theta[:, : t + 1]).mean(axis=1)).mean(axis=-1)
            moved[:, t] += SETTINGS.dt * SETTINGS.coupling * pulls
            if step == SETTINGS.steps - 1:
                np.testing.assert_allclose(order[:, t], r, atol=1e-5)
        theta = moved
    waves = np.concatenate([np.cos(theta), np.sin(theta)], axis=-1)
    np.testing.assert_allclose(added, np.asarray(layer.gate) * (waves @ outwards), atol=1e-5)


def test_phases_synchronize_more_with_more_steps_and_not_without_coupling() -> None:
    def order(**changes: Any) -> float:
        mx.random.seed(1)
        layer = PhaseCoupling(32, replace(SETTINGS, **changes))
        return float(layer(mx.random.normal((1, 40, 32), key=mx.random.key(1)), None, [])[2].mean())

    assert order(steps=1) < order(steps=4) < order(steps=40) <= 1
    assert order(coupling=0.0) == pytest.approx(order(steps=1), abs=1e-6)


@TWO
def test_a_later_token_changes_nothing_before_it(architecture: str) -> None:
    model, rows = coupled(architecture), ids(2, 12)
    other = mx.concatenate([rows[:, :7], rows[:, 7:] + 1], axis=1)
    assert np.array_equal(model(rows)[:, :7], model(other)[:, :7])
    assert not np.allclose(model(rows)[:, 7:], model(other)[:, 7:], atol=0.1)


@pytest.mark.parametrize(
    ("architecture", "block", "said"),
    [
        ("llama", 3, "block is 3, but .* the model has blocks 0 to 2"),
        ("sliding", 0, "block is 0, but phases need .* of all tokens; blocks that have all: 1$"),
    ],
)
def test_a_block_that_cannot_have_phases_is_refused(
    architecture: str, block: int, said: str
) -> None:
    with pytest.raises(ModelError, match=f"adapter.phase_attention.{said}"):
        attach_phase_attention(tiny_model(architecture), replace(SETTINGS, block=block))


def test_a_model_without_caches_of_all_tokens_is_refused() -> None:
    model = tiny_model()
    model.make_cache = lambda: [RotatingKVCache(max_size=8) for _ in model.layers]
    with pytest.raises(ModelError, match=r"of all tokens; no block has them$"):
        attach_phase_attention(model, SETTINGS)


def test_a_block_of_another_kind_is_refused() -> None:
    model = tiny_model()
    kind = type(model.layers[1])

    class Unmasked(kind):  # type: ignore[misc, valid-type]
        def __call__(self, x: mx.array, attend: Any = None, cache: Any = None) -> mx.array:
            return x

    model.layers[1].__class__ = Unmasked
    with pytest.raises(ModelError, match=r"block 1 of this model cannot have it .*'mask'"):
        attach_phase_attention(model, SETTINGS)


# --- the same numbers through every cache ---------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gemma2", "sliding"])
def test_a_cache_that_grows_and_shrinks_gives_the_logits_of_whole_rows(architecture: str) -> None:
    model, rows = coupled(architecture), ids(2, 12)
    cache, whole = make_prompt_cache(model), model(rows)
    parts = [model(rows[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 9))]
    agree(mx.concatenate(parts, axis=1), whole[:, :9])
    if architecture != "sliding":  # a window that has moved on cannot be cut
        for layer in cache:
            layer.trim(4)
        agree(model(rows[:, 5:], cache=cache), whole[:, 5:])


@TWO
def test_replies_in_a_batch_are_those_computed_anew_for_each_token(architecture: str) -> None:
    model = coupled(architecture)
    start = row(10)
    prompts = [start + row(length) for length in (2, 7, 4)]
    ends = [prompt[len(start) :] for prompt in prompts]
    agree(
        logits_after(model, prefix_cache(model, start), ends, 1)[:, 0],
        mx.stack([model(mx.array([prompt]))[0, -1] for prompt in prompts]),
    )
    for number, reply in generate_replies(tiny_loaded(model), prompts, max_tokens=5, batch_size=2):
        whole = model(mx.array([[*prompts[number], *reply.ids]]))[0, len(prompts[number]) - 1 :]
        greedy = np.asarray(mx.argmax(whole, axis=-1)).tolist()
        assert greedy[: len(reply.ids)] == list(reply.ids)


def test_a_chat_replies_as_if_the_conversation_were_read_anew() -> None:
    model = tiny_model()
    attach_adapter(model, PHASED, seed=1)
    one = tiny_loaded(open_gate(model), template=TEMPLATE)
    talk = ChatSession(one, max_tokens=3)
    for message in ("Hello.", "Why?"):
        history, reply = talk.messages, talk.reply(message)
        anew = ChatSession(one, max_tokens=3)
        anew.exchanges = list(talk.exchanges[:-1])
        assert anew.messages == history and anew.reply(message) == reply
    base = ChatSession(tiny_loaded(template=TEMPLATE), max_tokens=3)
    assert talk.reply_of_base("Hello.") != talk.reply("Hello.")
    assert ChatSession(one, max_tokens=3).reply_of_base("Hello.") == base.reply("Hello.")


@TWO
def test_rows_after_shared_prefixes_score_as_whole_rows(architecture: str) -> None:
    model = coupled(architecture)
    begin = row(6)
    stems = [(row(stem), [(row(given), row(4))]) for stem, given in ((5, 1), (1, 3))]
    scores = SharedPrefix(model).extend(begin).score_after(stems)
    for (stem, rows), score in zip(stems, scores, strict=True):
        whole = score_rows(model, [(begin + stem + given, scored) for given, scored in rows])
        assert score == pytest.approx(whole, abs=1e-5)


@TWO
def test_packed_rows_do_not_couple(architecture: str) -> None:
    model, rows = coupled(architecture), ids(1, 10)
    packed = model(rows, cache=segment_cache(model, mx.array([[0] * 4 + [1] * 6])))
    agree(packed, mx.concatenate([model(rows[:, :4]), model(rows[:, 4:])], axis=1))


@TWO
def test_shortcuts_and_padding_change_no_log_probability(architecture: str) -> None:
    model = coupled(architecture)
    pairs = pair_arrays(pair_batch(PAIRS, ALL))
    shared = response_logps(model, pairs, supported_shortcuts(model))
    assert supported_shortcuts(model) == Shortcuts(True, True)
    agree(shared, response_logps(model, pairs, Shortcuts()))
    for n, pair in enumerate(PAIRS):
        alone = response_logps(model, pair_arrays(pair_batch([pair], [n])), Shortcuts())
        agree(shared[n, : len(pair.chosen)], alone[0, : len(pair.chosen)])


def gradients(model: Any, loss: BatchedLoss, which: Sequence[int]) -> dict[str, mx.array]:
    """Gradients of a batch by name, with its loss and the order parameter."""
    model.train()
    batch = loss.batch(which)
    arrays = [*loss.arrays(batch), *loss.step_arrays(model, [batch], ALONE)]
    kept = adapter_weights(model)

    def compute(weights: dict[str, mx.array]) -> tuple[mx.array, mx.array]:
        model.load_weights(list(weights.items()), strict=False)
        sums = loss.loss(model, arrays)
        return sums.total, sums.metrics[ORDER_PARAMETER]

    (total, order), found = mx.value_and_grad(compute)(kept)
    model.load_weights(list(kept.items()), strict=False)
    return {**found, "loss": total, "order": order}


def phased() -> Any:
    """A tiny model with an adapter on its last block, and phases that do something."""
    model = tiny_model()
    attach_adapter(model, replace(PHASED, layers=1, dropout=0.0), seed=1)
    return open_gate(model)


@pytest.mark.parametrize("kind", ["sft", "packed", "dpo"])
def test_gradients_are_the_same_by_every_way_and_reach_all_tensors(
    kind: str, tmp_path: Path
) -> None:
    """Plain, with shortcuts, from stored states, and with blocks computed again."""
    model, packed = phased(), Row(ROWS[3].ids[:8], [False, True] * 4, "", [0] * 4 + [1] * 4)
    rows: Any = {"sft": ROWS[:3], "packed": [packed], "dpo": PAIRS[:4]}[kind]
    every, by = range(len(rows)), supported_shortcuts(model)
    size = frozen_states_size(model, rows, every)
    states = store_states(model, rows, every, size, tmp_path / "states")
    assert states.depth == SETTINGS.block

    def found(shortcuts: Shortcuts, frozen: Any = None) -> dict[str, mx.array]:
        if kind != "dpo":
            return gradients(model, ConversationLoss(rows, shortcuts, frozen), every)
        logps = reference_logps(model, rows, every, tmp_path / "reference.npz")
        return gradients(model, PairLoss(rows, logps, dpo(), shortcuts, frozen), every)

    plain = found(Shortcuts())
    assert all(bool(mx.any(plain[name] != 0)) for name in plain if "phase_attention" in name)
    others = [found(by), found(by, states)]
    checkpoint_gradients(model, True)
    for one in (*others, found(by)):
        for name, value in plain.items():
            np.testing.assert_allclose(one[name], value, atol=1e-5, err_msg=name)


def test_16_bit_models_see_the_same_phases_through_a_cache() -> None:
    model = tiny_model()
    model.update(tree_map(lambda v: v.astype(mx.bfloat16), model.parameters()))
    attach_phase_attention(model, SETTINGS)
    rows, cache = ids(1, 9), make_prompt_cache(open_gate(model))
    assert model(rows).dtype == mx.bfloat16
    with recorded_order(model) as orders:
        for part in (rows, rows[:, :6], rows[:, 6:]):
            model(part, cache=cache if part is not rows else None)
    np.testing.assert_allclose(orders[0][:, 6:], orders[2], atol=2e-3)


# --- training, files ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
def test_all_its_tensors_move_and_the_order_parameter_is_logged(kind: str, tmp_path: Path) -> None:
    model, log = tiny_model(), ListLog()
    attach_adapter(model, PHASED, seed=1)
    before = adapter_weights(model)
    names = {name for name in before if "phase_attention" in name}
    assert len(names) == 3
    loss: BatchedLoss
    phase: Any
    if kind == "sft":
        loss, phase = ConversationLoss(ROWS, supported_shortcuts(model)), sft(steps=3)
    elif kind == "dpo":
        loss, phase = preference(model, dpo(), tmp_path), dpo(steps=3)
    else:
        rows = [RatedRow(*pair[:3], n % 2 > 0, pair.origin) for n, pair in enumerate(PAIRS)]
        logps = reference_logps(model, rows, ALL, tmp_path / "reference.npz")
        phase = KtoPhase(objective="kto", data="x", steps=3, lr=1e-2, beta=0.1)
        loss = RatedLoss(rows, logps, phase, supported_shortcuts(model))
    run(model, loss, phase, tmp_path / "work", log, valid=loss, spec=PHASED)
    for name, value in adapter_weights(model).items():
        assert bool(mx.any(value != before[name])), name
    for record in log.records:
        found = {key: value for key, value in record.items() if ORDER_PARAMETER in key}
        assert len(found) == 1 and all(0 < value < 1 for value in found.values()), record


def test_the_order_parameter_is_the_mean_over_supervised_tokens() -> None:
    model, by_token = coupled(), []
    for chat in ROWS:
        with recorded_order(model) as orders:
            model(mx.array([chat.ids[:-1]]))
        assert orders[0][0, 0].item() == pytest.approx(1)  # a first token sees itself alone
        by_token += np.asarray(orders[0][0])[np.array(chat.mask[1:])].tolist()
    loss = ConversationLoss(ROWS, supported_shortcuts(model))
    batch = loss.batch(range(len(ROWS)))
    metrics = loss.loss(model, loss.arrays(batch)).metrics
    assert float(metrics[ORDER_PARAMETER]) / batch.weight == pytest.approx(np.mean(by_token))
    assert ORDER_PARAMETER not in loss.loss(tiny_model(), loss.arrays(batch)).metrics


@pytest.mark.parametrize("shared", [True, False])
def test_of_pairs_it_is_the_mean_over_responses_of_their_mean(shared: bool, tmp_path: Path) -> None:
    model, by_response = coupled(), []
    for prompt, *responses in (pair[:3] for pair in PAIRS):
        for response in responses:
            with recorded_order(model) as orders:
                model(mx.array([[*prompt, *response][:-1]]))
            by_response.append(np.asarray(orders[0][0])[len(prompt) - 1 :].mean())
    reference = reference_logps(model, PAIRS, ALL, tmp_path / "reference.npz")
    loss = PairLoss(PAIRS, reference, dpo(), supported_shortcuts(model) if shared else Shortcuts())
    batch = loss.batch(range(len(PAIRS)))
    metrics = loss.loss(model, loss.arrays(batch)).metrics
    found = float(metrics[ORDER_PARAMETER]) / batch.weight
    assert found == pytest.approx(np.mean(by_response), rel=1e-5)


def test_a_resumed_phase_ends_with_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: Any) -> None:
        if done == 3:
            raise Stop

    def trained(work: str, **options: Any) -> Any:
        model = tiny_model()
        attach_adapter(model, replace(PHASED, dropout=0.2), seed=1)
        loss = ConversationLoss(ROWS, Shortcuts(split_head=True))
        phase = sft(steps=4, save_every_steps=2)
        run(model, loss, phase, tmp_path / work, spec=PHASED, **options)
        return model

    whole = trained("whole")
    with pytest.raises(Stop):
        trained("parts", progress=stop)
    for one, other in zip(values(trained("parts")), values(whole), strict=True):
        assert np.array_equal(one, other)


@TWO
def test_a_saved_adapter_comes_back_with_its_phases(architecture: str, tmp_path: Path) -> None:
    model, rows = tiny_model(architecture), ids(2, 9)
    attach_adapter(model, PHASED, seed=1)
    save_adapter(open_gate(model), PHASED, tmp_path)
    again = tiny_model(architecture)
    load_adapter(again, tmp_path)
    assert np.array_equal(again(rows), model(rows))
    with without_adapter(again):
        assert np.array_equal(again(rows), tiny_model(architecture)(rows))
    assert np.array_equal(again(rows), model(rows))
    with pytest.raises(ValueError, match=r"phase_attention\.gate: not an adapter parameter"):
        load_adapters(tiny_model(architecture), str(tmp_path))  # mlx-lm says that it cannot


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"steps": 0}, "adapter_config.json: phase_attention.steps: Input should be greater"),
        ({"oscillators": 6}, "to_phases has the shape .* which does not match"),
        (None, "phase_attention.*, which this model lacks"),
    ],
)
def test_damaged_files_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    model = tiny_model()
    attach_adapter(model, PHASED, seed=1)
    save_adapter(model, PHASED, tmp_path)
    file = tmp_path / "adapter_config.json"
    config = json.loads(file.read_text())
    config["phase_attention"] = None if change is None else asdict(SETTINGS) | change
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said):
        load_adapter(tiny_model(), tmp_path)


def test_an_adapter_with_phases_is_not_fused(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    model = load(str(tmp_path / "model")).model
    attach_adapter(model, PHASED, seed=1)
    (tmp_path / "adapter").mkdir()
    save_adapter(model, PHASED, tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"has phase attention, .*; use the adapter with its base"):
        fuse(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / "out").exists()
