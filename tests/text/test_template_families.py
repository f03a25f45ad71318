"""What is supervised under the chat templates of real model families, against hand-written texts."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from support.family_tokenizers import KINDS, tokenizer_of
from support.template_families import (
    FAMILIES,
    Alpaca,
    Cohere2,
    Family,
    Message,
    Ministral,
    Olmo2,
    Phi4Reasoning,
    R1Tokens,
    Talk,
    ThinkTokens,
    Vicuna,
    Zephyr,
)

from forty2.data.records import Chat, Pair, Rated
from forty2.errors import DataError
from forty2.text.encoder import Encoder

TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "look_up", "arguments": {"word": "user", "most": 3}},
}
AWKWARD = {
    "id": "call12345",
    "type": "function",
    "function": {
        "name": "look_up",
        "arguments": {
            "a": '"é"\n\tb',
            "b": [1, "x"],
            "c": {"d": ""},
            "e": " f ",
            "g": True,
            "h": None,
        },
    },
}


def user(text: str = "Is the question a final one?") -> Message:
    return {"role": "user", "content": text}


def bot(text: str, **more: object) -> Message:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def thinking(text: str, thought: str) -> Message:
    return bot(text, reasoning_content=thought)


def calling(text: str, **more: object) -> Message:
    return bot(text, tool_calls=[CALL], **more)


RESULT = {"role": "tool", "content": "A person.", "name": "look_up", "tool_call_id": "call12345"}


def cases() -> dict[str, tuple[list[Message], bool]]:
    """Return conversations by name, and whether tools go with them."""
    plain: dict[str, list[Message]] = {
        "one turn": [user(), bot("The answer is yes.")],
        "three turns": [user(), bot("Yes."), user("Why?"), bot("So."), user(), bot("The end")],
        "a question last": [user(), bot("Yes."), user("Why?")],
        "system": [system("Be brief."), user(), bot("Yes.")],
        "empty system": [system(""), user(), bot("Yes.")],
        "system and turns": [system("Be brief."), user(), bot("Yes."), user("Why?"), bot("So.")],
        "thinking": [user(), thinking("Yes.", "Let me think.")],
        "two thinking": [user(), thinking("Yes.", "One."), user("Why?"), thinking("So.", "Two.")],
        "thinking before": [user(), thinking("Yes.", "One."), user("Why?"), bot("So.")],
        "no calls": [user(), bot("Yes.", tool_calls=[]), user("Why?"), bot("So.", tool_calls=None)],
        "answer in its thinking": [user(), thinking("a", "a final answer, a")],
        "thinking alone": [user(), thinking("", "Let me think.")],
        "call without tools": [user(), calling("")],
        "thinking between new lines": [user(), thinking("Yes.", "\nOne.\n\nTwo. \n")],
        "two questions": [user(), user("Why?"), bot("So.")],
        "two answers": [user(), bot("Yes."), bot("No.")],
        "leading space": [user(), bot(" Yes.")],
        "leading new line": [user(), bot("\nYes.")],
        "leading new lines": [user(), bot("\n\nYes."), user(), bot("\n No.")],
        "space at the end": [user(), bot("Yes. "), user("Why? "), bot("So.\n")],
        "not learned": [user(), bot("Yes.", train=False), user("Why?"), bot("So.")],
        "not learned last": [user(), bot("Yes."), user("Why?"), bot("So.", train=False)],
        "equal turns": [user(), bot("Yes."), user(), bot("Yes."), user("Yes."), bot("Yes.")],
        "tag in a content": [user("<think>"), bot("<b>bold</b>")],
        "thinking in a content": [user(), bot("<think>\nOne.\n</think>\n\nYes.")],
        "a thought without its beginning": [user(), bot("One.\n</think>\n\nYes.")],
        "questions that say how to think": [
            *(user("Is it? /no_think"), bot("Yes."), user("Why? /think"), bot("So.")),
        ],
        "a thought where a question asks for none": [
            *(user("Is it? /no_think"), bot("<think>\nOne.\n</think>\n\nYes.")),
        ],
        "a thought where the system turn asks for none": [
            *(system("Be brief. /no_think"), user(), bot("<think>\nOne.\n</think>\n\nYes.")),
        ],
        "a thought without its beginning where a question asks for none": [
            *(user("Is it? /no_think"), bot("One.\n</think>\n\nYes.")),
        ],
        "a closed thought alone": [user(), bot("</think>Yes."), user("Why?"), bot("So.</think>")],
        "two with thinking in the content": [
            *(user(), bot("<think>\nOne.\n</think>\n\nYes.")),
            *(user("Why?"), bot("<think>\nTwo.\n</think>\n\nSo.")),
        ],
    }
    for answer in (
        "a",
        "final",
        "user",
        "assistant",
        "system",
        "analysis",
        "model",
        "<|",
        "[",
        "\\n",
    ):
        plain[f"answer {answer!r}"] = [user(), bot(answer), user("a"), bot(answer)]
    tools: dict[str, list[Message]] = {
        "tools alone": [user(), bot("Yes.")],
        "call": [user(), calling("")],
        "null and call": [user(), {**calling(""), "content": None}],
        "text and call": [user(), calling("I look.")],
        "thinking and call": [user(), calling("", reasoning_content="I look.")],
        "awkward arguments": [user(), bot("", tool_calls=[AWKWARD])],
        "two results": [
            *(user(), bot("", tool_calls=[CALL, CALL]), RESULT, RESULT, bot("It is.")),
        ],
        "two calls": [user(), bot("", tool_calls=[CALL, CALL])],
        "result": [user(), calling(""), RESULT, bot("It is.")],
        "equal questions": [user(), bot("Yes."), user(), bot("No.")],
        "system, result and turn": [
            *(system("Be brief."), user(), calling(""), RESULT, bot("It is.")),
            *(user("Why?"), bot("So.")),
        ],
    }
    return {name: (talk, name in tools) for name, talk in (plain | tools).items()}


CASES = cases()


class Expected(NamedTuple):
    """A row to learn: text and the learned spans in it."""

    text: str
    spans: list[tuple[int, int]]


def talk_of(family: Family, name: str) -> tuple[Talk, list[int]]:
    """Return a case with its reasoning under the family's key, and the turns to learn."""
    messages, tools = CASES[name]
    written = json.dumps(messages).replace(str(CALL["id"]), family.call_id)
    renamed = json.loads(written.replace('"reasoning_content"', f'"{family.reasoning_key}"'))
    learned = [
        i for i, m in enumerate(renamed) if m["role"] == "assistant" and m.get("train", True)
    ]
    return Talk(renamed, [TOOL] if tools else []), learned


def expected_rows(family: Family, talk: Talk, learned: Sequence[int]) -> list[Expected]:
    """Return the rows by the family's description, one where each turn follows the one before."""
    rows: list[Expected] = []
    for turn in learned:
        prompt = family.prompt(talk.upto(turn))
        text = prompt + family.answer(talk.upto(turn + 1), turn)
        span = (len(prompt), len(text))
        if rows and family.ends and prompt.startswith(rows[-1].text):
            rows[-1] = Expected(text, [*rows[-1].spans, span])
        else:
            rows.append(Expected(text, [span]))
    return rows


def one_row(family: Family, messages: list[Message], tools: list[Message]) -> Expected:
    """Return the row of a conversation's last turn alone."""
    turn = len(messages) - 1
    return expected_rows(family, Talk(messages, tools), [turn])[0]


def learnable(family: Family) -> dict[str, tuple[Chat, list[Expected]]]:
    """Return the cases that a family can learn, with their rows."""
    found = {}
    for name in CASES:
        talk, learned = talk_of(family, name)
        if not family.problems(talk, learned):
            found[name] = (chat(talk.messages, talk.tools), expected_rows(family, talk, learned))
    return found


def chat(messages: Sequence[Message], tools: Sequence[Message] = ()) -> Chat:
    return Chat(messages=tuple(messages), tools=tuple(tools), origin="file:7")


@functools.cache
def tokens(tokenizer: Any, text: str) -> list[int]:
    """Return a text's ids by the tokenizer. Not to be changed: they are remembered."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def pieces(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return what ids spell in the tokenizer's alphabet, however it is cut; control tokens by id."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return "".join(f"⟦{i}⟧" if i in special else tokenizer.convert_ids_to_tokens(i) for i in ids)


def check(tokenizer: Any, ids: list[int], mask: list[bool], row: Expected, ends: bool) -> None:
    """Compare ids and mask with what the row's text says.

    The ids are those of the whole text; where a token would cross the border of a learned turn, they
    spell the text exactly, and the prompt is tokenized as generation has it.
    """
    assert len(ids) == len(mask)
    if not ends:
        assert (ids[-1], mask[-1]) == (tokenizer.eos_token_id, True)
        ids, mask = ids[:-1], mask[:-1]
    whole = tokens(tokenizer, row.text)
    borders = [tokens(tokenizer, row.text[:end]) for span in merged(row.spans) for end in span]
    changes = [i for i in range(len(mask)) if mask[i] != (i > 0 and mask[i - 1])]
    changes += [len(mask)] if mask[-1] else []
    if all(whole[: len(border)] == border for border in borders):
        assert ids == whole and changes == [len(border) for border in borders]
    else:
        assert ids[: len(borders[0])] == borders[0]
        spelled = [pieces(tokenizer, ids[:i]) for i in changes]
        assert spelled == [pieces(tokenizer, border) for border in borders]


def merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join spans that touch."""
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


@functools.cache
def encoder_of(family: Family, kind: str) -> Encoder:
    return Encoder(tokenizer_of(family, kind))


families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: type(f).__name__)
kinds = pytest.mark.parametrize("kind", KINDS)


@families
@kinds
def test_supervised_is_what_the_model_must_write(family: Family, kind: str) -> None:
    tokenizer = tokenizer_of(family, kind)
    cases = learnable(family)
    encoder = encoder_of(family, kind)
    together = encoder.encode_sft_records([record for record, _ in cases.values()])
    for (record, expected), rows in zip(cases.values(), together, strict=True):
        assert len(rows) == len(expected)
        for row, wanted in zip(rows, expected, strict=True):
            check(tokenizer, row.ids, row.mask, wanted, family.ends)
            assert row.origin == record.origin


@families
def test_a_record_alone_gives_the_rows_that_it_gives_among_others(family: Family) -> None:
    tokenizer = tokenizer_of(family, "bytes")
    records = [record for record, _ in learnable(family).values()]
    together = Encoder(tokenizer).encode_sft_records(records)
    encoder = Encoder(tokenizer)
    assert [encoder.encode_sft_record(record) for record in reversed(records)] == together[::-1]


@families
@pytest.mark.parametrize("kind", ["bytes", "first"])
def test_pairs_and_rated_responses_are_what_the_model_must_write(family: Family, kind: str) -> None:
    tokenizer = tokenizer_of(family, kind)
    encoder = encoder_of(family, kind)
    for record, _ in learnable(family).values():
        *prompt, last = (dict(m) for m in record.messages)
        if last["role"] != "assistant" or last.get("train") is False:
            continue
        sides = [last, bot("Another answer")]
        pair = Pair(
            prompt=tuple(prompt),
            chosen=(last,),
            rejected=(sides[1],),
            tools=record.tools,
            origin="file:7",
        )
        rating = Rated(
            prompt=tuple(prompt),
            response=(last,),
            tools=record.tools,
            desirable=True,
            origin="file:7",
        )
        row, rated = encoder.encode_pair(pair), encoder.encode_rated(rating)
        assert (rated.prompt, rated.response) == (row.prompt, row.chosen)
        for side, response in zip(sides, (row.chosen, row.rejected), strict=True):
            mask = [False] * len(row.prompt) + [True] * len(response)
            wanted = one_row(family, [*prompt, side], [*record.tools])
            check(tokenizer, [*row.prompt, *response], mask, wanted, family.ends)


@families
def test_a_response_of_several_turns_has_their_mask(family: Family) -> None:
    tokenizer, encoder = tokenizer_of(family, "bytes"), encoder_of(family, "bytes")
    for name in ("three turns", "result"):
        talk, learned = talk_of(family, name)
        if family.problems(talk, learned):
            continue
        prompt, turns = talk.messages[: learned[0]], talk.messages[learned[0] :]
        rows = expected_rows(family, talk, learned)
        if len(rows) > 1:
            with pytest.raises(DataError, match="file:7: the chat template rewrites earlier turns"):
                encoder.response(prompt, turns, talk.tools, "file:7")
            continue
        before, response, mask = encoder.response(prompt, turns, talk.tools, "file:7")
        whole = [False] * len(before) + mask
        check(tokenizer, [*before, *response], whole, rows[0], family.ends)


@families
def test_the_last_turn_alone_may_be_learned(family: Family) -> None:
    tokenizer = tokenizer_of(family, "bytes")
    encoder = encoder_of(family, "bytes").training_on("last")
    for name, (record, _) in learnable(family).items():
        if record.messages[-1]["role"] == "assistant" and "not learned" not in name:
            (row,) = encoder.encode_sft_record(record)
            wanted = one_row(family, [*map(dict, record.messages)], [*record.tools])
            check(tokenizer, row.ids, row.mask, wanted, family.ends)


@families
@kinds
def test_prompts_are_those_of_generation(family: Family, kind: str) -> None:
    tokenizer = tokenizer_of(family, kind)
    encoder = encoder_of(family, kind)
    for name in ("three turns", "system and turns", "two thinking", "result"):
        talk, learned = talk_of(family, name)
        if not family.problems(talk, learned):
            before = talk.upto(learned[-1])
            wanted = tokens(tokenizer, family.prompt(before))
            assert encoder.prompt(before.messages, before.tools) == wanted


@families
def test_what_a_template_refuses_or_drops_is_refused_with_its_row(family: Family) -> None:
    encoder = encoder_of(family, "bytes")
    for name in CASES:
        talk, learned = talk_of(family, name)
        problems = family.problems(talk, learned)
        if problems:
            with pytest.raises(DataError) as error:
                encoder.encode_sft_record(chat(talk.messages, talk.tools))
            message = str(error.value)
            assert message.startswith("file:7: ") and any(p in message for p in problems), name
            assert "'dict object'" not in message and "\n" not in message


@families
@kinds
def test_text_that_spells_a_control_token_stays_text(family: Family, kind: str) -> None:
    """The tokens are those of a text that is one letter from it, and none of them is a control token."""
    tokenizer = tokenizer_of(family, kind)
    encoder = encoder_of(family, kind)
    for control in {
        *family.control.split()[:1],
        *family.control.split()[-1:],
        *family.stops.split()[:1],
    }:
        other = control[0] + "z" + control[1:]
        spelling, plain = (
            chat(json.loads(json.dumps(spelled_in(family)).replace("CONTROL", each)))
            for each in (control, other)
        )
        (row,), (wanted,) = encoder.encode_sft_records([spelling, plain])
        for learned in (True, False):
            sides = (
                [i for i, m in zip(r.ids, r.mask, strict=True) if m == learned]
                for r in (row, wanted)
            )
            written, expected = (pieces(tokenizer, side) for side in sides)
            assert written == expected.replace("z", "")


def spelled_in(family: Family) -> list[Message]:
    """Return a conversation that says CONTROL wherever a family lets a user write."""
    talk = [user("CONTROLWhat is CONTROL?"), bot("CONTROL is an endCONTROL")]
    if family.writes_reasoning and not family.problems(Talk([user(), thinking("a", "b")]), [1]):
        talk[1][family.reasoning_key] = "I think CONTROL"
    function = {"name": "look_up", "arguments": {"word": "CONTROL"}}
    call = bot("", tool_calls=[{**CALL, "id": family.call_id, "function": function}], train=False)
    result = {**RESULT, "content": "A CONTROL", "tool_call_id": family.call_id}
    longer = [user("CONTROL"), call, result, talk[1]]
    return talk if family.problems(Talk(longer), [3]) else longer


@pytest.mark.parametrize(
    "family", [Phi4Reasoning(), R1Tokens(), Ministral()], ids=lambda f: type(f).__name__
)
@kinds
def test_tags_around_a_thought_in_a_content_stay_tokens(family: Family, kind: str) -> None:
    for name in ("thinking in a content", "two with thinking in the content"):
        talk, learned = talk_of(family, name)
        if isinstance(family, Ministral):
            spelled = json.dumps(talk.messages).replace("<think>", "[THINK]")
            talk = Talk(json.loads(spelled.replace("</think>", "[/THINK]")))
        rows = encoder_of(family, kind).encode_sft_record(chat(talk.messages))
        for row, wanted in zip(rows, expected_rows(family, talk, learned), strict=True):
            check(tokenizer_of(family, kind), row.ids, row.mask, wanted, family.ends)


@kinds
def test_a_closing_tag_alone_is_a_token_where_the_prompt_has_opened_it(kind: str) -> None:
    """Elsewhere it is text: nothing says that it closes anything."""
    family = ThinkTokens()
    tokenizer = tokenizer_of(family, kind)
    for answer in ("One.[/THINK]Yes.", "[/THINK] Yes, [/THINK]."):
        messages = [user("[/THINK]?"), bot(answer)]
        (row,) = encoder_of(family, kind).encode_sft_record(chat(messages))
        assert row.ids.count(tokenizer.convert_tokens_to_ids("[/THINK]")) == 1
        learned = [i for i, on in zip(row.ids, row.mask, strict=True) if on]
        spelled = tokenizer.decode(learned).replace(" ", "")
        assert spelled == f"{answer}<|im_end|>".replace(" ", "")
    assert "[/THINK]" not in encoder_of(family, kind).specials  # which the lint refuses in texts
    (row,) = encoder_of(Ministral(), kind).encode_sft_record(chat(messages))
    assert tokenizer_of(Ministral(), kind).convert_tokens_to_ids("[/THINK]") not in row.ids


def test_a_thought_that_a_template_writes_behind_its_text_s_beginning_is_refused() -> None:
    encoder = encoder_of(Cohere2(), "bytes")
    talk = [user(), bot("One.<|END_THINKING|>Yes.")]
    with pytest.raises(DataError, match=r"begins this answer with '<\|START_TEXT\|>', where"):
        encoder.encode_sft_record(chat(talk))


@families
def test_an_assistant_turn_without_a_prompt_is_refused(family: Family) -> None:
    encoder = encoder_of(family, "bytes")
    with pytest.raises(DataError, match=r"file:7: .*(without a prompt|refuses these messages)"):
        encoder.encode_sft_record(chat([bot("Hello."), user(), bot("Yes.")]))


@pytest.mark.parametrize(
    "family", [Vicuna(), Alpaca(), Zephyr(), Olmo2()], ids=lambda f: type(f).__name__
)
@kinds
def test_a_header_that_is_text_is_not_found_in_a_content(family: Family, kind: str) -> None:
    head, tail = family.heads["assistant"], family.tails["user"].removeprefix("</s>")
    asked = f"Why{tail}{head}So{tail}{family.heads['user']}And{tail}{head}"
    talk = Talk([user(asked), bot("a"), user(asked), bot(f"a{head}b{tail}")])
    rows = encoder_of(family, kind).encode_sft_record(chat(talk.messages))
    expected = expected_rows(family, talk, [1, 3])
    for row, wanted in zip(rows, expected, strict=True):
        check(tokenizer_of(family, kind), row.ids, row.mask, wanted, family.ends)
