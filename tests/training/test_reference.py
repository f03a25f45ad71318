"""The reference: stored, reused, made anew when damaged, and known by a key."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from support.processes import OneOfTwo
from support.runs import short_checks
from support.small_run import make_inputs
from support.training import ALL, PAIRS, adapted

import forty2
from forty2.errors import TrainingError
from forty2.inference.logprobs import supported_shortcuts
from forty2.inference.padding import batch_tokens
from forty2.model.adapter import adapter_weights
from forty2.text.rows import PairRow, RatedRow
from forty2.training.frozen_states import frozen_states_size, store_states
from forty2.training.reference import (
    pair_logprobs,
    reference_key,
    reference_logps,
    token_margins,
)

SHORT = {
    "sft": "{{objective: sft, data: {inputs}/sft.jsonl, steps: 1, lr: 1.0e-2, lint: false}}",
    "dpo": "{{objective: dpo, data: {inputs}/dpo.jsonl, steps: 1, lr: 1.0e-2, lint: false, beta: 1.0}}",
}
"""Phases of one step."""


def test_reference_is_stored_reused_and_recomputed_when_damaged(tmp_path: Path) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    first = reference_logps(model, PAIRS, ALL, store)

    class Untouchable(nn.Module):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("the stored reference was not used")

    untouchable: Any = Untouchable  # mlx's constructor has no types
    again = reference_logps(untouchable(), PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], again[n])
    store.write_bytes(store.read_bytes()[:-40])
    mended = reference_logps(model, PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(first[n], mended[n])


def test_a_margin_is_of_means_over_supervised_tokens() -> None:
    turns = PairRow([1], [2, 3, 4], [5, 6], "a", masks=([True, False, True], [True, True]))
    rows = [PairRow([1, 2], [3, 4], [5], "b"), turns]
    logps = {
        0: np.array([-1.0, -3.0, -0.5], np.float32),
        1: np.array([-1.0, 0.0, -2.0, -4.0, -5.0], np.float32),
    }
    assert token_margins(rows, logps) == [-2.0 + 0.5, -1.5 + 4.5]


@pytest.mark.parametrize("damage", ["other values", "fewer values", "objects", "absent arrays"])
def test_a_stored_reference_of_other_values_or_length_is_made_anew(
    damage: str, tmp_path: Path
) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    whole = reference_logps(model, PAIRS, ALL, store)
    with np.load(store) as saved:
        logps, checksum = saved["logps"], saved["sha256"]
    fewer = logps[:-1]
    damaged: dict[str, dict[str, Any]] = {
        "other values": {"logps": logps + 1, "sha256": checksum},
        "fewer values": {
            "logps": fewer,
            "sha256": np.array(hashlib.sha256(fewer.tobytes()).hexdigest()),
        },
        "objects": {"logps": logps.astype(object), "sha256": checksum},  # pickled: never read
        "absent arrays": {"logps": logps},
    }
    np.savez(store, **damaged[damage])
    again = reference_logps(model, PAIRS, ALL, store)
    for n in ALL:
        np.testing.assert_array_equal(again[n], whole[n])
        assert again[n].dtype == np.float32


def test_two_processes_compute_and_store_the_reference_of_one(tmp_path: Path) -> None:
    """Each scores its share of the rows, zeros stand for the others, and the sum has them all."""
    model = adapted()
    alone = reference_logps(model, PAIRS, ALL, tmp_path / "alone.npz")
    second = OneOfTwo(rank=1)
    reference_logps(model, PAIRS, ALL, tmp_path / "second.npz", group=second)
    first = OneOfTwo(received=second.sent)
    events: list[tuple[str, int, int]] = []
    together = reference_logps(
        model,
        PAIRS,
        ALL,
        tmp_path / "first.npz",
        group=first,
        progress=lambda *event: events.append(event[:3]),
    )
    assert events[-1] == ("reference", 6, 6)
    for n in ALL:
        np.testing.assert_allclose(together[n], alone[n], rtol=1e-5)
        assert not (first.sent[0][: len(alone[0])] == 0).any()
    assert reference_logps(adapted(), PAIRS, ALL, tmp_path / "first.npz").keys() == alone.keys()


@pytest.mark.parametrize("kind", ["pairs", "rated"])
def test_no_batch_of_the_reference_is_larger_than_the_machine_computes_at_once(
    kind: str, tmp_path: Path
) -> None:
    """Both responses of a rated row are scored, although training reads one at a time."""
    side = batch_tokens() // 5
    pairs = [PairRow([1, 2], [3] * side, [4] * side, f"rows:{n}") for n in range(4)]
    rated = [RatedRow(p.prompt, p.chosen, p.rejected, True, p.origin) for p in pairs]
    done = [0]
    reference_logps(
        adapted(),
        pairs if kind == "pairs" else rated,
        range(4),
        tmp_path / "reference.npz",
        progress=lambda *event: done.append(event[1]),
    )
    assert done == [0, 2, 4]


def test_a_reference_from_stored_states_runs_the_blocks_above_them_alone(tmp_path: Path) -> None:
    model, which = adapted(), [5, 0, 3]
    plain = reference_logps(model, PAIRS, which, tmp_path / "plain.npz")
    size = frozen_states_size(model, PAIRS, which)
    frozen = store_states(model, PAIRS, which, size, tmp_path / "states")
    shortcuts = supported_shortcuts(model)
    model.model.layers[0].mlp.up_proj.weight *= mx.nan
    replayed = reference_logps(
        model, PAIRS, which, tmp_path / "new.npz", shortcuts=shortcuts, frozen=frozen
    )
    for n in which:
        np.testing.assert_allclose(replayed[n], plain[n], atol=1e-5)


def test_a_log_probability_that_is_not_finite_names_the_row_and_is_not_stored(
    tmp_path: Path,
) -> None:
    model, store = adapted(), tmp_path / "reference.npz"
    model.model.embed_tokens.weight[PAIRS[3].prompt[0]] = mx.nan
    with pytest.raises(TrainingError, match=r"^dpo\.jsonl:4: .*log-probability that is not finite"):
        reference_logps(model, PAIRS, [3], store)
    assert not store.exists()


def test_reference_key_depends_on_weights_adapter_and_rows() -> None:
    adapter = adapter_weights(adapted())
    key = reference_key("base", adapter, PAIRS)
    name = next(iter(adapter))
    assert key == reference_key("base", dict(adapter), list(PAIRS))
    assert key != reference_key("other", adapter, PAIRS)
    assert key != reference_key("base", {**adapter, name: adapter[name] + 1e-3}, PAIRS)
    assert key != reference_key("base", {"other": adapter[name], **adapter}, PAIRS)
    assert key != reference_key("base", adapter, PAIRS[1:])
    first, *others = PAIRS
    for side in ("prompt", "chosen", "rejected"):
        other_ids: Any = {side: [299, *getattr(first, side)[1:]]}
        changed = first._replace(**other_ids)
        assert key != reference_key("base", adapter, [changed, *others])
    moved = first._replace(chosen=first.chosen[:-1], rejected=[first.chosen[-1], *first.rejected])
    assert key != reference_key("base", adapter, [moved, *others])


def test_a_stored_reference_is_read_only_for_the_same_weights_adapter_and_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs share a cache; each change below must make its own reference there, and start at ln 2."""
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    inputs = make_inputs(tmp_path / "inputs")

    def references(name: str, *overrides: str) -> int:
        short = [f"phases.{phase}={yaml}" for phase, yaml in SHORT.items()]
        changes = [
            "fuse=null",
            "adapter.dropout=0.0",
            *(line.format(inputs=inputs) for line in short),
            *overrides,
        ]
        recipe = forty2.load_recipe(str(inputs / "recipe.yaml"), changes)
        with short_checks():
            run = forty2.run(recipe, run_dir=tmp_path / name)
        records = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
        (first,) = [r["loss"] for r in records if r["phase"] == "dpo" and "loss" in r]
        assert first == pytest.approx(math.log(2), abs=1e-5)
        return len(list((tmp_path / "cache" / "reference").iterdir()))

    assert references("first") == 1
    assert references("another adapter", "phases.sft.lr=2.0e-2") == 2
    template = inputs / "model" / "chat_template.jinja"
    template.write_text(template.read_text().replace("}}<|im_end|>", "}} <|im_end|>"))
    assert references("other tokens") == 3
    weights = mx.load(str(inputs / "model" / "model.safetensors"))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = 1.01 * weights["model.norm.weight"]
    mx.save_safetensors(str(inputs / "model" / "model.safetensors"), weights)
    assert references("other weights") == 4


def test_scores_of_pairs_are_the_sums_of_their_tokens_with_the_ids_that_they_belong_to(
    tmp_path: Path,
) -> None:
    model = adapted()
    stages: list[tuple[str, int, int]] = []
    scored = pair_logprobs(model, PAIRS, progress=lambda *event: stages.append(event[:3]))
    tokens = reference_logps(model, PAIRS, ALL, tmp_path / "reference.npz")
    assert len(scored) == len(PAIRS) and stages[-1] == ("logprobs", len(PAIRS), len(PAIRS))
    for i, (pair, record) in enumerate(zip(PAIRS, scored, strict=True)):
        chosen, rejected = np.split(tokens[i].astype(np.float64), [len(pair.chosen)])
        assert record == {
            "prompt_tokens": len(pair.prompt),
            "chosen": {"ids": pair.chosen, "logprob": pytest.approx(chosen.sum(), rel=1e-6)},
            "rejected": {"ids": pair.rejected, "logprob": pytest.approx(rejected.sum(), rel=1e-6)},
        }
