"""Every shape in which people write rows gives the same records."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forty2.data.formats import parse, parse_prompt, read_records, to_row
from forty2.data.record_texts import answer_of, text_of
from forty2.data.records import Chat, Pair, Rated, Text
from forty2.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


OTHER = {"role": "assistant", "content": "b"}


SYSTEM = {"role": "system", "content": "s"}


def core(row: dict[str, Any]) -> Any:
    record = parse(row, "f:1")
    if isinstance(record, Chat):
        return [dict(m) for m in record.messages]
    if isinstance(record, Pair):
        return [dict(m) for m in record.prompt], *map(text_of, (record.chosen, record.rejected))
    if isinstance(record, Rated):
        return [dict(m) for m in record.prompt], text_of(record.response), record.desirable
    return record.text


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "q", "input": "", "output": "a"},
        {"conversation": [{"role": "User", "content": "q"}, {"role": "bot", "text": "a"}]},
        {"prompt": "q", "response": "a"},
        {"question": "q", "answer": "a"},
        {"question": "q", "response": "a"},
        {"instruction": "q", "response": "a", "context": " "},
        {"query": "q", "response": "a"},
        {"input": "q", "output": "a"},
        {"input": [USER], "output": "a"},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, GPT]},
    ],
)
def test_one_conversation_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == [USER, ASSISTANT]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]},
        {"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
        {"instruction": "q", "chosen": "a", "rejected": "b"},
        {"question": "q", "chosen": "a", "rejected": "b"},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"prompt": "q", "chosen_response": "a", "rejected_response": "b"},
        {"messages": [USER, ASSISTANT], "rejected_response": "b"},
        {
            "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [ASSISTANT],
            "non_preferred_output": [OTHER],
        },
        {"input": "q", "chosen": "a", "rejected": "b"},
        {"instruction": "q", "input": "", "output": ["a", "b"]},
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
        {"prompt": "Human: q\n\nAssistant: ", "chosen": "a", "rejected": "b"},
        {
            "prompt": "\n\nHuman: q\n\nAssistant:",
            "chosen": "\n\nHuman: q\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: b",
        },
        {"prompt": "q", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"},
    ],
)
def test_one_pair_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == ([USER], "a", "b")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "completion": "a", "label": False},
        {"messages": [USER, ASSISTANT], "label": False},
        {"conversations": [HUMAN, GPT], "kto_tag": False},
        {"instruction": "q", "output": "a", "kto_tag": False},
        {"question": "q", "answer": "a", "label": 0},
        {"prompt": "q", "response": "a", "label": 0.0},
        {"prompt": "q", "completion": [ASSISTANT], "label": "False"},
        {"prompt": "q", "completion": "a", "label": "0"},
    ],
)
def test_one_rated_answer_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == ([USER], "a", False)


def test_the_turns_of_a_transcript_are_turns() -> None:
    prompt = "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    assert core({"prompt": prompt, "chosen": " a", "rejected": " b"})[0] == [USER, ASSISTANT, USER]
    given = [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT]
    assert core({"prompt": prompt, "completion": " a"}) == given
    assert core({"prompt": prompt, "completion": " a", "label": 1})[1:] == ("a", True)
    assert [dict(m) for m in parse_prompt({"prompt": prompt}, "f:1")] == [USER, ASSISTANT, USER]
    longer = parse(
        {"prompt": prompt, "chosen": " a\n\nHuman: q\n\nAssistant: a", "rejected": "b"}, ""
    )
    assert isinstance(longer, Pair) and longer.chosen == (ASSISTANT, USER, ASSISTANT)
    quoted = "What does \n\nHuman: q\n\nAssistant: mean?"
    assert core({"prompt": quoted, "completion": "a"})[0] == {"role": "user", "content": quoted}


def test_what_surrounds_the_question_is_kept() -> None:
    alpaca = {"instruction": "q2", "input": "about this", "output": "a2", "system": "s"}
    assert core({**alpaca, "history": [["q", "a"]]}) == [
        SYSTEM,
        USER,
        ASSISTANT,
        {"role": "user", "content": "q2\nabout this"},
        {"role": "assistant", "content": "a2"},
    ]
    assert core({"conversations": [HUMAN, GPT], "system": "s"})[0] == SYSTEM
    parts = [{"type": "text", "text": "s"}]
    assert core({"conversations": [HUMAN, GPT], "system": parts})[0] == SYSTEM
    record = parse({"text": "prose", "source": "book"}, "f:1")
    assert isinstance(record, Text) and record.meta == {"source": "book"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {"chosen": [USER, ASSISTANT], "rejected": [SYSTEM, OTHER]},
            "needs a prompt, or chosen and rejected that",
        ),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ({"prompt": "q", "chosen": [SYSTEM, ASSISTANT], "rejected": "b"}, "not the prompt"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "end with an assistant turn"),
        (
            {"conversations": [{"from": "owl", "value": "x"}]},
            "conversations[0].from must be one of system, human, gpt, tool, not 'owl'",
        ),
        ({"messages": [USER], "label": True}, "end with the assistant's turn"),
        ({"messages": [USER, ASSISTANT], "label": "yes"}, "label must be true or false"),
        ({"messages": [USER, ASSISTANT], "label": 0.5}, "label must be true or false, not 0.5"),
        ({"messages": [ASSISTANT, ASSISTANT], "label": 1}, "no turn before the assistant's"),
        (
            {"prompt": "q", "chosen": [ASSISTANT, USER], "rejected": "b"},
            "end with an assistant turn",
        ),
        ({"prompt": "q", "completion": [USER]}, "completion: no assistant turn"),
        ({"prompt": "q", "response": "a", "answer": "b"}, "answer and response may both be"),
        ({"text": "q", "answer": "a"}, "text stands beside answer; rename text to prompt"),
        (
            {"message_id": 1, "parent_id": None, "role": "x", "text": "q"},
            "is one message of a conv",
        ),
        ({"conversation_id": 1, "text": "q"}, "is one message of a conversation"),
        ({"role": "user", "content": "q"}, "is one message of a conversation (it has role)"),
        ({"messages": [USER, ASSISTANT], "images": ["x.png"]}, "images is not used"),
        ({"text": "a", "image": "x.png"}, "image is not used"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "audio": {"path": "x"}},
            "audio is not used",
        ),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "t"}, "system is another text than"),
        (
            {"prompt": "q", "completion": "a", "system": "s", "system_prompt": "t"},
            "system_prompt is",
        ),
        ({"prompt": "q", "completion": "a", "system": 3}, "system must be text, not 3"),
        ({"text": "a", "system": "s"}, "system stands beside text"),
        ({"text": "a", "tools": [{"name": "f"}]}, "tools stand beside text"),
        ({"prompt": "q", "completion": "a", "context": "c"}, "context stands beside prompt"),
        ({"prompt": "q", "response": "a", "history": [["b", "c"]]}, "history stands beside prompt"),
        ({"messages": [USER, ASSISTANT], "documents": ["d"]}, "documents stands beside messages"),
        ({"prompt": "q", "completion": "a", "train": False}, "train is false"),
        ({"messages": [USER, ASSISTANT], "loss": 0}, "loss is 0: a row that is not"),
        ({"messages": [USER, ASSISTANT], "masked": "1"}, "masked is 1: a row that is not"),
        ({"messages": [USER, ASSISTANT], "history": [["b", "c"]]}, "history stands beside mess"),
        ({"messages": [USER, ASSISTANT], "context": "c"}, "context stands beside messages"),
        (
            {"question": "q", "answer": "B", "choices": ["a", "b"]},
            "choices is not used; write them into",
        ),
        *(
            ({"prompt": "q", "completion": "a", key: value}, f"{key} is not used; {advice}")
            for key, value, advice in (
                ("sys", "s", "write it as the row's system, or remove it"),
                ("instructions", "Be brief.", "write it as the row's system"),
                ("System-Instruction", "s", "write it as the row's system"),
                ("tool_list", json.dumps([{"name": "f"}]), "write it as the row's tools"),
                (
                    "specs",
                    [{"function": {"name": "f", "parameters": {}}}],
                    "write it as the row's tools",
                ),
                ("tool_calls", [{"name": "f"}], "write the answer as messages with tool_calls"),
                ("chat_history", [["b", "c"]], "write these turns into the messages"),
                ("previous_messages", [USER], "write these turns into the messages"),
                ("dialogue", [USER], "write these turns into the messages"),
                ("document", "A long text.", "write it into the prompt"),
                ("retrievedPassages", ["A long text."], "write it into the prompt"),
                ("answer_choices", ["a", "b"], "write them into the prompt"),
                ("option_a", 3, "write them into the prompt"),
                ("enable_thinking", False, "set it in the recipe"),
                ("sample_weight", 0.3, "rename it to weight"),
                ("loss_weight", 0.5, "rename it to weight"),
            )
        ),
        ({"question": "q", "A": "b", "B": "c", "answer": "A"}, "A is not used; write them into"),
        (
            {
                "input": {"messages": [USER], "system": "s"},
                "preferred_output": [ASSISTANT],
                "non_preferred_output": [OTHER],
            },
            "input.system is not used; write it as the row's system",
        ),
        ({"prompt": {"0": "q", "1": "r"}, "completion": {"0": "a", "1": "b"}}, "save the table by"),
        ({"prompt": ["q", "r"], "completion": ["a", "b"]}, "holds columns, not a row; save the"),
        ({"7": {"prompt": "q", "completion": "a"}}, "holds rows under names; write them as a list"),
        ({"row_idx": 0, "row": {"prompt": "q", "completion": "a"}}, "holds a row under row"),
        ({"What is it?": "Why?", "It is.": "So."}, "write the names of its columns above it"),
        ({"Question": "q", "Answer": "a"}, "rename Question to question, Answer to answer"),
        ({"source": "q", "target": "a"}, "rename source to prompt, target to completion"),
        ({"instruction": "p", "question": "q", "answer": "a"}, "question and instruction may both"),
        ({"prompt": "q", "instruction": "p", "chosen": "a", "rejected": "b"}, "may both be the pr"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "label": 0}, "label stands beside chosen"),
        ({"prompt": "q", "response": "a", "label": 1, "kto_tag": 0}, "kto_tag stands beside label"),
        ({"prompt": "q", "completion": "a", "tools": ["f"]}, "tools[0] must be an object, not 'f'"),
        (
            {"prompt": "q", "completion": "a", "tools": [{"functionDeclarations": []}]},
            "tools[0] names no function; write it as {name, description, parameters}",
        ),
        *(
            (
                {"prompt": "q", "completion": "a", key: value},
                f"{key} is {str(value).lower()}: a row",
            )
            for key, value in (("ignore", True), ("skip", 1), ("is_train", False))
        ),
        (
            {"prompt": "q", "completion": "a", "tools": "f"},
            "tools must be a list of tools, not 'f'",
        ),
        ({"messages": [USER, {**ASSISTANT, "weight": 0}]}, "no assistant turn is to be learned"),
        ({"prompt": "q", "chosen": [{**ASSISTANT, "weight": 0}], "rejected": "b"}, "to be learned"),
        ({"text": "a", "label": True}, "completion, or instruction and output; has text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "thinking": "因为"}, "thinking stands"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "reasoning": "t"}, "reasoning stands"),
        (
            {"prompt": "q", "completion": [ASSISTANT], "label": 1, "reasoning": "t"},
            "reasoning stan",
        ),
        ({"messages": [USER, ASSISTANT], "reasoning_content": "t"}, "messages as reasoning_cont"),
        ({"prompt": "q", "completion": "a", "reasoning_content": ["t"]}, "must be text, not ['t']"),
        ({"question": "q", "answer": "a", "rationale": "因为"}, "rationale stands beside question"),
        ({"question": "q", "answer": "a", "cot": "t"}, "rename it to reasoning_content"),
        ({"question": "q", "answer": "a", "Chain-of-Thought": "t"}, "Chain-of-Thought stands"),
        ({"text": "a", "thought": "t"}, "thought stands beside text"),
        ({"prompt": "q", "completion": "a", "System": "s"}, "System is not read; rename it to sys"),
        ({"prompt": "q", "completion": "a", "systemPrompt": "s"}, "rename it to system_prompt"),
        ({"messages": [USER, ASSISTANT], "Tools": [{"name": "f"}]}, "rename it to tools"),
        ({"prompt": "q", "completion": "a", "Weight": 2}, "rename it to weight"),
        ({"prompt": "q", "completion": "a", "Label": 0}, "Label stands beside prompt"),
        (
            {"instruction": "q", "Input": "i", "output": "a"},
            "Input is not read; rename it to input",
        ),
        ({"prompt": "q", "completion": "a", "Train": False}, "Train is false"),
        ({"prompt": "q", "completion": "a", "desirable": False}, "desirable is false, and is not"),
        ({"messages": [USER, ASSISTANT], "thumbs_down": 1}, "thumbs_down is 1, and is not used"),
        ({"text": "a", "isGood": "false"}, "isGood is false, and is not used"),
        *(
            ({"prompt": "q", "completion": "a", key: ["x"]}, f"{key} is not used: forty2 trains on")
            for key in ("media", "attachments", "files", "pixel_values", "imageUrls", "Image-Path")
        ),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history[0]"),
        ({"prompt": "q", "completion": ["a"]}, "completion is a list of texts, not of messages"),
        ({"prompt": "q", "completion": [1]}, "completion[0] must be an object with role and"),
        ({"prompt": "q", "completion": [None]}, "completion[0] must be an object"),
        ({"prompt": "q", "response": [[ASSISTANT]], "label": 1}, "response[0] must be an object"),
        ({"question": "q", "answer": ["a", "b"]}, "answer is a list of texts, not of messages"),
        ({"text": ""}, "text is empty"),
        ({"note": 1}, "needs messages"),
    ],
)
def test_a_bad_row_is_named_with_its_field(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as error:
        parse(row, "f:7")
    assert str(error.value).startswith("f:7: ") and complaint in str(error.value)


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS, "chosen": None, "rejected": None, "label": None, "weight": None},
        {"messages": json.dumps(TURNS), "prompt": None},
        {"prompt": json.dumps(TURNS[:1]), "completion": "a", "chosen": None},
        {"prompt": TURNS[:1], "completion": json.dumps(TURNS[1:])},
    ],
)
def test_null_beside_a_shape_says_nothing_and_messages_may_be_written_in_a_text(
    row: dict[str, Any],
) -> None:
    record = parse(row, "rows.jsonl:1")
    assert isinstance(record, Chat)
    assert [dict(message) for message in record.messages] == TURNS and not record.meta


@pytest.mark.parametrize(
    "answer", [json.dumps(TURNS), '[{"id": 1}]', '[{"role": "admin", "content": "x"}]', "[1]", "[{"]
)
def test_an_answer_in_json_that_is_no_message_stays_text(answer: str) -> None:
    record = parse({"prompt": "q", "completion": answer}, "rows.jsonl:1")
    assert isinstance(record, Chat) and record.messages[-1]["content"] == answer


def test_system_texts_lead_every_shape() -> None:
    with_system = [SYSTEM, USER]
    for key in ("system", "system_prompt", "system_message"):
        assert core({"messages": [USER, ASSISTANT], key: "s"}) == [*with_system, ASSISTANT]
        assert core({"messages": [SYSTEM, USER, ASSISTANT], key: " s "})[:2] == with_system
        for prompt in ("q", [USER]):
            pair = {"prompt": prompt, "chosen": "a", "rejected": "b", key: "s"}
            assert core(pair) == (with_system, "a", "b")
        whole = {"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER], key: "s"}
        assert core(whole) == (with_system, "a", "b")
        assert core({"question": "q", "answer": "a", "label": 1, key: "s"})[0] == with_system


def test_a_question_has_its_context_and_an_answer_its_reasoning() -> None:
    row = {"instruction": "q", "context": "c", "response": "a", "category": "x"}
    assert core(row)[0] == {"role": "user", "content": "q\nc"}
    reasoned = {"question": "q", "answer": "a", "reasoning": "since so"}
    assert core(reasoned)[1] == {**ASSISTANT, "reasoning": "since so"}
    assert core({**reasoned, "reasoning": "on"})[1] == ASSISTANT
    chinese = {"prompt": "q", "response": "a", "reasoning_content": "用户在问"}
    assert core(chinese)[1] == {**ASSISTANT, "reasoning_content": "用户在问"}
    assert core({**reasoned, "reasoning": "Addition."})[1]["reasoning"] == "Addition."


def test_sides_of_several_turns_share_what_is_the_same_with_the_prompt() -> None:
    user, end = {"role": "user", "content": "r"}, {"role": "assistant", "content": "c"}
    other_end = {"role": "assistant", "content": "d"}

    def read(chosen: list[Any], rejected: list[Any], **prompt: Any) -> list[list[Any]]:
        pair = parse({"chosen": chosen, "rejected": rejected, **prompt}, "f:1")
        assert isinstance(pair, Pair)
        assert parse(to_row(pair), "f:1") == pair
        return [list(side) for side in (pair.prompt, pair.chosen, pair.rejected)]

    shared = [USER, ASSISTANT, user]
    same = [shared, [end], [other_end]]
    assert read([*shared, end], [*shared, other_end]) == same
    assert read([*shared, end], [*shared, other_end], prompt="q") == same
    assert read([ASSISTANT, user, end], [ASSISTANT, user, other_end], prompt="q") == same
    # Answers that differ from the first on stay whole, and an answer is not split from its end.
    assert read([*shared, end], [USER, OTHER]) == [[USER], [ASSISTANT, user, end], [OTHER]]
    assert read([*shared, end], [USER, ASSISTANT]) == [[USER], [ASSISTANT, user, end], [ASSISTANT]]


def test_what_the_prompt_has_already_may_stand_beside_it() -> None:
    asked = {"prompt": "A long text.\nWhich: 3 or 40?", "completion": "40"}
    kept = {"document": "A long text.", "choices": [3, "40"], "instructions": "Which: 3 or 40?"}
    metadata = {"docs": 7, "function": "f", "passage": "book-1.txt", "A": "x", "turns": 2}
    record = parse({**asked, **kept, **metadata}, "f:1")
    assert record.meta == {**kept, **metadata}
    with pytest.raises(DataError, match="choices is not used"):
        parse({**asked, "choices": ["4"]}, "f:1")


def test_tools_are_read_in_every_shape_and_written_again() -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": function}
    chat = {"messages": [USER, ASSISTANT]}
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    shapes: list[dict[str, Any]] = [chat, pair, {"prompt": "q", "completion": "a", "label": True}]
    offers: list[tuple[str, Any]] = [
        ("tools", [tool]),
        ("tools", json.dumps([tool])),
        ("tools", [function]),
        ("tools", [{"type": "function", **function}]),
        ("tools", [{"name": "f", "input_schema": {"type": "object"}}]),
        ("functions", [function]),
        ("available_tools", [function]),
    ]
    for row in shapes:
        for key, value in offers:
            record = parse({**row, key: value}, "f:1")
            assert not isinstance(record, Text) and record.tools == (tool,)
            assert parse(to_row(record), "f:1") == record
    preference: dict[str, Any] = {
        "input": {"messages": [USER], "tools": [tool]},
        "preferred_output": [ASSISTANT],
    }
    record = parse({**preference, "non_preferred_output": [OTHER]}, "f:1")
    assert isinstance(record, Pair) and record.tools == (tool,)
    assert parse({**chat, "tools": "", "functions": None}, "f:1").meta == {}


ROW = re.compile(r"^\| `(\{.*\})` \| (\w+) \|$", re.MULTILINE)
KINDS = {"conversation": Chat, "text": Text, "pair": Pair, "rated": Rated}


def test_every_shape_of_the_manual_is_read_as_it_says() -> None:
    page = Path(__file__).parents[2] / "docs" / "data.md"
    shapes = ROW.findall(page.read_text("utf-8"))
    assert len(shapes) >= 20
    for number, (written, kind) in enumerate(shapes):
        record = parse(json.loads(written), f"data.md:{number}")
        assert type(record) is KINDS[kind], written
        assert parse(to_row(record), f"data.md:{number}") == record
        assert "a" in answer_of(record) or isinstance(record, Rated)


def test_published_files_are_read(bench_data: Path) -> None:
    folder = bench_data / "preference"
    dpo = read_records(folder / "llamafactory_dpo_en_demo.json")
    kto = read_records(folder / "llamafactory_kto_en_demo.json")
    assert len(dpo) == len(kto) == 300
    assert all(isinstance(record, Pair) for record in dpo)
    assert sum(isinstance(r, Rated) and r.desirable for r in kto) == 150
    with pytest.raises(DataError, match=r"ultrafeedback_binarized_sample_train_1000.jsonl:\d+: "):
        read_records(folder / "ultrafeedback_binarized_sample_train_1000.jsonl")


_ODD = st.sampled_from(
    [
        *("", " ", "null", "[]", "[1]", '["a"]', "{}", '{"role": "user"}', "[{", "\n\nHuman: q"),
        *(json.dumps([USER]), json.dumps([ASSISTANT]), json.dumps([USER, ASSISTANT])),
        *("\n\nHuman: q\n\nAssistant:", "Human:\n\nAssistant:", "\n\nHuman: q\n\nAssistant: a"),
        *(" a", "\n\nAssistant: a", "a\n\nHuman: q\n\nAssistant: b", "<|im_start|>", "é"),
    ]
) | st.text(max_size=4)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    prompt=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), _ODD), max_size=3),
    answers=st.tuples(_ODD, _ODD),
    others=st.dictionaries(
        st.sampled_from(["question", "query", "answer", "text", "messages", "note", "weight"]),
        _ODD | st.just(2),
        max_size=2,
    ),
)
def test_a_written_row_is_read_as_the_same_record(
    prompt: list[tuple[str, str]], answers: tuple[str, str], others: dict[str, Any]
) -> None:
    asked = [{"role": role, "content": text} for role, text in prompt]
    better, worse = ([{"role": "assistant", "content": text}] for text in answers)
    for row in (
        {"messages": [*asked, *better]},
        {"messages": [*asked, *better], "label": True},
        {"prompt": asked, "chosen": better, "rejected": worse},
        {"prompt": answers[0], "completion": answers[1]},
        {"prompt": answers[0], "completion": answers[1], "label": False},
    ):
        with contextlib.suppress(DataError):
            record = parse({**others, **row}, "f:1")
            written = json.loads(json.dumps(to_row(record)))
            try:
                again = parse(written, "f:1")
            except DataError as error:
                raise AssertionError(written) from error
            assert replace(again, meta={}) == replace(record, meta={})
            assert to_row(again) == written


def test_a_plain_turn_is_written_as_its_text() -> None:
    for row in (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "completion": "a", "label": True},
    ):
        assert to_row(parse(row, "f:1")) == row
