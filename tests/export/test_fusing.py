"""A fused model is base + adapter, and its record outlives a round trip through JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.models import save_tiny

from forty2.cli import main
from forty2.errors import ModelError
from forty2.export import fusing
from forty2.export.fusing import (
    MOST_NOISE,
    NO_EFFECT,
    Fused,
    Quantized,
    _check_parity,
    _compare,
    _log_probabilities,
    _Parity,
    _quantized_warnings,
    _warnings,
    fuse,
    quantized_path,
)
from forty2.export.record import adapter_of
from forty2.files import write_json
from forty2.model.adapter import adapter_weights, attach_adapter, load_arrays, save_adapter
from forty2.model.loading import LoadedModel, load, save_model
from forty2.model.quantization import dense_weight, quantize
from forty2.recipe.schema import Adapter

ADAPTER = Adapter(rank=2, scale=2.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("fusing") / "base")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every matrix is quantized: rows of 64 weights share a scale."""
    return save_tiny(tmp_path_factory.mktemp("fusing") / "wide", hidden_size=64)


def save_trained(model: str, folder: Path, size: float, adapter: Adapter = ADAPTER) -> Path:
    """Write an adapter whose second factors, and norms, are off by random numbers of this size."""
    loaded = load(model).model
    attach_adapter(loaded, adapter, seed=1)
    for name, value in adapter_weights(loaded).items():
        if not name.endswith("lora_a"):
            noise = size * mx.random.normal(value.shape, key=mx.random.key(len(name)))
            loaded.load_weights([(name, value + noise)], strict=False)
    folder.mkdir()
    save_adapter(loaded, adapter, folder)
    return folder


def test_a_fused_model_computes_what_base_and_adapter_do(base: Path, tmp_path: Path) -> None:
    adapter = save_trained(str(base), tmp_path / "adapter", 0.3)
    calls: list[tuple[str, int, int]] = []
    fused = fuse(
        str(base), adapter, tmp_path / "fused", progress=lambda *call: calls.append(call[:3])
    )
    assert calls == [("fuse", done, 4) for done in range(5)]
    assert fused.parity_kl < 1e-6 < 1e-3 < fused.adapter_kl and not fused.warnings
    ids = mx.array([[5, 7, 200, 31]])
    whole, parts = load(str(fused.path)).model, load(str(base), adapter).model
    assert mx.allclose(whole(ids), parts(ids), atol=1e-4)
    record = json.loads((fused.path / "fused.json").read_text())
    assert record == {
        "base": str(base),
        "adapter": str(adapter),
        "adapter_kl": fused.adapter_kl,
        "parity_kl": fused.parity_kl,
        "max_logit_difference": fused.max_logit_difference,
    }


@pytest.mark.parametrize("quantize", [None, 8])
def test_a_model_of_another_adapter_is_replaced_only_when_asked(
    quantize: int | None, base: Path, tmp_path: Path
) -> None:
    one, other = (save_trained(str(base), tmp_path / name, 0.3) for name in ("one", "other"))
    out = tmp_path / "fused"
    taken = out if quantize is None else quantized_path(out, quantize)
    fuse(str(base), one, taken)
    with pytest.raises(ModelError, match=f"{taken}: holds the model fused with {one}"):
        fuse(str(base), other, out, quantize=quantize)
    assert json.loads((taken / "fused.json").read_text())["adapter"] == str(one)
    fuse(str(base), one, taken)  # the same again
    fuse(str(base), other, out, quantize=quantize, replace=True)
    fuse(str(base), other, out, quantize=quantize)
    assert adapter_of(out) == adapter_of(taken) == str(other)
    assert json.loads((taken / "fused.json").read_text())["adapter"] == str(other)


def test_the_adapter_of_an_earlier_release_s_quantized_copy_is_that_of_its_model(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "fused-8bit"
    write_json(copy / "fused.json", {"fused": "moved/from/fused", "bits": 8})
    assert adapter_of(copy) is None and adapter_of(tmp_path) is None
    write_json(tmp_path / "fused" / "fused.json", {"adapter": "adapters/a/phase1_sft"})
    assert adapter_of(copy) == "adapters/a/phase1_sft"


def test_a_quantized_copy_is_written_beside_and_measured(base: Path, tmp_path: Path) -> None:
    adapter = save_trained(str(base), tmp_path / "adapter", 0.3)
    fused = fuse(str(base), adapter, tmp_path / "fused", quantize=8)
    assert fused.quantized is not None and fused.quantized.cosine is not None
    assert 0.9 < fused.quantized.cosine <= 1
    assert fused.quantized.path == tmp_path / "fused-8bit" == quantized_path(fused.path, 8)
    assert load(str(fused.quantized.path)).quantized and not load(str(fused.path)).quantized
    config = json.loads((fused.quantized.path / "config.json").read_text())
    assert config["quantization"]["bits"] == 8
    record = json.loads((fused.quantized.path / "fused.json").read_text())
    assert record == {
        "adapter": str(adapter),
        "fused": str(fused.path),
        "bits": 8,
        "cosine": fused.quantized.cosine,
        "kl": fused.quantized.kl,
    }


def test_a_quantized_base_is_fused_in_full_precision(base: Path, tmp_path: Path) -> None:
    loaded = load(str(base))
    model, config = quantize(loaded.model, loaded.config, 8)
    (tmp_path / "8bit").mkdir()
    save_model(type(loaded)(model, loaded.tokenizer, config, base, "8bit"), tmp_path / "8bit")
    adapter = save_trained(str(tmp_path / "8bit"), tmp_path / "adapter", 0.3)
    fused = fuse(str(tmp_path / "8bit"), adapter, tmp_path / "fused")
    assert fused.parity_kl < 1e-6 and not load(str(fused.path)).quantized


def save_whole(model: str, folder: Path, size: float) -> Path:
    """Write an adapter that replaces weights, as mlx-lm's full fine-tuning does."""
    loaded = load(model).model
    folder.mkdir()
    names = [n for n, v in tree_flatten(loaded.parameters()) if v.ndim == 2 or "norm" in n]
    weights = dict(tree_flatten(loaded.parameters()))
    for name in names:
        noise = mx.random.normal(weights[name].shape, key=mx.random.key(len(name)))
        weights[name] = weights[name] + size * noise * weights[name].std()
    mx.save_safetensors(str(folder / "adapters.safetensors"), {n: weights[n] for n in names})
    (folder / "adapter_config.json").write_text('{"fine_tune_type": "full", "num_layers": 3}')
    return folder


SPECS = {
    "lora": Adapter(rank=2, scale=2.0),
    "embedding": Adapter(rank=2, scale=2.0, keys=["model.embed_tokens"]),
    "dora": Adapter(type="dora", rank=2, scale=2.0),
}


@pytest.mark.parametrize("kind", ["lora", "embedding", "dora", "full"])
def test_what_quantizing_leaves_of_any_adapter_is_measured(
    kind: str, wide: Path, tmp_path: Path
) -> None:
    """Against the change of every weight, computed from the folders written."""
    if kind == "full":
        adapter = save_whole(str(wide), tmp_path / "adapter", 0.3)
    else:
        adapter = save_trained(str(wide), tmp_path / "adapter", 0.3, SPECS[kind])
    fused = fuse(str(wide), adapter, tmp_path / "fused", quantize=4)
    assert fused.parity_kl < 1e-6 < fused.adapter_kl and fused.quantized is not None
    base, merged, rounded = (load(str(f)).model for f in (wide, fused.path, fused.quantized.path))
    modules, quantized = dict(base.named_modules()), dict(rounded.named_modules())
    intended, applied = [], []
    for name, module in merged.named_modules():
        if "weight" in module and module.weight.ndim == 2:
            before, layer = modules[name].weight, quantized[name]
            intended.append((module.weight - before).reshape(-1))
            if "scales" in layer:
                settings = {"group_size": layer.group_size, "bits": layer.bits}
                before = mx.dequantize(*mx.quantize(before, **settings), **settings)
            applied.append((dense_weight(layer)[0] - before).reshape(-1))
    one, other = mx.concatenate(intended), mx.concatenate(applied)
    wanted = float((one * other).sum() / mx.sqrt((one * one).sum() * (other * other).sum()))
    assert 0.3 < wanted < 0.999
    assert fused.quantized.cosine == pytest.approx(wanted, abs=2e-3)


@pytest.mark.parametrize(
    ("cosine", "kl", "said"),
    [
        (0.5, 0.01, None),
        (0.1, MOST_NOISE * 0.2, None),
        (0.99, 0.1, "4 bits move the model by KL 1.0e-01 a token, 50% of what the adapter does"),
        (0.99, 0.2, "4 bits move the model by KL 2.0e-01 a token, 100% of what the adapter does"),
        (0.99, 0.3, "4 bits move the model by KL 3.0e-01 a token, more than the adapter does"),
        (None, 0.3, "4 bits move the model"),
        (None, 0.01, None),
    ],
)
def test_noise_in_the_predictions_is_warned_about_and_not_the_cosine(
    cosine: float | None, kl: float, said: str | None
) -> None:
    warnings = _quantized_warnings(Quantized(Path("x"), 4, cosine, kl), 0.2)
    assert len(warnings) == (said is not None)
    assert said is None or warnings[0].startswith(said)


def save_learned(model: str, folder: Path, size: float) -> Path:
    """Write an adapter one step of training away from the base: all its changes work together."""
    loaded = load(model).model
    attach_adapter(loaded, ADAPTER, seed=1)
    ids = mx.random.randint(0, 258, (1, 64), key=mx.random.key(3))

    def loss() -> mx.array:
        chosen: mx.array = nn.log_softmax(loaded(ids))[..., 70]
        return -chosen.mean()

    _, gradients = nn.value_and_grad(loaded, loss)()
    weights = adapter_weights(loaded)
    steps = [(n, weights[n] - size * g / mx.abs(g).max()) for n, g in tree_flatten(gradients)]
    loaded.load_weights([(n, value) for n, value in steps if n.endswith("lora_b")], strict=False)
    folder.mkdir()
    save_adapter(loaded, ADAPTER, folder)
    return folder


def test_eight_bits_keep_a_small_adapter_that_four_bits_drown(wide: Path, tmp_path: Path) -> None:
    """Although the cosine of the weights is low at eight bits, too."""
    adapter = save_learned(str(wide), tmp_path / "adapter", 0.012)
    eight, four = (
        fuse(str(wide), adapter, tmp_path / f"fused-{bits}", quantize=bits) for bits in (8, 4)
    )
    assert eight.quantized is not None and four.quantized is not None
    assert eight.quantized.cosine is not None and eight.quantized.cosine < 0.9
    assert eight.quantized.kl < eight.adapter_kl / 5 and not eight.warnings
    (warning,) = four.warnings
    assert re.match("4 bits move the model .* more than the adapter does", warning)
    assert "use 8 bits, or measure before you trust it" in warning


def log_probabilities(seed: int, lengths: tuple[int, ...] = (3, 7)) -> list[mx.array]:
    """Log-probabilities (1, T, 5) of texts of these lengths."""
    rng = np.random.default_rng(seed)
    rows = [np.log(rng.dirichlet(np.ones(5), (1, length))) for length in lengths]
    return [mx.array(row.astype(np.float32)) for row in rows]


def test_models_are_compared_by_kl_a_token_and_by_their_largest_difference() -> None:
    base, adapted, moved = (log_probabilities(seed) for seed in range(3))
    parity = _compare(base, adapted, moved)

    def kl(p: list[mx.array], q: list[mx.array]) -> float:
        pairs = zip(map(np.asarray, p), map(np.asarray, q), strict=True)
        return float(sum((np.exp(a) * (a - b)).sum() for a, b in pairs)) / 10

    assert parity.adapter_kl == pytest.approx(kl(adapted, base), rel=1e-5)
    assert parity.parity_kl == pytest.approx(kl(adapted, moved), rel=1e-5)
    differences = [
        np.abs(np.asarray(a) - np.asarray(b)) for a, b in zip(adapted, moved, strict=True)
    ]
    assert parity.max_logit_difference == pytest.approx(max(d.max() for d in differences))
    assert _compare(base, adapted, adapted)[1:] == (0.0, 0.0)


def test_log_probabilities_are_those_of_the_texts(base: Path) -> None:
    model, probes = load(str(base)).model, [mx.array([[5, 7, 200]]), mx.array([[31, 9]])]
    for ids, found in zip(probes, _log_probabilities(model, probes), strict=True):
        logits = np.asarray(model(ids), np.float64)
        wanted = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-5)


def test_a_fused_model_may_differ_by_rounding_which_is_less_in_32_bits() -> None:
    parity = _Parity(0.0, 1e-4, 0.0)
    _check_parity(Path("x"), parity, exact=False)
    with pytest.raises(ModelError, match=r"x: the fused model differs .* by KL 1\.00e-04 a token"):
        _check_parity(Path("x"), parity, exact=True)
    (warning,) = _warnings(_Parity(1e-3, 1e-4, 0.0), exact=False)
    assert warning.startswith("rounding to 16 bits moves the model by KL 1.0e-04 a token, and the ")
    assert warning.endswith("adapter by 1.0e-03: measure the fused model before you trust it")
    assert not _warnings(_Parity(1e-3, 1e-6, 0.0), exact=False)


@pytest.mark.parametrize(
    ("bits", "remedy"), [(4, "; use 8 bits, or measure before you trust it"), (8, "; measure it")]
)
def test_where_little_is_left_more_bits_are_advised_if_there_are_any(
    bits: int, remedy: str
) -> None:
    (warning,) = _quantized_warnings(Quantized(Path("x"), bits, 0.5, 0.3), 0.2)
    assert warning.endswith(remedy)


def test_an_adapter_of_norms_alone_has_no_cosine(wide: Path, tmp_path: Path) -> None:
    adapter = save_whole(str(wide), tmp_path / "adapter", 0.3)
    weights = load_arrays(adapter / "adapters.safetensors")
    norms = {name: value for name, value in weights.items() if "norm" in name}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), norms)
    line = f"fuse --model {wide} --adapter {adapter} --out {tmp_path / 'fused'} --quantize 4"
    done = CliRunner().invoke(main, line.split())
    assert done.exit_code == 0 and "survival  no weight is changed; KL" in done.output
    assert "cosine" not in done.output


def test_an_adapter_without_effect_is_warned_about(base: Path, tmp_path: Path) -> None:
    adapter = save_trained(str(base), tmp_path / "adapter", 0.0)
    first, second = fuse(str(base), adapter, tmp_path / "fused", quantize=4).warnings
    assert "changes next to nothing" in first
    assert "4 bits move the model" in second
    assert not _warnings(_Parity(NO_EFFECT, 0.0, 0.0), exact=True)
    (warning,) = _warnings(_Parity(0.0, 0.0, 0.0), exact=False)  # no rounding either
    assert "changes next to nothing" in warning


@pytest.mark.parametrize("trusted", [False, True])
def test_code_that_comes_with_a_model_runs_in_every_load_or_in_none(
    trusted: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def watched(*arguments: Any, trust_remote_code: bool, **options: Any) -> LoadedModel:
        seen.append(trust_remote_code)
        return load(*arguments, trust_remote_code=trust_remote_code, **options)

    monkeypatch.setattr(fusing, "load", watched)
    adapter = save_whole(str(base), tmp_path / "adapter", 0.3)
    fuse(str(base), adapter, tmp_path / "fused", quantize=4, trust_remote_code=trusted)
    assert seen == [trusted] * 3


def test_an_empty_folder_is_filled_and_a_file_is_not_replaced(base: Path, tmp_path: Path) -> None:
    adapter = save_trained(str(base), tmp_path / "adapter", 0.3)
    (tmp_path / "empty").mkdir()
    fuse(str(base), adapter, tmp_path / "empty")
    assert (tmp_path / "empty" / "fused.json").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="file: exists and is not a fused model"):
        fuse(str(base), adapter, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_owner_s_own_readme_stays_when_a_model_is_fused_anew(
    base: Path, tmp_path: Path
) -> None:
    adapter, out = save_trained(str(base), tmp_path / "adapter", 0.3), tmp_path / "fused"
    fuse(str(base), adapter, out)
    (out / "README.md").write_text("My own words.\n")
    fuse(str(base), adapter, out)
    assert (out / "README.md").read_text() == "My own words.\n"


@pytest.mark.parametrize("name", ["fused", "fused-4bit"])
def test_a_folder_that_fusing_did_not_write_is_never_replaced(
    name: str, base: Path, tmp_path: Path
) -> None:
    adapter = save_trained(str(base), tmp_path / "adapter", 0.3)
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(ModelError, match=f"{name}: exists and is not a fused model"):
        fuse(str(base), adapter, tmp_path / "fused", quantize=4)
    assert [path.name for path in tmp_path.glob("fused*/*")] == ["mine.txt"]


@pytest.mark.parametrize(
    "quantized",
    [None, Quantized(Path("out-4bit"), 4, 0.5, 0.25), Quantized(Path("out-4bit"), 4, None, 0.25)],
)
def test_a_record_survives_json(quantized: Quantized | None) -> None:
    fused = Fused(Path("out"), 0.5, 1e-9, 1e-4, quantized, ("careful",))
    record = fused.to_json()
    assert [*record] == [
        "path",
        "adapter_kl",
        "parity_kl",
        "max_logit_difference",
        "quantised",
        "warnings",
    ]
    assert Fused.from_json(json.loads(json.dumps(record))) == fused


def test_a_fused_weight_is_the_base_plus_scale_times_the_product(
    base: Path, tmp_path: Path
) -> None:
    """To the last bit: the factors are whole quarters, so that their product has no rounding."""
    spec = Adapter(rank=2, scale=0.5, layers=1, keys=["self_attn.q_proj"])
    adapted = load(str(base)).model
    attach_adapter(adapted, spec, seed=1)
    layer = adapted.layers[-1].self_attn.q_proj
    layer.lora_a = mx.random.randint(-3, 4, layer.lora_a.shape, key=mx.random.key(1)) / 4
    layer.lora_b = mx.random.randint(-3, 4, layer.lora_b.shape, key=mx.random.key(2)) / 4
    (tmp_path / "adapter").mkdir()
    save_adapter(adapted, spec, tmp_path / "adapter")
    fuse(str(base), tmp_path / "adapter", tmp_path / "fused")
    before, after = (
        dict(tree_flatten(load(str(path)).model.parameters()))
        for path in (base, tmp_path / "fused")
    )
    changed = "model.layers.2.self_attn.q_proj.weight"
    assert before.keys() == after.keys()
    for name, weight in before.items():
        update = 0.5 * np.asarray(layer.lora_a @ layer.lora_b).T if name == changed else 0
        np.testing.assert_array_equal(np.asarray(after[name]), np.asarray(weight) + update)
