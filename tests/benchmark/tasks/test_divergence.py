"""KL from the base: against its definition, over a model's whole vocabulary, and what a run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forty2  # isort: skip

import mlx.core as mx
import numpy as np
import pytest
from chaos import make_inputs
from mlx.utils import tree_flatten, tree_unflatten
from support.benchmarks import result_of
from support.runs import short_checks

from forty2.benchmark.stats import KL_NEAR_ZERO
from forty2.benchmark.tasks.divergence import Base, Divergence, base_of, kl_of, probes
from forty2.errors import BenchmarkError
from forty2.files import read_json
from forty2.model.adapter import attach_adapter
from forty2.model.loading import LoadedModel, load
from forty2.recipe.schema import Adapter
from forty2.runs.pipeline import RunResult

RECIPE = """
version: 1
name: short
model: {inputs}/model
adapter: {{rank: 2, scale: 4.0, layers: 2}}
phases:
  sft: {{objective: sft, data: {inputs}/sft.jsonl, steps: 3, lr: {lr}, lint: false}}
fuse: {fuse}
benchmark: {{questions: probe, n: 4}}
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a tokenizer, and rows to train it on."""
    return make_inputs(tmp_path_factory.mktemp("inputs") / "all")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def log_softmax(logits: Any) -> Any:
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_by_hand() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): ½ log 2 + ½ log ⅔ = ½ log 4/3."""
    p, q = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_of(p, q) == pytest.approx([0.5 * np.log(4 / 3)])
    assert kl_of(q, p) == pytest.approx([0.25 * np.log(0.5) + 0.75 * np.log(1.5)])  # not the same
    assert kl_of(p, p).tolist() == [0.0]


def test_it_is_the_definition_near_and_far() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 6, size=(20, 500))
    for step in (1.0, 30.0, 200.0):
        p, q = log_softmax(logits), log_softmax(logits + rng.normal(0, step, size=logits.shape))
        np.testing.assert_allclose(kl_of(p, q), (np.exp(p) * (p - q)).sum(axis=-1), rtol=1e-9)


def test_rounding_to_fp32_does_not_look_like_a_change() -> None:
    """A change of KL 5e-10 is still seen; the plain sum would be off by a hundred times that."""
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, size=(50, 5000))
    p, q = log_softmax(logits), log_softmax(logits + rng.normal(0, 3e-5, size=logits.shape))
    exact = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    single = [x.astype(np.float32) for x in (p, q)]
    assert kl_of(*single).mean() == pytest.approx(exact, rel=0.05)
    plain = (np.exp(single[0]) * (single[0] - single[1])).sum(axis=-1)
    assert np.abs(plain - exact).max() > 20 * exact


def divergence(loaded: LoadedModel, base: Base) -> dict[str, Any]:
    return result_of(Divergence(base=base), loaded, base)


def moved(loaded: LoadedModel, step: float) -> LoadedModel:
    """The model with all weights moved by a share of their size."""
    rng = np.random.default_rng(3)
    weights = [
        (name, value * (1 + step * float(rng.normal())))
        for name, value in tree_flatten(loaded.model.parameters())
    ]
    loaded.model.update(tree_unflatten(weights))
    return loaded


def test_it_is_what_the_models_whole_logits_say(inputs: Path) -> None:
    base, other = load(str(inputs / "model")), moved(load(str(inputs / "model")), 0.05)
    found = divergence(other, base_of(base, "f"))
    wanted = []
    for probe in probes(base):
        ids = mx.array([probe.ids])
        p, q = (log_softmax(model.model(ids))[0, probe.places] for model in (other, base))
        wanted += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
    assert [kl for item in found["items"] for kl in item["kl"]] == pytest.approx(wanted, rel=1e-3)
    assert found["kl"] == pytest.approx(np.mean(wanted), rel=1e-3) and found["kl"] > KL_NEAR_ZERO
    assert found["n"] == len(wanted) and set(found["by"]) == {"neutral texts", "held-out answers"}


def test_a_model_is_not_far_from_itself_nor_from_an_adapter_that_does_nothing(
    inputs: Path,
) -> None:
    loaded = load(str(inputs / "model"))
    base = base_of(loaded, "f")
    assert divergence(loaded, base)["kl"] == 0.0
    attach_adapter(loaded.model, Adapter(rank=2, scale=4.0, layers=2), seed=1)
    assert divergence(loaded, base)["kl"] < 1e-11


def test_places_are_held_out_and_as_many_as_asked_for(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    every, few = probes(loaded), probes(loaded, 3)
    assert [
        sum(p.material == name for p in few) for name in ("neutral texts", "held-out answers")
    ] == [3, 3]
    assert len(every) == 8 + 16 and sum(len(p.places) for p in every) > 200
    text = loaded.tokenizer.decode(every[-1].ids)
    start = every[-1].places[0]
    assert (
        loaded.tokenizer.decode(every[-1].ids[: start + 1]) == text[: text.index("assistant") + 10]
    )
    assert all(place < len(probe.ids) for probe in every for place in probe.places)


def test_the_base_is_computed_once_and_again_where_damaged(inputs: Path, cache: Path) -> None:
    loaded = load(str(inputs / "model"))
    base = base_of(loaded, "f", 2)
    file = base.folder / "logps.f32"
    assert cache in file.parents
    other = moved(load(str(inputs / "model")), 0.05)
    assert base_of(other, "f", 2) == base  # by the fingerprint: not computed again
    assert divergence(other, base)["kl"] > 0
    assert base_of(loaded, "g", 2).folder != base.folder != base_of(loaded, "f", 3).folder
    whole = file.read_bytes()
    file.write_bytes(whole[:-4] + b"\0\0\0\0")
    assert base_of(loaded, "f", 2) == base and file.read_bytes() == whole


def test_another_vocabulary_is_refused(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    base = base_of(loaded, "f", 2)
    (base.folder / "logps.f32").write_bytes(b"")
    with pytest.raises(BenchmarkError, match="another vocabulary than its base"):
        divergence(loaded, base)


def test_a_broken_model_is_refused(inputs: Path) -> None:
    loaded = load(str(inputs / "model"))
    base = base_of(loaded, "f", 2)
    with pytest.raises(BenchmarkError, match="KL from the base is not finite"):
        divergence(moved(loaded, float("nan")), base)


def short_run(inputs: Path, folder: Path, lr: str, fuse: str = "null") -> RunResult:
    (folder / "recipe.yaml").write_text(RECIPE.format(inputs=inputs, lr=lr, fuse=fuse))
    with short_checks():
        return forty2.run(forty2.load_recipe(folder / "recipe.yaml"), run_dir=folder / "run")


def test_a_run_that_changes_nothing_is_called_no_change(inputs: Path, tmp_path: Path) -> None:
    done = short_run(inputs, tmp_path, "1.0e-7")
    assert done.verdict == "no change"
    summary = read_json(done.path / "summary.json")
    for comparison in summary["comparisons"]:
        assert comparison["kl"] < KL_NEAR_ZERO and comparison["changed"] == 0
    assert "no tax" not in json.dumps(summary)
    assert "no tax" not in done.report.read_text() and "no change" in done.report.read_text()
    assert done.table.splitlines()[0].endswith("KL")


def test_a_real_short_run_is_not(inputs: Path, tmp_path: Path) -> None:
    done = short_run(inputs, tmp_path, "5.0e-2", fuse=f"{{out: {tmp_path}/fused}}")
    assert done.verdict != "no change"
    base, after, fused = (stage["divergence"].figures["kl"] for stage in done.stages)
    assert base == 0.0 and after > KL_NEAR_ZERO
    assert fused == pytest.approx(after, rel=1e-3)  # fusing changes nothing, and is measured alike
