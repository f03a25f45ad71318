"""Texts put together from words met before are the tokenizer's own ids, whatever they hold."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from forty2.data.library import rows
from forty2.model.gguf.tokenizer import splitter
from forty2.text.word_cache import WordCache

ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
PARTS = st.sampled_from(
    [
        "Hello",
        "it's",
        " ",
        "  ",
        "\n",
        "\n\n",
        " \n",
        "\t",
        "\u00a0",
        "\u3000",
        "\x1c",
        "\0",
        "7",
        "123",
        "é",
        "e\u0301",
        "\u0301",
        "日本",
        "٣٤",
        "🙂",
        "_",
        "...",
        "<end>",
        "<think>",
        "<end",
        "'",
    ]
)
TEXTS = st.lists(st.lists(PARTS | ANY, max_size=12).map("".join), max_size=4)


def trained(pre: str) -> Tokenizer:
    """A byte-level tokenizer that cuts words as a family of models does."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = splitter(pre)
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    answers = [text for row in rows("myths_a") for text in (row["question"], *row["true"])]
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(answers, trainer)
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return backend


@pytest.mark.parametrize("pre", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_the_same_ids_as_the_tokenizers(pre: str) -> None:
    backend = trained(pre)
    words = WordCache(backend)
    assert words._cuts_at_spaces

    @settings(max_examples=300, deadline=None)
    @given(TEXTS)
    def same(texts: list[str]) -> None:
        wanted = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert words.encode_batch(texts) == wanted
        assert words.encode_batch(texts) == wanted  # once more, now that all are known

    same()
    answers = [text for row in rows("myths_b") for text in row["true"]]
    assert words.encode_batch(answers) == [
        backend.encode(text, add_special_tokens=False).ids for text in answers
    ]


def test_a_tokenizer_that_looks_past_spaces_gets_texts_whole() -> None:
    spaces = trained("gpt-2")
    spaces.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    prefixed = trained("gpt-2")
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    lowered = trained("gpt-2")
    lowered.normalizer = normalizers.Sequence([normalizers.Replace(" ", "_")])
    greedy = trained("gpt-2")
    greedy.add_tokens([AddedToken("<wide>", lstrip=True)])
    none = trained("gpt-2")
    none.pre_tokenizer = None
    texts = ["of the water  and", "a <wide> b", " the", "the"]
    for backend in (spaces, prefixed, lowered, greedy, none):
        words = WordCache(backend)
        assert not words._cuts_at_spaces
        wanted = [backend.encode(text, add_special_tokens=False).ids for text in texts]
        assert words.encode_batch(texts) == wanted


def test_what_is_kept_stays_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forty2.text.word_cache._MOST_WORDS", 2_000)
    words = WordCache(trained("gpt-2"))
    words.encode_batch(["x" * 100, "word " * 50])
    assert all(len(piece) <= 40 for piece in words._ids)
    for start in range(0, 3_000, 500):
        words.encode_batch([" ".join(map(str, range(start, start + 500)))])
    assert 500 <= len(words._ids) <= 2_500 + 10
