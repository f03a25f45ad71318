"""An exported file is the same model: to llama.cpp, and to the importer bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forty2 as forty2_package  # isort: skip

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize
from numpy.typing import NDArray
from support.cli import forty2, refused
from support.llama_cpp import LlamaCpp
from support.runs import short_checks
from support.tiny_families import (
    CONFIGS,
    HIDDEN,
    byte_level,
    save_family,
    sentence_piece,
    with_tokens,
)
from tokenizers import Tokenizer

from forty2.cli import export as cli_export
from forty2.errors import ModelError, RunError
from forty2.export.gguf.exporting import TYPES, export_gguf
from forty2.model.adapter import adapter_weights, attach_adapter, save_adapter
from forty2.model.gguf.file import GgufFile
from forty2.model.gguf.importing import import_gguf
from forty2.model.loading import LoadedModel, load, save_model
from forty2.model.quantization import quantize
from forty2.progress import silent
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Adapter

IDS = np.random.default_rng(0).integers(0, 420, 40).tolist()
"""A prompt of more tokens than Gemma 3's window has here."""
CLOSE = 5e-3
"""Largest difference of a log-probability, in nats: llama.cpp looks GELU up in a table of 16 bits."""


def export(model: Path, out: Path, **options: Any) -> Path:
    return export_gguf(str(model), out, progress=silent, **options).path


def our_logprobs(loaded: LoadedModel, ids: list[int]) -> NDArray[Any]:
    """Log-probability of every token after some ids, (V,)."""
    logits = loaded.model(mx.array([ids]))[0, -1].astype(mx.float32)
    return np.array(logits - mx.logsumexp(logits))


def our_greedy(loaded: LoadedModel, ids: list[int], most: int) -> list[int]:
    found: list[int] = []
    while len(found) < most:
        token = int(np.argmax(our_logprobs(loaded, ids + found)))
        if token in loaded.stop_token_ids:
            break
        found.append(token)
    return found


def assert_alike(loaded: LoadedModel, gguf: Path, ids: list[int] = IDS) -> None:
    """Check that llama.cpp gives every next token the probability that we do."""
    ours = our_logprobs(loaded, ids)
    theirs = LlamaCpp(gguf).logprobs(ids, len(ours))
    assert np.abs(ours - theirs).max() < CLOSE
    assert ours.std() > 0.5  # or any two models would agree


def tensors(folder: Path) -> dict[str, mx.array]:
    found = mx.load(str(folder / "model.safetensors"))
    assert isinstance(found, dict)
    return found


def assert_same_tensors(one: Path, other: Path) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert mx.array_equal(value, second[name]), name


# --- architectures ---


@pytest.mark.parametrize("kind", CONFIGS)
def test_llama_cpp_computes_what_we_do_and_the_importer_gives_all_back(
    kind: str, tmp_path: Path
) -> None:
    folder = save_family(tmp_path / "model", kind)
    gguf = export(folder, tmp_path / "m.gguf", type="f32")
    loaded, llama = load(str(folder)), LlamaCpp(gguf)
    ours = our_logprobs(loaded, IDS)
    assert np.abs(ours - llama.logprobs(IDS, len(ours))).max() < CLOSE
    assert ours.std() > 0.5
    assert llama.greedy(IDS[:9], 12) == our_greedy(loaded, IDS[:9], 12)

    back = import_gguf(gguf, tmp_path / "back")
    assert_same_tensors(folder, back)
    again = load(str(back))
    assert np.array_equal(our_logprobs(again, IDS), ours)
    assert again.stop_token_ids == loaded.stop_token_ids
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template


def test_the_language_model_of_a_model_that_also_sees_is_exported(tmp_path: Path) -> None:
    plain = save_family(tmp_path / "plain", "gemma3_text")
    whole = shutil.copytree(plain, tmp_path / "whole")
    text = json.loads((plain / "config.json").read_text())
    config = {"model_type": "gemma3", "text_config": text, "vocab_size": text["vocab_size"]}
    (whole / "config.json").write_text(json.dumps(config | {"eos_token_id": text["eos_token_id"]}))
    inner = {f"language_model.{name}": value for name, value in tensors(plain).items()}
    mx.save_safetensors(str(whole / "model.safetensors"), inner, {"format": "mlx"})
    one, other = (export(f, tmp_path / f"{f.name}.gguf", type="f32") for f in (plain, whole))
    assert one.read_bytes().replace(b"plain", b"whole") == other.read_bytes()


@pytest.mark.parametrize(("type", "dtype"), [("f16", mx.float16), ("bf16", mx.bfloat16)])
def test_sixteen_bits_come_back_bit_for_bit(type: str, dtype: mx.Dtype, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", dtype=dtype)
    gguf = export(folder, tmp_path / "m.gguf", type=type)
    assert_same_tensors(folder, import_gguf(gguf, tmp_path / "back"))


def test_biases_go_along(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", attention_bias=True, mlp_bias=True)
    gguf = export(folder, tmp_path / "m.gguf", type="f32")
    assert_alike(load(str(folder)), gguf)
    assert_same_tensors(folder, import_gguf(gguf, tmp_path / "back"))


SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rotary_scaling_goes_along(scaling: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"rope_scaling": SCALINGS[scaling], "rope_theta": 500000.0}
    folder = save_family(tmp_path / "model", "llama", **changes)
    gguf = export(folder, tmp_path / "m.gguf", type="f32")
    loaded = load(str(folder))
    assert_alike(loaded, gguf)
    unscaled = load(str(save_family(tmp_path / "plain", "llama", rope_theta=500000.0)))
    assert np.abs(our_logprobs(unscaled, IDS) - our_logprobs(loaded, IDS)).max() > 10 * CLOSE
    again = load(str(import_gguf(gguf, tmp_path / "back")))
    assert np.abs(our_logprobs(again, IDS) - our_logprobs(loaded, IDS)).max() < 1e-4


def test_long_texts_use_the_long_factors_of_longrope(tmp_path: Path) -> None:
    scaling = {
        "type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5],
    }
    changes: dict[str, Any] = {"rope_scaling": scaling, "original_max_position_embeddings": 32}
    folder = save_family(tmp_path / "model", "phi3", **changes)
    with pytest.warns(UserWarning, match="uses long_factor for texts of every length"):
        gguf = export(folder, tmp_path / "m.gguf", type="f32")
        loaded = load(str(folder))
        again = load(str(import_gguf(gguf, tmp_path / "back")))
    assert_alike(loaded, gguf)
    assert np.abs(our_logprobs(again, IDS) - our_logprobs(loaded, IDS)).max() < 1e-4


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 100}, "query_pre_attn_scalar is 100"),
        ("gemma3_text", {"sliding_window_pattern": 3}, "sliding_window_pattern is 3"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1, 1]}, "no_rope_layers is"),
        ("qwen3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ("llama", {"rope_traditional": True}, "rope_traditional is True"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    kind: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = save_family(tmp_path / "model", kind, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        export(folder, tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.gguf"))


def test_an_unknown_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "xverse"}))
    message = refused("export", "gguf", folder, "--out", tmp_path / "m.gguf")
    assert "architecture 'xverse' cannot be exported, only llama, mistral, qwen2" in message


# --- types ---


LOST = {"q8_0": 0.01, "q5_1": 0.06, "q5_0": 0.07, "q4_1": 0.12, "q4_0": 0.14}
"""Largest part of a matrix that its quantization may lose."""


@pytest.mark.parametrize("type", LOST)
def test_matrices_are_quantized_and_the_vocabulary_no_further_than_8_bits(
    type: str, tmp_path: Path
) -> None:
    folder = save_family(tmp_path / "model", "llama")
    gguf = export(folder, tmp_path / "m.gguf", type=type)
    file, whole = GgufFile(gguf), GgufFile(export(folder, tmp_path / "f.gguf", type="f32"))
    for name, tensor in file.tensors.items():
        expected = Type[type.upper()] if len(tensor.shape) > 1 else Type.F32
        if name in ("token_embd.weight", "output.weight"):
            expected = Type.Q8_0
        assert tensor.kind == expected, name
        exact = dequantize(whole.tensors[name].data, Type.F32).ravel()
        lost = np.linalg.norm(dequantize(tensor.data, tensor.kind).ravel() - exact)
        assert lost <= LOST[type] * np.linalg.norm(exact), name
    assert file.get("general.file_type", int) == TYPES[type]
    ours = our_logprobs(load(str(import_gguf(gguf, tmp_path / "back"))), IDS)
    theirs = LlamaCpp(gguf).logprobs(IDS, len(ours))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99  # llama.cpp also rounds the states, to 8 bits


def test_the_command_offers_every_type() -> None:
    assert tuple(TYPES) == cli_export.TYPES


def test_rows_that_make_no_blocks_stay_f16_and_that_is_said(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama", intermediate_size=100)
    made = export_gguf(str(folder), tmp_path / "m.gguf", type="q8_0", progress=silent)
    assert any("4 tensors are F16" in note for note in made.notes)
    assert GgufFile(made.path).tensors["blk.0.ffn_down.weight"].kind == Type.F16
    assert LlamaCpp(made.path).greedy(IDS, 2)


def test_rows_are_converted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family(tmp_path / "model", "llama")
    whole = export(folder, tmp_path / "whole.gguf", type="q8_0")
    monkeypatch.setattr("forty2.export.gguf.exporting._CHUNK", 7 * HIDDEN)  # 7 divides no size
    parts = export(folder, tmp_path / "parts.gguf", type="q8_0")
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize(
    ("value", "type", "message"),
    [
        (np.nan, "f32", "is not finite"),
        (1e5, "f16", "too large for it.*take bf16 or f32"),
        (1e5, "f32", None),
    ],
)
def test_values_that_a_type_cannot_hold_are_refused(
    value: float, type: str, message: str | None, tmp_path: Path
) -> None:
    folder = save_family(tmp_path / "model", "llama")
    weights = tensors(folder)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name][3, 5] = value
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    if message is None:
        export(folder, tmp_path / "m.gguf", type=type)
        return
    with pytest.raises(ModelError, match=message) as caught:
        export(folder, tmp_path / "m.gguf", type=type)
    assert name in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # nothing is left half-written


# --- adapters and quantized bases ---


def save_trained(folder: Path, model: Path) -> Path:
    """Write a random adapter of a model."""
    spec = Adapter(rank=2, scale=4.0)
    loaded = load(str(model))
    attach_adapter(loaded.model, spec, seed=1)
    for n, (name, value) in enumerate(adapter_weights(loaded.model).items()):
        noise = 0.3 * mx.random.normal(value.shape, key=mx.random.key(n))
        loaded.model.load_weights([(name, value + noise)], strict=False)
    folder.mkdir()
    save_adapter(loaded.model, spec, folder)
    return folder


def test_an_adapter_is_merged_in_full_precision(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llama")
    adapter = save_trained(tmp_path / "adapter", model)
    made = export_gguf(
        str(model), tmp_path / "m.gguf", adapter=adapter, type="f32", progress=silent
    )
    assert "the adapter was merged into its base" in made.notes
    loaded = load(str(model), adapter)
    assert_alike(loaded, made.path)
    apart = np.abs(our_logprobs(load(str(model)), IDS) - our_logprobs(loaded, IDS)).max()
    assert apart > 10 * CLOSE


def test_a_quantized_base_is_dequantized_and_that_is_said(tmp_path: Path) -> None:
    loaded = load(str(save_family(tmp_path / "model", "llama")))
    model, config = quantize(loaded.model, loaded.config, 4)
    quantized = LoadedModel(model, loaded.tokenizer, config, loaded.path, loaded.name)
    (tmp_path / "quantized").mkdir()
    save_model(quantized, tmp_path / "quantized")
    out = tmp_path / "m.gguf"
    result = forty2("export", "gguf", tmp_path / "quantized", "--out", out, "--type", "f32")
    assert result.exit_code == 0, result.output
    assert "the base is quantized to 4 bits and was dequantized" in result.output
    assert_alike(load(str(tmp_path / "quantized")), out)


@pytest.mark.slow
def test_a_run_goes_along_with_its_adapter_template_and_system_message(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llama")
    turns = [("system", "Count."), ("user", "To 2, please."), ("assistant", "1 2")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "sft.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    (tmp_path / "recipe.yaml").write_text(
        f"version: 1\nname: counting\nmodel: {model}\nmax_length: 96\nsystem_turn: fold\n"
        "adapter: {rank: 2, layers: 2}\nfuse: null\nbenchmark: null\n"
        "phases: {sft: {objective: sft, data: sft.jsonl, steps: 2, lr: 0.5, lint: false}}\n"
    )
    with short_checks():
        recipe = load_recipe(str(tmp_path / "recipe.yaml"))
        run = forty2_package.run(recipe, run_dir=tmp_path / "run")
    out = tmp_path / "m.gguf"
    result = forty2("export", "gguf", run.path, "--out", out, "--type", "f32", "--ollama")
    assert result.exit_code == 0, result.output
    loaded = load(str(model), run.path)
    assert_alike(loaded, out)
    assert "the adapter was merged into its base" in result.output
    assert GgufFile(out).get("tokenizer.chat_template", str) == loaded.tokenizer.chat_template
    text = (tmp_path / "Modelfile.m").read_text()
    assert text.endswith('SYSTEM """Count."""\n') and "$first" in text  # folded into the question


# --- the file ---


def test_only_a_gguf_file_is_replaced(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama")
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    for out, says in (
        (weights, "exists and is no GGUF file; name another --out"),
        (tmp_path / "pipe", "is a device or a pipe"),
        (Path("/"), "is a folder"),
    ):
        for options in ([], ["--replace"], ["--replace", "--ollama"]):
            assert says in refused("export", "gguf", folder, "--out", out, *options)
    assert weights.read_bytes() == before and (tmp_path / "pipe").is_fifo()


def test_a_k_quant_is_refused_with_the_tool_that_makes_it(tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    for kind in ("q4_k_m", "Q6_K", "iq4_xs"):
        said = refused("export", "gguf", tmp_path, "--out", out, "--type", kind)
        assert f"llama-quantize F16.gguf OUT.gguf {kind.upper()}" in " ".join(said.split())
    folder = save_family(tmp_path / "model", "llama")
    assert forty2("export", "gguf", folder, "--out", out, "--type", "Q8_0").exit_code == 0


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    folder, out = save_family(tmp_path / "model", "llama"), tmp_path / "m.gguf"
    out.write_text("GGUF of years")
    assert "exists already" in refused("export", "gguf", folder, "--out", out)
    assert out.read_text() == "GGUF of years"
    assert forty2("export", "gguf", folder, "--out", out, "--replace").exit_code == 0
    assert out.stat().st_size > 1000
    assert "is a folder" in refused("export", "gguf", folder, "--out", folder, "--replace")


@pytest.mark.slow
def test_a_large_vocabulary_is_exported_in_bounded_memory(tmp_path: Path) -> None:
    """200,000 tokens, and 16 blocks that together take more memory than the embeddings."""
    parts = json.loads(byte_level("qwen2").to_str())
    parts["model"]["vocab"] |= {f"token{n}": 420 + n for n in range(200_000)}
    backend = Tokenizer.from_str(json.dumps(parts))
    changes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
    }
    folder = save_family(tmp_path / "model", "llama", with_tokens(backend), **changes)
    matrix = 200_000 * 256 * 4  # bytes, in fp32
    assert (folder / "model.safetensors").stat().st_size > 3 * matrix
    script = (
        "import resource, sys, forty2\n"
        "from forty2.export.gguf.exporting import export_gguf\n"
        "from forty2.model.loading import load\n"
        "load(sys.argv[1], lazy=True)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "export_gguf(sys.argv[1], sys.argv[2], type='q8_0', progress=lambda *_: None)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "m.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2 * matrix + 300e6  # and the tokenizer's 200,000 texts


def test_a_disk_too_full_is_found_before_the_write(small_disk: Path, tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama")
    with pytest.raises(RunError, match="GB will be needed here"):
        export(folder, small_disk / "m.gguf")
    assert not list(small_disk.iterdir())


def test_a_disk_that_the_modelfile_fills_keeps_neither_file(
    small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    folder = save_family(tmp_path / "model", "llama")
    with pytest.raises(RunError, match=r"Modelfile\.m: cannot be written: the disk is full"):
        export(folder, small_disk / "m.gguf", ollama=True, system="x" * 9_000_000)
    assert not list(small_disk.iterdir())


def test_a_model_that_cannot_be_written_leaves_no_modelfile(tmp_path: Path) -> None:
    folder = save_family(tmp_path / "model", "llama")
    file = folder / "model.safetensors"
    weights: Any = mx.load(str(file))
    weights["model.norm.weight"] = weights["model.norm.weight"] * float("nan")
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="is not finite"):
        export(folder, tmp_path / "out" / "m.gguf", ollama=True)
    assert not list((tmp_path / "out").iterdir())


def test_the_command_says_what_it_wrote_and_how_to_run_it(tmp_path: Path) -> None:
    folder, out = save_family(tmp_path / "tiny", "qwen2"), tmp_path / "Tiny.gguf"
    result = forty2("export", "gguf", folder, "-o", out, "--ollama", "--system", "Be brief.")
    assert result.exit_code == 0, result.output
    for line in (
        f"gguf      {out} (f16, qwen2, ",
        "tokens    427, byte-level BPE, pre-tokenizer qwen2",
        "stops     <|im_end|>",
        f"ollama create tiny -f {tmp_path / 'Modelfile.Tiny'} && ollama run tiny",
        f"lms import {out}",
        "llama-quantize",
    ):
        assert line in result.output
    modelfile = (tmp_path / "Modelfile.Tiny").read_text()
    assert modelfile.startswith('FROM ./Tiny.gguf\nTEMPLATE """')
    assert modelfile.endswith('PARAMETER stop "<|im_end|>"\nSYSTEM """Be brief."""\n')
    assert "--ollama" in refused("export", "gguf", folder, "-o", out, "--system", "x")
    assert GgufFile(out).get("general.name", str) == "tiny"


def test_phi3_s_control_tokens_take_in_white_space(tmp_path: Path) -> None:
    """llama.cpp knows that by the model's name alone, so the file has one with which it does."""
    backend = sentence_piece("prepend")
    tokenizer = with_tokens(backend, bos="<s>", unk_token="<unk>", stripped=True)
    folder = save_family(tmp_path / "mine", "phi3", tokenizer)
    made = export_gguf(str(folder), tmp_path / "m.gguf", progress=silent)
    assert GgufFile(made.path).get("general.name", str) == "mine (phi-3)"
    llama, text = LlamaCpp(made.path), "<|im_start|>  user\n<|im_end|>\n<|im_start|>\n x"
    assert llama.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)


def test_a_name_like_phi3_s_does_not_change_the_tokens(tmp_path: Path) -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    folder = save_family(tmp_path / "my-phi-3-style", "qwen2", tokenizer)
    made = export_gguf(str(folder), tmp_path / "m.gguf", progress=silent)
    llama, text = LlamaCpp(made.path), "<|im_start|>  user\n<|im_end|>\n"
    assert llama.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)
