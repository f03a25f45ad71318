"""`forty2 export peft` and `export mlx`: PEFT's own form, no number changed, and back byte for byte."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from support.models import save_tiny
from support.peft_folders import factors, save_peft
from support.tiny_families import save_family
from support.training import sft

from forty2.cli import main
from forty2.errors import ModelError, RunError
from forty2.export.peft import _config, _targets, exact_alpha, export_mlx, export_peft
from forty2.model.adapter import adapter_weights, attach_adapter, load_arrays, save_adapter
from forty2.model.base_model import find_base_model, find_model_and_adapter
from forty2.model.chat_template import TemplateSettings
from forty2.model.initial_adapter import attach_initial_adapter
from forty2.model.loading import load, model_sha256, save_model
from forty2.model.peft_tensors import PeftLayer
from forty2.model.quantization import quantize
from forty2.model.source_layers import SourceLayers
from forty2.recipe.peft_adapter import is_target, read_peft
from forty2.recipe.saved_adapter import read_adapter_file
from forty2.recipe.schema import Adapter, PhaseAttention, Recipe
from forty2.recipe.tags import TagSettings

IDS = mx.array([[5, 6, 7, 258, 9]])
LORA = Adapter(rank=4, scale=2.0, layers=2)
TAGS = TagSettings(starts={"<note>": "a note", "</note>": "an end"}, pad_to=300)
"""Tags in rows that the tiny model's table has to spare: 258 tokens of 300 rows."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("peft") / "base", tie_word_embeddings=False)


def train(
    base: Path, folder: Path, adapter: Adapter = LORA, tags: TagSettings | None = None
) -> Path:
    """Write an adapter of ours whose every number is off by some."""
    loaded = load(str(base), tags=tags)
    attach_adapter(loaded.model, adapter, seed=1, tags=loaded.tags)
    mx.random.seed(2)
    found = adapter_weights(loaded.model)
    moved = [(name, v + 0.1 * mx.random.normal(v.shape)) for name, v in found.items()]
    loaded.model.load_weights(moved, strict=False)
    folder.mkdir()
    save_adapter(loaded.model, adapter, folder, stop_token_ids=[1, 9])
    return folder


def goes_on_from(adapter: Path, spec: Adapter) -> Recipe:
    phases: Any = {"sft": sft()}
    return Recipe(
        version=1, name="x", model="x", phases=phases, init_from=str(adapter), adapter=spec
    )


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
    return found


def logits(base: Path, adapter: Path) -> Any:
    return np.asarray(load(str(base), adapter).model(IDS))


def forty2(*command: object, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(part) for part in command], input=text)


# --- the folder ---


ADAPTERS = {
    "lora": LORA,
    "all blocks": Adapter(rank=3, scale=0.1),
    "dora": Adapter(type="dora", rank=4, scale=20.0, keys=["mlp.up_proj", "lm_head"]),
    "a table": Adapter(rank=4, scale=2.0, keys=["self_attn.q_proj", "model.embed_tokens"]),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_folder_computes_the_same_and_comes_back_byte_for_byte(
    kind: str, base: Path, tmp_path: Path
) -> None:
    ours, peft, back = (
        train(base, tmp_path / "ours", ADAPTERS[kind]),
        tmp_path / "p",
        tmp_path / "b",
    )
    made = export_peft(ours, peft, model=str(base))
    assert made.base == str(base)
    assert np.array_equal(logits(base, peft), logits(base, ours))
    started, found = load(str(base)).model, read_adapter_file(str(peft))
    start = replace(ADAPTERS[kind], layers=found.layers, keys=list(found.keys))
    attach_initial_adapter(started, goes_on_from(peft, start), seed=5)
    assert np.allclose(started(IDS), logits(base, ours), atol=1e-5)
    assert load(str(base), peft).stop_token_ids == load(str(base), ours).stop_token_ids == [1, 9]
    export_mlx(peft, back)
    for name in ("adapters.safetensors", "adapter_config.json"):
        assert (back / name).read_bytes() == (ours / name).read_bytes(), name
    export_peft(back, tmp_path / "again", model=str(base))
    for name in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        again = (tmp_path / "again" / name).read_bytes().replace(b"# again", b"# p")
        assert again == (peft / name).read_bytes(), name


def test_an_edited_folder_comes_back_as_it_is_now(base: Path, tmp_path: Path) -> None:
    peft = tmp_path / "peft"
    export_peft(train(base, tmp_path / "ours"), peft, model=str(base))
    edited = config_of(peft) | {"lora_alpha": 2}
    (peft / "adapter_config.json").write_text(json.dumps(edited))
    export_mlx(peft, tmp_path / "back")
    back = config_of(tmp_path / "back")
    assert (back["lora_parameters"]["scale"], back["stop_token_ids"]) == (0.5, [1, 9])
    assert np.array_equal(logits(base, tmp_path / "back"), logits(base, peft))


def test_names_shapes_and_numbers_are_those_of_peft(base: Path, tmp_path: Path) -> None:
    keys = ["self_attn.q_proj", "model.embed_tokens"]
    ours = train(base, tmp_path / "ours", replace(LORA, keys=keys))
    export_peft(ours, tmp_path / "peft", model=str(base))
    theirs = load_arrays(tmp_path / "peft" / "adapter_model.safetensors")
    mine = load_arrays(ours / "adapters.safetensors")
    table, layer = (
        "base_model.model.model.embed_tokens",
        "base_model.model.model.layers.1.self_attn",
    )
    assert len(theirs) == 2 * 3
    for name, own in (
        (f"{table}.lora_embedding_A", "model.embed_tokens.lora_a"),
        (f"{table}.lora_embedding_B", "model.embed_tokens.lora_b"),
        (f"{layer}.q_proj.lora_A.weight", "model.layers.1.self_attn.q_proj.lora_a"),
        (f"{layer}.q_proj.lora_B.weight", "model.layers.1.self_attn.q_proj.lora_b"),
    ):
        assert np.array_equal(theirs[name], mine[own].T)
    config = config_of(tmp_path / "peft")
    assert config["target_modules"] == [
        "model.embed_tokens",
        "model.layers.1.self_attn.q_proj",
        "model.layers.2.self_attn.q_proj",
    ]
    assert (config["r"], config["lora_alpha"], type(config["lora_alpha"])) == (4, 8, int)


def test_the_card_and_the_record_say_what_it_is(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "ours")
    (ours / "phase.json").write_text(json.dumps({"system": "Be | brief.\n"}))
    settings = TemplateSettings(source="{{ messages[0]['content'] }}")
    (ours / "template.json").write_text(json.dumps(settings.to_json()))
    export_peft(ours, tmp_path / "a|b", model=str(base))
    card = (tmp_path / "a|b" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")  # a folder of this machine is no hub's name
    assert "rank 4, alpha 8, on 14 layers" in card and model_sha256(base) in card
    assert "| a reply ends at | `</s>`," in card
    record = json.loads((tmp_path / "a|b" / "forty2.json").read_bytes())
    assert record["base_sha256"] == model_sha256(base) and record["stop_token_ids"] == [1, 9]
    assert "most of its training rows | `Be \\| brief.` |" in card
    tokenizer = load(str(base), tmp_path / "a|b").tokenizer
    assert tokenizer.chat_template == settings.source
    assert str(settings.source) in (tmp_path / "a|b" / "chat_template.jinja").read_text()


def test_a_tied_table_is_written_for_both_of_its_uses(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "tied")
    spec = Adapter(rank=4, scale=2.0, keys=["model.embed_tokens"])
    ours = train(base, tmp_path / "ours", spec)
    made = export_peft(ours, tmp_path / "peft", model=str(base))
    assert "PEFT adapts both and cannot merge" in made.notes[1]
    theirs = load_arrays(tmp_path / "peft" / "adapter_model.safetensors")
    a, b = (
        load_arrays(ours / "adapters.safetensors")[f"model.embed_tokens.lora_{n}"] for n in "ab"
    )
    assert np.array_equal(theirs["base_model.model.lm_head.lora_A.weight"], b)
    assert np.array_equal(theirs["base_model.model.lm_head.lora_B.weight"], a)
    assert np.array_equal(logits(base, tmp_path / "peft"), logits(base, ours))


# --- tags ---


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_tags_go_along_and_are_trained_on(tied: bool, tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", tie_word_embeddings=tied)
    ours, peft = train(base, tmp_path / "ours", tags=TAGS), tmp_path / "peft"
    export_peft(ours, peft, model=str(base))
    tables = ["model.embed_tokens", *["lm_head"] * (not tied)]
    indices = config_of(peft)["trainable_token_indices"]
    assert indices == {table: [258, 259] for table in tables}
    loaded = load(str(base), peft)
    assert loaded.tokenizer.encode("<note>", add_special_tokens=False) == [258]
    assert np.array_equal(logits(base, peft), logits(base, ours))
    saved = (peft / "tokenizer.json").read_text()
    assert "<note>" in saved and "`</note>`" in (peft / "README.md").read_text()
    export_mlx(peft, tmp_path / "back")
    for name in ("adapters.safetensors", "tags.safetensors", "adapter_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (ours / name).read_bytes(), name
    trained = load(str(base), tags=TAGS)
    found = read_adapter_file(str(peft))
    assert found.tags == trained.tags
    recipe = goes_on_from(peft, replace(LORA, keys=list(found.keys)))
    attach_initial_adapter(trained.model, recipe, seed=5, tags=trained.tags)
    assert np.allclose(trained.model(IDS), logits(base, ours), atol=1e-5)
    others = config_of(peft) | {"trainable_token_indices": {table: [258, 7] for table in tables}}
    (peft / "adapter_config.json").write_text(json.dumps(others))
    with pytest.raises(ModelError, match="which is no factor of a layer and cannot be trained on"):
        read_adapter_file(str(peft))


def test_tags_beyond_the_table_of_the_base_are_refused(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "ours", tags=replace(TAGS, pad_to=64))
    with pytest.raises(ModelError, match="its tags need 320 rows, and the base's tables have 300"):
        export_peft(ours, tmp_path / "peft", model=str(base))
    assert not (tmp_path / "peft").exists()


# --- the scale ---


@given(scale=st.floats(1e-3, 1e3), rank=st.integers(1, 512))
def test_alpha_gives_the_scale_that_both_sides_compute_with(scale: float, rank: int) -> None:
    alpha = exact_alpha(scale, rank)
    assert np.float32(alpha / rank) == np.float32(scale)


@given(alpha=st.integers(1, 4096), rank=st.integers(1, 512))
def test_a_whole_alpha_comes_back_whole(alpha: int, rank: int) -> None:
    found = exact_alpha(alpha / rank, rank)
    assert found == alpha and type(found) is int


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf])
def test_a_scale_of_no_alpha_is_refused(scale: float) -> None:
    with pytest.raises(ModelError, match="PEFT's alpha / rank is a number above 0"):
        exact_alpha(scale, 3)


@given(
    blocks=st.sets(st.integers(0, 4), min_size=1),
    keys=st.sets(st.sampled_from(["attn.q", "attn.k", "mlp.up"]), min_size=1),
    more=st.sets(st.sampled_from(["head", "table", "model.layers.2.mlp.q"])),
)
def test_targets_name_the_adapted_layers_and_no_others(
    blocks: set[int], keys: set[str], more: set[str]
) -> None:
    known = {f"model.layers.{n}.{k}" for n in range(5) for k in ("attn.q", "attn.k", "mlp.up")}
    known |= {"head", "table", "model.layers.2.mlp.q"}
    wanted = {f"model.layers.{n}.{key}" for n in blocks for key in keys} | more
    targets, numbers = _targets(wanted, known)
    config = {"target_modules": targets, "layers_to_transform": numbers}
    assert {layer for layer in known if is_target(config, layer)} == wanted


def test_ranks_that_differ_are_patterns(tmp_path: Path) -> None:
    """As where one of our layers is several of PEFT's, or the other way round."""
    shapes = {"model.layers.0.qkv": 12, "model.layers.0.o": 4, "model.layers.10.qkv": 12}
    layers = {
        name: PeftLayer(mx.zeros((rank, 8)), mx.zeros((8, rank)), None, 1.5)
        for name, rank in shapes.items()
    }
    loaded: Any = SimpleNamespace(tags=None)
    before = {"lora_parameters": {"dropout": 0.0}}
    config = _config("base", layers, {}, loaded, SourceLayers({}, frozenset()), before)
    arrays = {
        name.removeprefix("base_model.model."): np.array(value)
        for layer, one in layers.items()
        for name, value in one.tensors(layer).items()
    }
    found = read_peft(save_peft(tmp_path / "peft", arrays, **config))
    assert {name: one.rank for name, one in found.layers.items()} == shapes
    assert {one.scale for one in found.layers.values()} == {1.5}


# --- a PEFT folder wherever an adapter is ---


def test_a_peft_folder_names_its_base(base: Path, tmp_path: Path) -> None:
    ours = train(base, tmp_path / "ours")
    export_peft(ours, tmp_path / "peft", model=str(base))
    assert find_base_model(tmp_path / "peft") == str(base)
    assert find_model_and_adapter(tmp_path / "peft") == (str(base), str(tmp_path / "peft"))
    hub = save_peft(tmp_path / "hub", factors({"model.layers.0.self_attn.q_proj": (32, 32)}))
    assert find_base_model(hub) == "maker/base"
    gone = tmp_path / "gone"
    moved = config_of(hub) | {"base_model_name_or_path": str(gone)}
    (hub / "adapter_config.json").write_text(json.dumps(moved))
    with pytest.raises(ModelError, match=r"was trained on .*gone, which is not here"):
        find_base_model(hub)


def test_other_weights_of_the_same_shape_are_warned_of(base: Path, tmp_path: Path) -> None:
    export_peft(train(base, tmp_path / "ours"), tmp_path / "peft", model=str(base))
    other = save_tiny(tmp_path / "other", seed=5, tie_word_embeddings=False)
    with pytest.warns(UserWarning, match="was trained on .* holds other weights"):
        load(str(other), tmp_path / "peft")


def test_commands_take_a_peft_folder_as_an_adapter(tmp_path: Path) -> None:
    base, peft, fused = (
        save_family(tmp_path / "base", "llama"),
        tmp_path / "peft",
        tmp_path / "fused",
    )
    ours = train(base, tmp_path / "ours", replace(LORA, layers=1))
    export_peft(ours, peft, model=str(base))
    said = []
    for adapter, out in ((peft, fused), (ours, tmp_path / "other")):
        for command in (
            ["generate", "-m", base, "-a", adapter, "-p", "hi", "--max-tokens", "4"],
            ["fuse", "-m", base, "-a", adapter, "--out", out],
        ):
            done = forty2(*command)
            assert done.exit_code == 0, done.output
            said.append(done.output.replace(str(out), "OUT"))
    assert said[:2] == said[2:]
    mine, theirs = ((out / "model.safetensors").read_bytes() for out in (fused, tmp_path / "other"))
    assert mine == theirs
    done = forty2("export", "gguf", peft, "-o", fused / "y.gguf", "--type", "f32")
    assert done.exit_code == 0 and "the adapter was merged into its base" in done.output
    done = forty2("chat", peft, "--max-tokens", "4", text="Hello.\n")
    assert done.exit_code == 0, done.output


# --- the commands ---


def test_the_commands_say_what_they_wrote(base: Path, tmp_path: Path) -> None:
    ours, peft = train(base, tmp_path / "ours"), tmp_path / "peft"
    done = forty2("export", "peft", ours, "-m", base, "-o", peft)
    assert done.exit_code == 0, done.output
    assert f"peft      {peft} (14 layers, rank 4, alpha 8)\nbase      {base}\n" in done.output
    assert "name the hub's model with --model before you share" in done.output
    done = forty2("export", "mlx", peft, "-o", tmp_path / "back")
    assert (done.exit_code, done.output) == (
        0,
        f"mlx       {tmp_path / 'back'} (14 layers, rank 4, scale 2)\n",
    )


def test_what_peft_has_no_form_for_is_one_line(base: Path, tmp_path: Path) -> None:
    ours, out = train(base, tmp_path / "ours"), tmp_path / "out"

    def refused(*command: object) -> str:
        done = forty2("export", *command)
        assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
        assert not out.exists() and not list(tmp_path.glob(".*"))
        return done.output

    assert "does not record which model it is for" in refused("peft", ours, "-o", out)
    assert "this is a whole model" in refused("peft", base, "-o", out)
    small = save_tiny(tmp_path / "small", num_hidden_layers=1)
    assert "does not fit this model" in refused("peft", ours, "-m", small, "-o", out)
    wide = load(str(save_tiny(tmp_path / "wide", hidden_size=64)))
    model, config = quantize(wide.model, wide.config, 4)
    (tmp_path / "4bit").mkdir()
    save_model(replace(wide, model=model, config=config), tmp_path / "4bit")
    on_4bit = train(tmp_path / "4bit", tmp_path / "on4bit")
    message = refused("peft", on_4bit, "-m", tmp_path / "4bit", "-o", out)
    assert "is quantized by mlx, which transformers cannot load" in message
    full = config_of(ours) | {"fine_tune_type": "full"}
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "adapter_config.json").write_text(json.dumps(full))
    (tmp_path / "full" / "adapters.safetensors").write_bytes(
        (ours / "adapters.safetensors").read_bytes()
    )
    assert "trains whole weights" in refused("peft", tmp_path / "full", "-m", base, "-o", out)
    phases = PhaseAttention(block=0, oscillators=4, steps=2)
    coupled = train(base, tmp_path / "coupled", replace(LORA, phase_attention=phases))
    assert "has phase attention" in refused("peft", coupled, "-m", base, "-o", out)
    assert "has mlx-lm's form already" in refused("mlx", ours, "-m", base, "-o", out)
    layer = {"model.layers.0.self_attn.q_proj": (32, 32)}
    first = save_peft(tmp_path / "first", factors(layer), target_modules=[*layer])
    assert "is an adapter of PEFT already" in refused("peft", first, "-m", base, "-o", out)
    message = refused("mlx", first, "-m", base, "-o", out)
    assert "can only name the same layers in each of the last blocks" in message
    unknown = save_peft(tmp_path / "ia3", factors(layer), peft_type="IA3")
    assert "peft_type is IA3" in refused("mlx", unknown, "-m", base, "-o", out)


def test_a_folder_is_replaced_only_where_it_is_asked_for(base: Path, tmp_path: Path) -> None:
    ours, out = train(base, tmp_path / "ours"), tmp_path / "out"
    export_peft(ours, out, model=str(base))
    done = forty2("export", "peft", ours, "-m", base, "-o", out)
    assert done.exit_code == 2 and "exists already" in done.output and "--replace" in done.output
    assert forty2("export", "peft", ours, "-m", base, "-o", out, "--replace").exit_code == 0
    for other in (ours, base):  # its own source, and what is no adapter
        before = sorted(other.iterdir())
        done = forty2("export", "peft", ours, "-m", base, "-o", other, "--replace")
        assert done.exit_code == 2 and "holds something else" in done.output
        assert sorted(other.iterdir()) == before
    phase = train(base, tmp_path / "phase")
    (phase / "SHA256SUMS").write_text("")
    with pytest.raises(ModelError, match="holds something else"):
        export_peft(ours, phase, model=str(base), replace=True)


def test_on_a_full_disk_nothing_is_half_written(
    base: Path, tmp_path: Path, small_disk: Path
) -> None:
    ours = train(base, tmp_path / "ours", Adapter(rank=4, scale=2.0))
    (small_disk / "filler").write_bytes(b"0" * 220_000)
    with pytest.raises(RunError, match=r"disk is full|make room"):
        export_peft(ours, small_disk / "out", model=str(base))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
