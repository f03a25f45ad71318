"""A tokenizer that does not belong to the model is refused, and one that was cut is named."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from support.models import save_tiny
from transformers import AutoTokenizer

from forty2.errors import ModelError
from forty2.model.loading import load

TEMPLATE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"


def with_tokens(folder: Path, *, special: int = 0, text: int = 0, template: str = TEMPLATE) -> Path:
    """Save a model with 300 rows of embeddings, and add tokens to the 258 of its tokenizer."""
    save_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [f"<|s{i}|>" for i in range(special)]}
    )
    tokenizer.add_tokens([f"word{i}" for i in range(text)])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def test_tokens_up_to_the_last_row_are_taken(tmp_path: Path) -> None:
    loaded = load(str(with_tokens(tmp_path / "m", text=42)))
    assert max(loaded.tokenizer.get_vocab().values()) == 299


def test_a_text_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "m", text=43)
    with pytest.raises(
        ModelError, match=r"'word42': its id is 300, and the embedding has 300 rows"
    ):
        load(str(folder))


def test_a_control_token_beyond_the_embedding_is_refused_if_the_template_writes_it(
    tmp_path: Path,
) -> None:
    assert load(str(with_tokens(tmp_path / "unused", special=44)))
    folder = with_tokens(tmp_path / "used", special=44, template=f"<|s43|>{TEMPLATE}")
    with pytest.raises(ModelError, match=r"such as '<\|s43\|>'"):
        load(str(folder))


def test_an_end_token_beyond_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = with_tokens(tmp_path / "m", special=44)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = "<|s43|>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"such as '<\|s43\|>'"):
        load(str(folder))


@pytest.mark.parametrize(("rows", "warned"), [(322, False), (323, True)])
def test_a_tokenizer_far_smaller_than_the_embedding_is_named(
    rows: int, warned: bool, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "m", vocab_size=rows)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load(str(folder))
    assert [f"names 258 of the embedding's {rows} rows" in str(w.message) for w in caught] == (
        [True] if warned else []
    )
