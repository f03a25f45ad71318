"""Control tokens are told from text that spells them, in compiled tokenizers and in Python."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from support.models import tiny_loaded
from tokenizers import AddedToken

from forty2.model.loading import LoadedModel
from forty2.text.special_tokens import SpecialTokens

TEXT = "<|im_start|>user\nSay  {} please: é, 好.<|im_end|>\n<|im_start|>assistant\n {}"
LITERALS = ["<|im_end|>", "<|im_start|>x"]


class InPython:
    """A tokenizer without a compiled one behind it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        if name == "backend_tokenizer":
            raise AttributeError(name)
        return getattr(self._tokenizer, name)


@pytest.fixture
def tokenizer(starter: LoadedModel) -> Any:
    return copy.deepcopy(starter.tokenizer)


def encoded(specials: SpecialTokens) -> list[int]:
    """Encode a user turn and an answer that spell control tokens."""
    turns = [
        {"role": "user", "content": LITERALS[0]},
        {"role": "assistant", "content": LITERALS[1]},
    ]
    replaced, _, literals = specials.replace(turns, ())
    return specials.encode(TEXT.format(*(turn["content"] for turn in replaced)), literals)


def test_every_control_token_has_its_id(tokenizer: Any) -> None:
    ids = SpecialTokens(tokenizer).ids
    assert len(ids) > 5
    assert all(tokenizer.convert_ids_to_tokens(i) == spelling for spelling, i in ids.items())


def test_text_that_spells_a_control_token_holds_none(tokenizer: Any) -> None:
    specials = SpecialTokens(tokenizer)
    ids = encoded(specials)
    assert tokenizer.decode(ids) == TEXT.format(*LITERALS)
    controls = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in specials.ids.values()]
    assert controls == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_a_tokenizer_in_python_gives_the_tokens_of_the_compiled_one(tokenizer: Any) -> None:
    in_python = SpecialTokens(InPython(tokenizer))
    compiled = SpecialTokens(tokenizer)
    assert encoded(in_python) == encoded(compiled)
    plain = TEXT.format("it", "No.")
    assert in_python.encode(plain) == compiled.encode(plain) == tokenizer.encode(plain)
    assert in_python.encode_batch([plain, "a"]) == compiled.encode_batch([plain, "a"])


@pytest.mark.parametrize("text", ["ab", "</s>ab <s>", "a</s>"])
def test_a_rendered_text_gets_no_token_that_it_does_not_spell(text: str) -> None:
    """Although the tokenizer puts one in front of a text that it gets elsewhere."""
    wrapped = tiny_loaded(front=True).tokenizer
    assert wrapped.encode("ab")[0] == 0
    replaced, _, literals = SpecialTokens(wrapped).replace([{"role": "user", "content": "</s>"}])
    for tokenizer in (wrapped, InPython(wrapped)):
        specials = SpecialTokens(tokenizer)
        plain = specials.encode(text)
        assert tokenizer.decode(plain) == text
        assert specials.encode_batch([text]) == [plain]
        behind = specials.encode(text + str(replaced[0]["content"]), literals)
        assert behind[: len(plain)] == plain and tokenizer.decode(behind) == f"{text}</s>"
        assert not {0, 1}.intersection(behind[len(plain) :])


def test_a_tokenizer_that_changes_texts_in_python_keeps_doing_so(tokenizer: Any) -> None:
    class Lower:
        """As tokenizers do that normalize a text before they pass it on."""

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def encode(self, text: str, **options: Any) -> Any:
            return tokenizer.encode(text.lower(), **options)

    specials = SpecialTokens(Lower())
    assert specials.encode("Some TEXT") == SpecialTokens(tokenizer).encode("some text")


def test_blanks_that_a_control_token_takes_up_are_taken_up_beside_text_that_spells_one(
    tokenizer: Any,
) -> None:
    wide = AddedToken("<wide>", lstrip=True, rstrip=True, special=True)
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": [wide]})
    specials = SpecialTokens(tokenizer)
    replaced, _, literals = specials.replace([{"role": "user", "content": "<|im_end|>"}])
    plain = specials.encode("a <wide> b")
    found = specials.encode(f"a <wide> b{replaced[0]['content']}", literals)
    assert found[: len(plain)] == plain == [*specials.encode("a"), *specials.encode("<wide>b")]


def test_a_token_that_ends_turns_is_a_control_token_whatever_its_tokenizer_says() -> None:
    tokenizer = tiny_loaded(ends=[40]).tokenizer
    spelling = tokenizer.convert_ids_to_tokens(40)
    specials = SpecialTokens(tokenizer)
    assert specials.ids[spelling] == 40
    replaced, _, literals = specials.replace([{"role": "user", "content": spelling}])
    assert literals == [spelling] and replaced[0]["content"] != spelling


def test_markers_stay_tokens_in_answers_alone_and_ends_nowhere(tokenizer: Any) -> None:
    specials = SpecialTokens(tokenizer, ["<|im_start|>", "<|im_end|>"])
    content = "<|im_start|><|im_end|>"
    turns = [{"role": role, "content": content} for role in ("user", "assistant")]
    (asked, answered), _, literals = specials.replace(turns)
    assert literals == ["<|im_start|>", "<|im_end|>", "<|im_end|>"]
    assert "<|im_start|>" not in str(asked["content"])
    assert str(answered["content"]).startswith("<|im_start|>")


def test_tags_around_a_thought_that_begins_an_answer_stay_tokens(tokenizer: Any) -> None:
    tags = ["<think>", "</think>", "[THINK]", "[/THINK]", "<|START_THINKING|>", "<reason>"]
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": tags})
    specials = SpecialTokens(tokenizer)

    def literals(role: str, content: str, **more: str) -> list[str]:
        return specials.replace([{"role": role, "content": content, **more}])[2]

    for opening, closing in (tags[:2], tags[2:4]):
        thought = f"\n{opening}One. {opening}{closing}\n\n{closing} {opening}"
        assert literals("assistant", thought) == [opening, closing, opening]
        for text in (
            f"{opening}One.",
            f"One.{closing}",
            f"a{opening}One.{closing}",
            closing + opening,
        ):
            assert set(literals("assistant", text)) == {opening, closing} & set(
                specials.pattern.findall(text)
            )
        assert literals("user", f"{opening}One.{closing}") == [opening, closing]
        turn = {"role": "assistant", "content": f"One.{closing}Yes.{closing}"}
        (replaced,), _, spelled = specials.replace([turn], opened={0: opening})
        assert spelled == [closing]
        assert str(replaced["content"]).startswith(f"One.{closing}Yes.")
        both = literals("assistant", "a", reasoning_content=f"{opening}One.{closing}")
        assert both == [opening, closing]
    for unpaired in tags[4:]:
        assert literals("assistant", f"{unpaired}One.") == [unpaired]


def test_tags_that_end_turns_stay_text_around_a_thought() -> None:
    tokenizer = tiny_loaded().tokenizer
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    tokenizer.eos_token_ids = {tokenizer.convert_tokens_to_ids("</think>")}
    turn = {"role": "assistant", "content": "<think>a</think>b"}
    assert SpecialTokens(tokenizer).replace([turn])[2] == ["<think>", "</think>"]


def test_a_role_is_kept_where_a_control_token_is_spelled_like_it(tokenizer: Any) -> None:
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": ["user"]})
    (turn,), _, literals = SpecialTokens(tokenizer).replace([{"role": "user", "content": "a user"}])
    assert turn["role"] == "user" and literals == ["user"]


@pytest.mark.parametrize("front", [False, True])
def test_texts_go_to_the_compiled_tokenizer_of_any_tokenizer(
    front: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tiny_loaded(front=front).tokenizer
    specials = SpecialTokens(tokenizer)
    monkeypatch.setattr(tokenizer._tokenizer, "encode", None)
    assert tokenizer.decode(specials.encode("<s>ab")) == "<s>ab"


def test_texts_go_to_the_compiled_tokenizer_alone(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tokenizer.encode(TEXT)
    specials = SpecialTokens(tokenizer)
    monkeypatch.setattr(tokenizer._tokenizer, "encode", None)
    assert specials.encode_batch([TEXT, TEXT]) == [expected, expected]


def test_an_end_without_a_token_is_no_word(tokenizer: Any) -> None:
    """A configuration may name an end that the tokenizer lacks, whose spelling is None."""
    ends = {*tokenizer.eos_token_ids, 99_999_999}
    tokenizer.eos_token_ids = ends
    specials = SpecialTokens(tokenizer)
    assert specials.pattern.search("None") is None
    assert specials.encode("None") == tokenizer.encode("None", add_special_tokens=False)


def test_of_two_control_tokens_that_begin_alike_the_longer_is_found(tokenizer: Any) -> None:
    spellings = ["<x>", "<x>yz", "<x>y", "<a>longer"]
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": spellings})
    specials = SpecialTokens(InPython(tokenizer))
    for text in spellings:
        assert specials.pattern.fullmatch(text)
        assert [m[0] for m in specials.pattern.finditer(f"a{text} b")] == [text]
