"""No shortcut changes the numbers: shared prompts, head, stored states, checkpoints, in any mix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from support.models import ARCHITECTURES, tiny_model

from forty2.data.library import rows as library
from forty2.data.records import Pair
from forty2.inference import logprobs, padding
from forty2.inference.logprobs import Shortcuts, supported_shortcuts
from forty2.model.adapter import attach_adapter
from forty2.model.gradient_checkpointing import checkpoint_gradients
from forty2.model.loading import load
from forty2.model.surgery import can_split, frozen_depth
from forty2.recipe.schema import Adapter
from forty2.text.encoder import Encoder
from forty2.text.rows import PairRow, RatedRow, Row
from forty2.training.batched_loss import (
    BatchedLoss,
    ConversationLoss,
    PairLoss,
    RatedLoss,
    batched_loss,
)
from forty2.training.frozen_states import (
    FrozenStates,
    frozen_states_size,
    has_room,
    states_key,
    states_to_store,
    store_states,
)
from forty2.training.objectives.dpo import DpoPhase
from forty2.training.objectives.kto import KtoPhase
from forty2.training.objectives.phase import Phase
from forty2.training.objectives.sft import SftPhase
from forty2.training.processes import ALONE
from forty2.training.reference import reference_logps
from forty2.training.stored_states import Size

RNG = np.random.default_rng(11)
PHASE = DpoPhase(objective="dpo", data="x", steps=6, lr=1e-2, beta=0.3)

SFT = SftPhase(objective="sft", data="x", steps=6, lr=1e-2)
KTO = KtoPhase(objective="kto", data="x", steps=6, lr=1e-2, beta=0.3)


def ids(length: int) -> list[int]:
    return [int(i) for i in RNG.integers(1, 300, length)]


# one token, equal prefixes, long and short
PAIRS = [
    PairRow(ids(1), ids(1), ids(1), "a"),
    PairRow(ids(30), ids(2), ids(17), "b"),
    PairRow([5, 6, 7], [8, 9], [8, 10, 11], "c"),
    PairRow(ids(9), ids(9), ids(8), "d"),
]
ROWS = [Row(ids(n), [i > n // 2 for i in range(n)], str(n)) for n in (2, 21, 9, 14)]
ROWS.append(Row(ids(12), [i % 6 > 1 for i in range(12)], "packed", [i // 6 for i in range(12)]))


def moved(architecture: str = "llama", layers: int = 2, adapter: Any = None, **changes: Any) -> Any:
    """A tiny model with an adapter on its upper blocks that does something."""
    model = tiny_model(architecture, **changes)
    attach_adapter(model, Adapter(rank=4, scale=4.0, layers=layers, **(adapter or {})), seed=1)
    for name, value in tree_flatten(model.trainable_parameters()):
        if name.endswith("lora_b"):
            value += 0.1 * mx.random.normal(value.shape)
            model.load_weights([(name, value)], strict=False)
    return model


def test_stored_states_are_used_again_for_the_same_tokens_alone() -> None:
    """Whatever of rows and model the states depend on has another key; what they do not, has not."""
    size = frozen_states_size(moved(), PAIRS, range(4))
    a, b, c, d = PAIRS
    key = states_key("model", size, PAIRS, range(4))
    read_back: Any = [row._replace(prompt=list(np.array(row.prompt))) for row in PAIRS]
    assert states_key("model", size, read_back, range(4)) == key  # as prepared rows have them
    others = [
        states_key("another model", size, PAIRS, range(4)),
        states_key("model", size._replace(depth=size.depth + 1), PAIRS, range(4)),
        states_key("model", size._replace(dtype=mx.bfloat16), PAIRS, range(4)),
        states_key("model", size, PAIRS, range(3)),
        states_key("model", size, PAIRS, [1, 0, 2, 3]),
        states_key("model", size, [a, b._replace(prompt=[*b.prompt, 7]), c, d], range(4)),
        states_key("model", size, [a, b, c._replace(chosen=[8, 10]), d], range(4)),
        states_key("model", size, [a, b, c._replace(rejected=[8, 10, 12]), d], range(4)),
    ]
    rows = [
        Row([5, 6, 7, 8], [False, True] * 2, "a", segments)
        for segments in (None, [0, 0, 1, 1], [0, 1, 1, 1])
    ]
    others += [states_key("model", size, [row], [0]) for row in rows]
    assert len({key, *others}) == 1 + len(others)
    same = [a, b, c._replace(weight=2.0, origin="x", masks=([True, False], [True] * 3)), d]
    assert states_key("model", size, same, range(4)) == key
    unlearned = rows[1]._replace(mask=[False] * 4)
    assert states_key("model", size, [unlearned], [0]) == others[-2]


def stored(model: Any, rows: Any, which: Any, folder: Path) -> FrozenStates:
    return store_states(
        model, rows, which, frozen_states_size(model, rows, which), folder / "states"
    )


def learned(model: Any, objective: BatchedLoss, which: list[int]) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of a batch."""
    model.train()
    batch = objective.batch(which)
    arrays = [*objective.arrays(batch), *objective.step_arrays(model, [batch], ALONE)]

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        return objective.loss(model, arrays).total

    total, gradients = mx.value_and_grad(loss)(model.trainable_parameters())
    return float(total), {k: np.asarray(v) for k, v in tree_flatten(gradients)}


def assert_same(one: tuple[float, Any], other: tuple[float, Any]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    # An array of gradients that cancel to nearly nothing is rounding beside the others.
    least = max(1e-2, 1e-2 * max(np.abs(value).max() for value in other[1].values()))
    for name, value in other[1].items():
        close = 1e-4 * max(least, np.abs(value).max())
        np.testing.assert_allclose(one[1][name], value, rtol=1e-4, atol=close, err_msg=name)


def pairs_objective(
    model: Any, pairs: list[PairRow], by: Shortcuts, replay: FrozenStates | None
) -> PairLoss:
    reference = {
        i: np.linspace(-6, -5, len(row.chosen) + len(row.rejected)).astype(np.float32)
        for i, row in enumerate(pairs)
    }
    return PairLoss(pairs, reference, PHASE, by, replay)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("checkpointed", [False, 1, True])
def test_pairs(architecture: str, checkpointed: bool | int, tmp_path: Path) -> None:
    model = moved(architecture)
    plain = learned(model, pairs_objective(model, PAIRS, Shortcuts(), None), [0, 1, 2, 3])
    allowed = supported_shortcuts(model)
    assert allowed.split_head and frozen_depth(model) == 1
    checkpoint_gradients(model, checkpointed)
    assert_same(learned(model, pairs_objective(model, PAIRS, allowed, None), [0, 1, 2, 3]), plain)
    if allowed.shared_prompts:
        replay = stored(model, PAIRS, range(4), tmp_path)
        replayed = pairs_objective(model, PAIRS, allowed, replay)
        assert_same(learned(model, replayed, [0, 1, 2, 3]), plain)
        assert_same(
            learned(model, replayed, [3, 1]),
            learned(model, pairs_objective(model, PAIRS, Shortcuts(), None), [3, 1]),
        )


@pytest.mark.parametrize("architecture", ["llama", "sliding", "qwen2", "phi3"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_conversations(architecture: str, checkpointed: bool, tmp_path: Path) -> None:
    model = moved(architecture)
    plain = learned(model, ConversationLoss(ROWS), [0, 1, 2, 3, 4])
    checkpoint_gradients(model, checkpointed)
    assert_same(
        learned(model, ConversationLoss(ROWS, supported_shortcuts(model)), [0, 1, 2, 3, 4]), plain
    )
    replay = stored(model, ROWS, [1, 2, 4], tmp_path)
    assert_same(
        learned(model, ConversationLoss(ROWS, supported_shortcuts(model), replay), [4, 2]),
        learned(model, ConversationLoss(ROWS), [4, 2]),
    )


LENGTHS = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))


@settings(max_examples=25, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=5), st.integers(1, 3), st.randoms())
def test_pairs_of_any_shape(
    tmp_path_factory: Any, lengths: list[tuple[int, int, int]], layers: int, random: Any
) -> None:
    def some(n: int) -> list[int]:
        return [random.randrange(1, 300) for _ in range(n)]

    pairs = [PairRow(some(p), some(c), some(r), "x") for p, c, r in lengths]
    model = moved("llama", layers)
    which = list(range(len(pairs)))
    plain = learned(model, pairs_objective(model, pairs, Shortcuts(), None), which)
    replay = None
    if frozen_depth(model):
        replay = stored(model, pairs, which, tmp_path_factory.mktemp("states"))
    spared = pairs_objective(model, pairs, supported_shortcuts(model), replay)
    assert_same(learned(model, spared, which), plain)


HEADS = ["self_attn.q_proj", "lm_head"]
EMBEDDINGS = ["self_attn.q_proj", "model.embed_tokens"]
WHERE: list[tuple[str, list[str], bool]] = [
    ("llama", HEADS, False),
    ("llama", ["lm_head"], False),
    ("llama", EMBEDDINGS, True),
    ("llama", EMBEDDINGS, False),
    ("llama", ["model.embed_tokens"], True),
    ("qwen2", [*EMBEDDINGS, "lm_head"], False),
    ("gemma2", EMBEDDINGS, True),
    ("phi3", ["self_attn.qkv_proj", "lm_head"], False),
    ("mixtral", ["block_sparse_moe.switch_mlp.up_proj", "lm_head"], False),
    ("nested", ["self_attn.q_proj", "language_model.model.embed_tokens"], True),
]
"""Architecture, keys outside the blocks too, and whether the head is the embedding."""


@pytest.mark.parametrize("kind", ["sft", "dpo", "kto"])
@pytest.mark.parametrize("adapter_type", ["lora", "dora"])
@pytest.mark.parametrize(("architecture", "keys", "tied"), WHERE)
def test_heads_and_embeddings_get_the_gradient_of_the_plain_path(
    kind: str,
    adapter_type: str,
    architecture: str,
    keys: list[str],
    tied: bool,
    tmp_path: Path,
) -> None:
    if adapter_type == "dora":
        keys = [key for key in keys if "switch_mlp" not in key]
    changes = {} if architecture == "gemma2" else {"tie_word_embeddings": tied}
    model = moved(architecture, 1, {"type": adapter_type, "keys": keys}, **changes)
    allowed = supported_shortcuts(model)
    assert allowed.split_head and frozen_depth(model) == 0
    conversations = ROWS[:-1] if architecture == "gemma2" else ROWS  # it cannot take packed rows
    rows: Any = conversations if kind == "sft" else PAIRS

    def objective(by: Shortcuts, replay: FrozenStates | None = None) -> BatchedLoss:
        if kind == "sft":
            return ConversationLoss(conversations, by, replay)
        if kind == "dpo":
            return pairs_objective(model, PAIRS, by, replay)
        rated = [RatedRow(*pair[:3], n % 2 > 0, pair.origin) for n, pair in enumerate(PAIRS)]
        reference = {
            i: np.full(sum(map(len, row.responses)), -5.5, np.float32)
            for i, row in enumerate(rated)
        }
        return RatedLoss(rated, reference, KTO, by, replay)

    which = list(range(len(rows)))
    plain = learned(model, objective(Shortcuts()), which)
    assert all(np.abs(value).max() > 1e-5 for value in plain[1].values())
    assert_same(learned(model, objective(allowed), which), plain)
    phase = {"sft": SFT, "dpo": PHASE, "kto": KTO}[kind]
    assert states_to_store(model, phase, rows, which, 9.0, shortcuts=Shortcuts(True, True)) is None
    for checkpointed in (1, True):
        checkpoint_gradients(model, checkpointed)
        assert_same(learned(model, objective(allowed), which), plain)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("keys", "tied"), [(HEADS, False), (EMBEDDINGS, True)])
def test_heads_get_their_gradient_from_every_chunk_of_logits(
    keys: list[str], tied: bool, quantized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    if quantized:
        nn.quantize(model, group_size=32, bits=8)
    attach_adapter(model, Adapter(rank=4, scale=4.0, layers=2, keys=keys), seed=1)
    for name, value in tree_flatten(model.trainable_parameters()):
        model.load_weights([(name, value + 0.1 * mx.random.normal(value.shape))], strict=False)
    plain = learned(model, ConversationLoss(ROWS), [0, 1, 2, 3, 4])
    allowed = supported_shortcuts(model)
    assert allowed.split_head
    monkeypatch.setattr(logprobs, "head_elements", lambda: 5 * 300)  # five positions a chunk
    assert_same(learned(model, ConversationLoss(ROWS, allowed), [0, 1, 2, 3, 4]), plain)


@pytest.mark.parametrize("quantized", [False, True])
def test_dora_blocks_start_from_stored_states(quantized: bool, tmp_path: Path) -> None:
    model = tiny_model("llama")
    if quantized:
        nn.quantize(model, group_size=32, bits=8)
    attach_adapter(model, Adapter(type="dora", rank=4, scale=4.0, layers=2), seed=1)
    for name, value in tree_flatten(model.trainable_parameters()):
        value += 0.1 * mx.random.normal(value.shape)
        model.load_weights([(name, value)], strict=False)
    plain = learned(model, pairs_objective(model, PAIRS, Shortcuts(), None), [0, 1, 2, 3])
    assert frozen_depth(model) == 1 and any(name.endswith(".m") for name in plain[1])
    allowed = supported_shortcuts(model)
    replay = stored(model, PAIRS, range(4), tmp_path)
    for checkpointed in (False, True):
        checkpoint_gradients(model, checkpointed)
        replayed = pairs_objective(model, PAIRS, allowed, replay)
        assert_same(learned(model, replayed, [0, 1, 2, 3]), plain)


def test_pairs_of_a_quantised_model(tmp_path: Path) -> None:
    model = tiny_model("llama")
    nn.quantize(model, group_size=32, bits=8)  # the tied head, too
    attach_adapter(model, Adapter(rank=4, scale=4.0, layers=2), seed=1)
    plain = learned(model, pairs_objective(model, PAIRS, Shortcuts(), None), [0, 1, 2, 3])
    allowed = supported_shortcuts(model)
    assert allowed == Shortcuts(shared_prompts=True, split_head=True)
    replay = stored(model, PAIRS, range(4), tmp_path)
    assert_same(learned(model, pairs_objective(model, PAIRS, allowed, replay), [0, 1, 2, 3]), plain)


def test_real_pairs_on_the_starter_model(starter_path: Path, tmp_path: Path) -> None:
    loaded = load(str(starter_path))
    encoder = Encoder(loaded.tokenizer)
    pairs = [
        encoder.encode_pair(
            Pair(
                prompt=({"role": "user", "content": row["question"]},),
                chosen=({"role": "assistant", "content": row["chosen"]},),
                rejected=({"role": "assistant", "content": row["rejected"]},),
            )
        )
        for row in library("entities")[:2]
    ]
    model = loaded.model
    attach_adapter(model, Adapter(rank=4, scale=4.0, layers=3), seed=1)
    plain = learned(model, pairs_objective(model, pairs, Shortcuts(), None), [0, 1])
    replay = stored(model, pairs, range(2), tmp_path)
    spared = pairs_objective(model, pairs, supported_shortcuts(model), replay)
    assert_same(learned(model, spared, [0, 1]), plain)


def test_a_replayed_reference_is_the_reference(tmp_path: Path) -> None:
    model = moved()
    replay = stored(model, PAIRS, [3, 0, 1], tmp_path)
    with_it = reference_logps(model, PAIRS, [3, 0, 1], tmp_path / "a.npz", frozen=replay)
    without = reference_logps(model, PAIRS, [3, 0, 1], tmp_path / "b.npz")
    for n in (3, 0, 1):
        np.testing.assert_allclose(with_it[n], without[n], atol=1e-5)


def test_frozen_blocks_are_not_run_when_replayed(tmp_path: Path) -> None:
    model = moved()
    replay = stored(model, PAIRS, range(4), tmp_path)
    objective = pairs_objective(model, PAIRS, supported_shortcuts(model), replay)
    wanted = learned(model, objective, [0, 1])
    model.model.layers[0].mlp.up_proj.weight = mx.full(
        model.model.layers[0].mlp.up_proj.weight.shape, mx.nan
    )
    assert_same(learned(model, objective, [0, 1]), wanted)


def test_states_are_stored_whole_reused_and_the_same_bits_when_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padding, "BATCH_TOKENS_CPU", 60)  # several batches
    model = moved()
    size = frozen_states_size(model, PAIRS, range(4))
    assert size.bytes == 4 * 32 * sum(
        len(p.prompt) - 1 + len(p.chosen) + len(p.rejected) for p in PAIRS
    )
    calls: list[Any] = []
    store_states(
        model, PAIRS, range(4), size, tmp_path / "states", progress=lambda *call: calls.append(call)
    )
    assert calls[-1] == ("frozen blocks", 4, 4, {})
    assert len(calls) > 2 and all(0 < done <= total == 4 for _, done, total, _ in calls)
    first = (tmp_path / "states").read_bytes()
    assert len(first) == size.bytes
    broken = moved()
    broken.model.layers[0].mlp.up_proj.weight *= 2
    store_states(broken, PAIRS, range(4), size, tmp_path / "states")  # not computed again
    assert (tmp_path / "states").read_bytes() == first
    (tmp_path / "states").write_bytes(first[:-4])
    store_states(model, PAIRS, range(4), size, tmp_path / "states")
    assert (tmp_path / "states").read_bytes() == first


def test_half_precision_states_are_kept_bit_for_bit(tmp_path: Path) -> None:
    model = moved()
    model.set_dtype(mx.bfloat16)
    replay = stored(model, PAIRS, range(4), tmp_path)
    prefixes, inputs = replay.of_pairs(
        pairs_objective(model, PAIRS, supported_shortcuts(model), None).batch([1])
    )
    assert prefixes.dtype == inputs.dtype == mx.bfloat16
    assert float(mx.abs(prefixes).max()) > 0


def test_a_model_that_does_not_come_apart_is_found_out() -> None:
    model = tiny_model()

    class Odd(type(model)):  # type: ignore[misc]
        def __call__(self, ids: mx.array, cache: Any = None) -> mx.array:
            logits: mx.array = super().__call__(ids, cache=cache)
            return logits + mx.array(self.model(ids)).sum()

    model.__class__ = Odd
    assert not can_split(model)
    assert can_split(tiny_model())


@pytest.mark.parametrize(
    ("passes", "processes", "limit_gb", "by", "wanted"),
    [
        (9.0, 1, 4.0, Shortcuts(True, True), True),
        (1.0, 1, 4.0, Shortcuts(True, True), True),  # and the reference's pass
        (2.0, 2, 4.0, Shortcuts(True, True), True),
        (2.0, 3, 4.0, Shortcuts(True, True), False),
        (9.0, 1, 0.0, Shortcuts(True, True), False),
        (9.0, 1, 1e-6, Shortcuts(True, True), False),
        (9.0, 1, 4.0, Shortcuts(False, True), False),
        (9.0, 1, 4.0, Shortcuts(True, False), False),
    ],
)
def test_states_are_stored_where_that_saves_time_and_they_fit(
    passes: float, processes: int, limit_gb: float, by: Shortcuts, wanted: bool
) -> None:
    phase = replace(PHASE, replay_gb=limit_gb)
    several: Any = {} if processes == 1 else {"processes": processes}
    size = states_to_store(moved(), phase, PAIRS, [0, 3], passes, shortcuts=by, **several)
    assert (size is not None) is wanted
    assert size is None or size == frozen_states_size(moved(), PAIRS, [0, 3])


def test_states_that_take_all_the_allowed_space_are_stored() -> None:
    bytes_of_all = frozen_states_size(moved(), PAIRS, range(4)).bytes
    phase = replace(PHASE, replay_gb=bytes_of_all / 1e9)
    by = Shortcuts(True, True)
    assert states_to_store(moved(), phase, PAIRS, range(4), 9.0, shortcuts=by) is not None


def test_there_is_room_where_a_tenth_of_the_disk_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "work"
    for free, tokens, wanted in ((500, 39, True), (500, 40, False), (100, 1, False)):
        disk = SimpleNamespace(total=1000, used=1000 - free, free=free)
        monkeypatch.setattr(
            "shutil.disk_usage", lambda at, disk=disk: disk if at.is_dir() else None
        )
        assert has_room(Size(1, 5, mx.bfloat16, tokens), folder) is wanted


@pytest.mark.parametrize("kind", ["conversations", "pairs", "rated"])
def test_every_loss_begins_at_the_stored_states(kind: str, tmp_path: Path) -> None:
    """Where they are zeros the loss must be another one; else the blocks below ran again."""
    model = moved()
    common: Any = {"data": "x", "steps": 6, "lr": 1e-2}
    rated = [RatedRow(p.prompt, p.chosen, p.rejected, len(p.prompt) > 5, p.origin) for p in PAIRS]
    cases: dict[str, tuple[Any, Phase]] = {
        "conversations": (ROWS, SftPhase(objective="sft", **common)),
        "pairs": (PAIRS, PHASE),
        "rated": (rated, KtoPhase(objective="kto", beta=0.3, **common)),
    }
    rows, phase = cases[kind]
    every = range(len(rows))
    reference = {
        i: np.linspace(-6, -5, sum(map(len, pair.responses))).astype(np.float32)
        for i, pair in enumerate(PAIRS)
    }

    def total(frozen: FrozenStates | None) -> float:
        loss = batched_loss(phase, rows, reference, supported_shortcuts(model), frozen)
        batch = loss.batch(every)
        arrays = [*loss.arrays(batch), *loss.step_arrays(model, [batch], ALONE)]
        return float(loss.loss(model, arrays).total)

    replay = stored(model, rows, every, tmp_path)
    assert total(replay) == pytest.approx(total(None), rel=1e-5)
    (tmp_path / "zeros").write_bytes(bytes(replay.bytes))
    zeros = FrozenStates(tmp_path / "zeros", frozen_states_size(model, rows, every), rows, every)
    assert total(zeros) != pytest.approx(total(None), rel=1e-3)
