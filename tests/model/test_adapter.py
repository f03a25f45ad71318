"""Adapters are found, name the model they were trained on, and merge into what they compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.tuner.utils import load_adapters
from support.models import save_tiny, tiny_model

from forty2.errors import ModelError
from forty2.model.adapter import (
    TrainedOn,
    adapter_dir,
    adapter_weights,
    attach_adapter,
    has_adapter,
    load_adapter,
    recorded_template,
    restore_adapter,
    save_adapter,
    trained_on,
    trained_system,
    wasted_rank,
    without_adapter,
)
from forty2.model.adapter_files import recorded_stop_tokens
from forty2.model.chat_template import TemplateSettings
from forty2.model.loading import load
from forty2.recipe.schema import Adapter

ADAPTER = Adapter(rank=2, scale=3.0, layers=2)
IDS = mx.array([[5, 7, 200, 31, 9]])
OLD_RUN = Path(__file__).parents[1] / "old_runs" / "sealed"


def save_trained(
    folder: Path, adapter: Adapter = ADAPTER, dtype: mx.Dtype = mx.float32
) -> mx.array:
    """Write an adapter of the tiny model that changes something; return the logits with it."""
    model = tiny_model()
    model.set_dtype(dtype)
    attach_adapter(model, adapter, seed=1)
    for name, value in adapter_weights(model).items():
        if not name.endswith("lora_a"):
            value += 0.3 * mx.random.normal(value.shape, key=mx.random.key(len(name)))
            model.load_weights([(name, value)], strict=False)
    folder.mkdir(parents=True)
    save_adapter(model, adapter, folder)
    logits: mx.array = model(IDS)
    return logits


KINDS = [
    Adapter(rank=2, scale=3.0, layers=2),
    Adapter(rank=2, scale=3.0, keys=["self_attn.q_proj", "model.embed_tokens"]),
    Adapter(type="dora", rank=2, scale=3.0, layers=2),
    Adapter(type="dora", rank=2, scale=3.0, keys=["self_attn.q_proj", "model.embed_tokens"]),
]


@pytest.mark.parametrize("adapter", KINDS)
def test_without_its_adapter_a_model_is_the_base(adapter: Adapter, tmp_path: Path) -> None:
    wanted = save_trained(tmp_path / "adapter", adapter)
    model = tiny_model()
    base = model(IDS)
    assert not has_adapter(model)
    load_adapter(model, tmp_path / "adapter")
    with without_adapter(model):
        assert mx.array_equal(model(IDS), base) and not has_adapter(model)
    assert mx.array_equal(model(IDS), wanted) and has_adapter(model)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("adapter", KINDS)
def test_a_saved_adapter_computes_the_same_when_loaded(
    adapter: Adapter, dtype: mx.Dtype, tmp_path: Path
) -> None:
    wanted = save_trained(tmp_path / "adapter", adapter, dtype)
    model, stock = tiny_model(), tiny_model()
    for one in (model, stock):
        one.set_dtype(dtype)
    assert not mx.allclose(model(IDS), wanted, atol=1e-2)
    load_adapter(model, tmp_path / "adapter")
    assert mx.array_equal(model(IDS), wanted)
    load_adapters(stock, str(tmp_path / "adapter"))  # as mlx-lm's own tools do
    tolerance = 1e-6 if dtype == mx.float32 else 0.1
    assert mx.allclose(stock(IDS).astype(mx.float32), wanted.astype(mx.float32), atol=tolerance)


def test_an_adapter_whose_configuration_names_no_type_is_lora(tmp_path: Path) -> None:
    wanted = save_trained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text("utf-8"))
    assert config.pop("fine_tune_type") == "lora"
    file.write_text(json.dumps(config))
    model = tiny_model()
    load_adapter(model, tmp_path / "adapter")
    assert mx.array_equal(model(IDS), wanted)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("adapter", KINDS)
def test_a_new_adapter_changes_neither_the_output_nor_its_dtype(
    adapter: Adapter, dtype: mx.Dtype
) -> None:
    model = tiny_model()
    model.set_dtype(dtype)
    before = model(IDS)
    attach_adapter(model, adapter, seed=1)
    after = model(IDS)
    assert after.dtype == before.dtype
    assert mx.allclose(after, before, atol=1e-5 if dtype == mx.float32 else 0.02)
    assert all(value.dtype == mx.float32 for value in adapter_weights(model).values())


def test_saved_weights_are_put_back_into_attached_layers(tmp_path: Path) -> None:
    wanted = save_trained(tmp_path / "adapter")
    model = tiny_model()
    attach_adapter(model, ADAPTER, seed=2)
    restore_adapter(model, tmp_path / "adapter")
    assert mx.array_equal(model(IDS), wanted)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        (["self_attn.q_proj"], "model.layers.1.self_attn.q_proj and 1 more"),
        (["lm_head"], "lm_head"),
    ],
)
def test_a_model_that_does_not_run_with_an_adapter_is_refused_by_layer(
    keys: list[str], named: str
) -> None:
    model = tiny_model(tie_word_embeddings=False)

    class Unfit(type(model)):  # type: ignore[misc]
        def __call__(self, *_: object) -> mx.array:
            raise ValueError("shapes do not fit")

    model.__class__ = Unfit
    refusal = rf"^adapter\.keys: with an adapter on {named} the model does not run \(.*fit\); name"
    with pytest.raises(ModelError, match=refusal):
        attach_adapter(model, Adapter(rank=2, scale=3.0, layers=2, keys=keys), seed=1)


def test_a_runs_adapter_is_that_of_its_last_phase(tmp_path: Path) -> None:
    for name in ("phase1_sft", "phase2_dpo", "phase10_boost"):
        save_trained(tmp_path / name)
    assert adapter_dir(tmp_path) == tmp_path / "phase10_boost"
    assert adapter_dir(tmp_path / "phase2_dpo") == tmp_path / "phase2_dpo"


def test_a_phase_of_a_run_is_found_by_its_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(ModelError, match=r"run/sft: no finished phase of this name; .* has none$"):
        adapter_dir(run / "sft")
    for name in ("phase1_sft", "phase2_dpo_long"):
        save_trained(run / name)
    (run / "phase3_boost").mkdir()  # not finished
    assert adapter_dir(run / "sft") == run / "phase1_sft"
    assert adapter_dir(run / "dpo_long") == run / "phase2_dpo_long"
    with pytest.raises(ModelError, match=r"this name; the run has sft, dpo_long$"):
        adapter_dir(run / "boost")
    with pytest.raises(ModelError, match="no adapter here"):
        adapter_dir(run / "phase3_boost")
    (run / "run.json").unlink()
    with pytest.raises(ModelError, match="no adapter here"):  # no run, so no phases
        adapter_dir(run / "sft")


def test_the_ids_that_ended_turns_are_saved_once_each_in_order(tmp_path: Path) -> None:
    model = tiny_model()
    attach_adapter(model, ADAPTER, seed=1)
    for ids, wanted in (((), None), ((7, 3, 7), [3, 7])):
        save_adapter(model, ADAPTER, tmp_path, stop_token_ids=ids)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config.get("stop_token_ids") == wanted and recorded_stop_tokens(tmp_path) == (
            wanted or []
        )


def test_blocks_that_were_trained_whole_are_put_back(tmp_path: Path) -> None:
    model, trained = tiny_model(), tiny_model()
    layer = trained.model.layers[2].mlp.up_proj
    layer.weight *= 2
    mx.save_safetensors(
        str(tmp_path / "adapters.safetensors"), {"model.layers.2.mlp.up_proj.weight": layer.weight}
    )
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "full"}')
    load_adapter(model, tmp_path)
    assert mx.array_equal(model(IDS), trained(IDS))


def test_a_folder_without_an_adapter_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no adapter here"):
        adapter_dir(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"adapters\.safetensors is missing$"):
        adapter_dir(tmp_path)
    (tmp_path / "adapters.npz").touch()
    with pytest.raises(ModelError, match=r"missing; adapters\.npz is of an early mlx-lm$"):
        adapter_dir(tmp_path)


def test_a_folder_with_files_of_steps_alone_names_the_last(tmp_path: Path) -> None:
    save_trained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapters.safetensors"
    for step in (100, 200):
        shutil.copy(weights, weights.with_name(f"{step:07d}_adapters.safetensors"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"is missing; 0000200_adapters\.safetensors is of a step"):
        adapter_dir(tmp_path / "adapter")


def test_a_whole_model_given_as_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "fused")
    with pytest.raises(ModelError, match="fused: this is a whole model: give it as `model`"):
        load(str(folder), folder)
    for needed in ("config.json", "model.safetensors"):  # neither alone makes a model
        (folder / needed).rename(tmp_path / needed)
        with pytest.raises(ModelError, match="fused: no adapter here"):
            adapter_dir(folder)
        (tmp_path / needed).rename(folder / needed)


@pytest.mark.parametrize(
    ("record", "system"),
    [
        ('{"system": "Be brief."}', "Be brief."),
        ('{"system": ""}', None),
        ('{"system": null}', None),
        ('{"system": 3}', None),
        ("{}", None),
        ("[]", None),
        ("{", None),
        (None, None),
    ],
)
def test_the_system_prompt_of_most_rows_is_read_from_the_phase_s_record(
    record: str | None, system: str | None, tmp_path: Path
) -> None:
    save_trained(tmp_path / "phase1_sft")
    if record is not None:
        (tmp_path / "phase1_sft" / "phase.json").write_text(record)
    assert trained_system(tmp_path) == trained_system(tmp_path / "phase1_sft") == system


@pytest.mark.parametrize("place", [".", "phase1_sft", "phase1_sft/step20"])
def test_the_model_of_a_run_is_found_from_its_folders(tmp_path: Path, place: str) -> None:
    record = {
        "model": "owner/name",
        "model_path": "/m",
        "model_sha256": "0",
        "model_from_run": "..",
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    wanted = TrainedOn("owner/name", "/m", "0", "..", tmp_path)
    assert trained_on(tmp_path / place) == trained_on(str(tmp_path / place)) == wanted
    assert recorded_template(tmp_path / place) is None
    settings = TemplateSettings(source="{{ messages }}", date="2026-01-02")
    (tmp_path / "template.json").write_text(json.dumps(settings.to_json()))
    assert recorded_template(tmp_path / place) == settings


def test_a_record_above_the_run_folder_is_of_another_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"model": "owner/name"}')
    (tmp_path / "template.json").write_text(json.dumps(TemplateSettings().to_json()))
    (tmp_path / "runs" / "run" / "phase1_sft").mkdir(parents=True)
    adapter = tmp_path / "runs" / "run" / "phase1_sft"
    assert trained_on(adapter).name is None and recorded_template(adapter) is None


def test_runs_of_earlier_releases_name_their_model() -> None:
    assert trained_on(OLD_RUN).name == trained_on(OLD_RUN / "phase1_sft").name == "model"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model": 3}'])
def test_without_a_readable_record_there_is_no_model(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert trained_on(tmp_path / "a" / "b" / "c").name is None
    assert trained_on(tmp_path).name is None


def test_an_adapter_on_other_weights_is_warned_about(tmp_path: Path) -> None:
    save_trained(tmp_path / "run" / "phase1_sft")
    folder, other = save_tiny(tmp_path / "base"), save_tiny(tmp_path / "other", seed=2)
    record = {"model": "base", "model_path": str(folder), "model_sha256": "0" * 64}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    load(str(folder), tmp_path / "run")
    for recorded in (str(folder), "base"):
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "model_path": recorded}))
        with pytest.warns(UserWarning, match="was trained on base, and .* holds other weights"):
            load(str(other), tmp_path / "run")


def test_a_folder_of_the_same_name_with_other_weights_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier releases recorded a relative path as it was: it may be another folder here."""
    save_trained(tmp_path / "run" / "phase1_sft")
    save_tiny(tmp_path / "base")
    record = {"model": "base", "model_path": "base", "model_sha256": "0" * 64}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="holds other weights"):
        load("base", tmp_path / "run")


@pytest.mark.parametrize(
    ("architecture", "adapter", "says"),
    [
        ("llama", Adapter(rank=16), None),
        ("llama", Adapter(rank=32, keys=["mlp.up_proj"]), None),
        ("llama", Adapter(rank=16, type="dora", keys=["model.embed_tokens"]), None),
        ("mixtral", Adapter(rank=9), None),  # above the 8 that each router can use
        ("llama", Adapter(rank=33, keys=["mlp.up_proj"]), None),  # a thirty-third
        (
            "llama",
            Adapter(rank=24),
            "adapter.rank is 24, but model.layers.0.self_attn.k_proj can use no more than 16, 5 more "
            "layers no more than theirs: 6% of the adapter takes memory and adds nothing; set "
            "adapter.rank to 16 or less, or name larger layers in adapter.keys",
        ),
        (
            "llama",
            Adapter(rank=32, layers=1, keys=["self_attn.k_proj", "self_attn.v_proj"]),
            "adapter.rank is 32, but model.layers.2.self_attn.k_proj can use no more than 16, and one "
            "more layer no more than its own: 50% of the adapter takes memory and adds nothing; set "
            "adapter.rank to 16 or less",
        ),
        (
            "llama",
            Adapter(rank=64, layers=1, keys=["mlp.down_proj"]),
            "adapter.rank is 64, but model.layers.2.mlp.down_proj can use no more than 32: 50% of the "
            "adapter takes memory and adds nothing; set adapter.rank to 32 or less",
        ),
        (
            "llama",
            Adapter(rank=64, layers=1, keys=["mlp.down_proj", "self_attn.v_proj"]),
            "adapter.rank is 64, but model.layers.2.self_attn.v_proj can use no more than 16, and one "
            "more layer no more than its own: 58% of the adapter takes memory and adds nothing; set "
            "adapter.rank to 16 or less",
        ),
        (
            "mixtral",
            Adapter(rank=64),
            "adapter.rank is 64, but model.layers.0.block_sparse_moe.gate can use no more than 8, 23 "
            "more layers no more than theirs: 57% of the adapter takes memory and adds nothing; set "
            "adapter.rank to 8 or less",
        ),
    ],
)
def test_a_rank_above_what_layers_can_use_is_named_if_much_is_wasted(
    architecture: str, adapter: Adapter, says: str | None
) -> None:
    model = tiny_model(architecture)
    attach_adapter(model, adapter, seed=1)
    assert wasted_rank(model) == says
