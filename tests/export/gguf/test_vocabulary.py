"""An exported tokenizer is the same in llama.cpp: words, merges, added tokens, stops, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.llama_cpp import LlamaCpp
from support.many_scripts import strings
from support.tiny_families import (
    CONTROL,
    TAGS,
    byte_level,
    save_family,
    sentence_piece,
    with_tokens,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from forty2.errors import ModelError
from forty2.export.gguf.bpe import PROBE
from forty2.export.gguf.exporting import export_gguf
from forty2.export.gguf.sentence_piece import merge_as_llama_cpp
from forty2.export.gguf.vocabulary import Vocabulary, export_vocabulary, model_name
from forty2.model.gguf.file import GgufFile
from forty2.model.gguf.importing import import_gguf
from forty2.model.gguf.tokenizer import RULES, splitter

FEW = list(strings(300, (*CONTROL, *TAGS)))


def describe(tokenizer: Any, rows: int | None = None) -> Vocabulary:
    return export_vocabulary(tokenizer, rows or len(tokenizer), [tokenizer.eos_token_id], "tiny")


def in_llama_cpp(tokenizer: Any, folder: Path, **options: Any) -> LlamaCpp:
    model = save_family(folder / "model", "llama", tokenizer, **options)
    made = export_gguf(str(model), folder / "m.gguf", progress=lambda *_: None)
    return LlamaCpp(made.path)


def refused(tokenizer: Any, message: str, rows: int | None = None) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        describe(tokenizer, rows)
    assert "\n" not in str(caught.value)


# --- the same tokens ---


def test_every_rule_cuts_the_probe_in_its_own_way() -> None:
    words = {str(splitter(rule).pre_tokenize_str(PROBE)) for rule in RULES}
    assert len(words) == len(RULES)


@pytest.mark.parametrize("rule", ["qwen2", "llama-bpe", "dbrx", "gpt-2", "smollm"])
def test_byte_level_tokenizers_cut_many_scripts_alike(rule: str, tmp_path: Path) -> None:
    bos = "<|endoftext|>" if rule == "llama-bpe" else None
    tokenizer = with_tokens(byte_level(rule), bos=bos)
    llama = in_llama_cpp(tokenizer, tmp_path)
    for text in FEW:
        assert llama.tokenize(text, framed=True) == tokenizer.encode(text), text
    assert GgufFile(tmp_path / "m.gguf").get("tokenizer.ggml.pre", str) == rule


@pytest.mark.parametrize("scheme", ["prepend", "converted", "never"])
def test_sentence_piece_tokenizers_cut_many_scripts_alike(scheme: str, tmp_path: Path) -> None:
    tokenizer = with_tokens(sentence_piece(scheme), bos="<s>", unk_token="<unk>")
    llama = in_llama_cpp(tokenizer, tmp_path)
    for text in FEW:
        assert llama.tokenize(text, framed=True) == tokenizer.encode(text), text


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_where_bare_texts_differ_chats_are_alike_and_that_is_said(
    scheme: str, tmp_path: Path
) -> None:
    tokenizer = with_tokens(sentence_piece(scheme), bos="<s>", unk_token="<unk>")
    (note,) = describe(tokenizer).notes
    assert "leading space" in note and "chats are the same" in note
    llama = in_llama_cpp(tokenizer, tmp_path)
    talk = [("user", "Why?"), ("assistant", "So it is, and  so on."), ("user", "Été?")]
    messages = [{"role": role, "content": content} for role, content in talk]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert llama.chat(messages) == text
    assert llama.tokenize(text) == tokenizer.encode(text, add_special_tokens=False)


def test_tags_are_single_tokens_and_unused_ids_have_names(tmp_path: Path) -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    llama = in_llama_cpp(tokenizer, tmp_path, spare=3)
    for tag in (*CONTROL, *TAGS):
        assert llama.tokenize(f"a{tag}b")[1:-1] == [tokenizer.convert_tokens_to_ids(tag)]
    file = GgufFile(tmp_path / "m.gguf")
    kinds, names = (
        file.need("tokenizer.ggml.token_type", list),
        file.need("tokenizer.ggml.tokens", list),
    )
    assert {kinds[tokenizer.convert_tokens_to_ids(t)] for t in CONTROL} == {3}
    assert {kinds[tokenizer.convert_tokens_to_ids(t)] for t in TAGS} == {4}
    size = len(tokenizer)
    assert names[size:] == [f"[PAD{n}]" for n in range(size, size + 3)]
    assert kinds[size:] == [5, 5, 5]


def test_the_tokenizer_comes_back_through_the_importer(tmp_path: Path) -> None:
    tokenizer = with_tokens(byte_level("smollm"))
    in_llama_cpp(tokenizer, tmp_path)
    back = PreTrainedTokenizerFast.from_pretrained(import_gguf(tmp_path / "m.gguf", tmp_path / "b"))
    for text in FEW:
        assert back.encode(text) == tokenizer.encode(text), text
    assert back.convert_tokens_to_ids(TAGS) == tokenizer.convert_tokens_to_ids(TAGS)


@pytest.mark.parametrize("number", [1, 3])
def test_llama_cpp_stops_at_every_stop_token(number: int, tmp_path: Path) -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    model = save_family(tmp_path / "model", "llama", tokenizer)
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|stop|>", "<think>"][:number])
    (model / "generation_config.json").write_text(f'{{"eos_token_id": {stops}}}')
    export_gguf(str(model), tmp_path / "m.gguf", progress=lambda *_: None)
    llama = LlamaCpp(tmp_path / "m.gguf")
    assert [llama.stops_at(stop) for stop in stops] == [True] * number
    assert not llama.stops_at(tokenizer.convert_tokens_to_ids("</think>"))


def test_stop_tokens_beyond_three_are_named(tmp_path: Path) -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    stops = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|stop|>", *TAGS[:2]])
    notes = export_vocabulary(tokenizer, len(tokenizer), stops, "tiny").notes
    assert any("</think> is one more" in note for note in notes)


# --- what is refused ---


def test_a_rule_that_llama_cpp_does_not_have_is_refused() -> None:
    backend = byte_level("gpt-2")
    pattern = Regex(r"\p{L}+|\p{N}{1,2}|[^\p{L}\p{N}]+")
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), byte]
    )
    refused(with_tokens(backend), "by a rule that is none of llama-bpe, qwen2, smollm, gpt-2")
    backend = byte_level("gpt-2")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    refused(with_tokens(backend), "by a rule that is none of")


_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("suffix", "digits"),
    [("", ""), ("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "{1,3}")],
    ids=["tekken", "gpt-4o"],
)
def test_a_rule_that_llama_cpp_computes_otherwise_is_refused(suffix: str, digits: str) -> None:
    backend = byte_level("gpt-2")
    pattern = Regex(_O200K.replace("SUFFIX", suffix).replace("DIGITS", digits))
    byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), byte]
    )
    refused(with_tokens(backend), "by a rule that is none of llama-bpe, qwen2, smollm, gpt-2")


def test_another_normalizer_is_refused() -> None:
    backend = byte_level("gpt-2")
    backend.normalizer = normalizers.Lowercase()
    refused(with_tokens(backend), "the normalizer Lowercase")
    backend = sentence_piece("never")
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    refused(with_tokens(backend, unk_token="<unk>"), "the normalizer NFKC")


def test_a_tokenizer_that_is_no_bpe_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="b"))
    refused(with_tokens(backend), "of type WordLevel; only BPE")


def test_a_tokenizer_without_merges_is_refused() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    refused(with_tokens(backend), "has no merges")


def test_whole_words_before_merges_are_refused_where_llama_cpp_merges() -> None:
    backend = byte_level("gpt-2")
    backend.model.ignore_merges = True
    assert (
        describe(with_tokens(backend)).values["tokenizer.ggml.pre"] == "gpt-2"
    )  # merges reach all
    parts = json.loads(byte_level("gpt-2").to_str())
    parts["model"]["vocab"]["Ġunreached"] = len(parts["model"]["vocab"])
    parts["model"]["ignore_merges"] = True
    backend = Tokenizer.from_str(json.dumps(parts))
    refused(with_tokens(backend), "looks up whole words")


def test_merges_that_are_not_sentence_piece_s_are_refused() -> None:
    letters = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abc", "ab", "bc", "abc"]
    vocabulary = {token: n for n, token in enumerate(letters)}

    def made(*merges: tuple[str, str]) -> Any:
        model = models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True)
        backend = Tokenizer(model)
        backend.normalizer = normalizers.Replace(" ", "▁")
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
        return with_tokens(backend, unk_token="<unk>")

    whole = [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]
    assert describe(made(*whole)).values["tokenizer.ggml.model"] == "llama"
    refused(made(*whole[:3]), "does not merge 'a' and 'bc', although 'abc' is a token")


def test_the_merging_is_that_of_llama_cpp() -> None:
    scores = {"ab": -1.0, "bc": 0.0, "aa": -3.0, "aaa": -3.0}
    assert merge_as_llama_cpp("abc", scores) == ["a", "bc"]  # the higher score first
    assert merge_as_llama_cpp("aaaaa", scores) == ["aaa", "aa"]  # equal scores from the left
    assert merge_as_llama_cpp("", scores) == []


def test_other_tokens_around_a_text_are_refused() -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    odd = [("<|stop|>", tokenizer.convert_tokens_to_ids("<|stop|>"))]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|stop|>", special_tokens=odd
    )
    refused(tokenizer, "adds other tokens to a text than BOS and EOS")


def test_ids_beyond_the_embeddings_are_refused() -> None:
    tokenizer = with_tokens(byte_level("qwen2"))
    refused(tokenizer, "but there are embeddings for 400", rows=400)


# --- white space and names ---


def test_white_space_that_llama_cpp_keeps_is_told() -> None:
    backend = byte_level("qwen2")
    backend.add_tokens([AddedToken("<mask>", lstrip=True)])
    refused(with_tokens(backend), "llama.cpp would not cut 'a <mask> b<mask>'")


def test_names_decide_about_white_space_in_llama_cpp() -> None:
    assert model_name("tuned", stripped=False) == "tuned"
    assert model_name("tuned", stripped=True) == "tuned (phi-3)"
    assert model_name("Phi-3-mini", stripped=True) == "Phi-3-mini"
    assert model_name("my-Phi3-like", stripped=False) == "my-phi 3-like"
