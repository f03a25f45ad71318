"""Every shape in which people write rows gives the same records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forty2.data.formats import parse, read_records
from forty2.data.records import Chat, Pair, Rated, Text
from forty2.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}


OTHER = {"role": "assistant", "content": "b"}


CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


SYSTEM = {"role": "system", "content": "s"}


def core(row: dict[str, Any]) -> Any:
    record = parse(row, "f:1")
    if isinstance(record, Chat):
        return [dict(m) for m in record.messages]
    if isinstance(record, Pair):
        return [dict(m) for m in record.prompt], record.chosen, record.rejected
    if isinstance(record, Rated):
        return [dict(m) for m in record.prompt], record.response, record.desirable
    return record.text


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [HUMAN, GPT]},
        {"prompt": "q", "completion": "a"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "q", "input": "", "output": "a"},
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
    ],
)
def test_one_rated_answer_in_every_shape(row: dict[str, Any]) -> None:
    assert core(row) == ([USER], "a", False)


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
    record = parse({"text": "prose", "source": "book"}, "f:1")
    assert isinstance(record, Text) and record.meta == {"source": "book"}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"chosen": [USER, ASSISTANT], "rejected": [SYSTEM, OTHER]}, "differ in the last turn"),
        ({"chosen": "a", "rejected": "b"}, "prompt is missing"),
        ({"prompt": "q", "chosen": [SYSTEM, ASSISTANT], "rejected": "b"}, "not the prompt"),
        ({"prompt": "q", "chosen": [USER], "rejected": "b"}, "end with an assistant turn"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "conversations[0].role"),
        ({"messages": [USER], "label": True}, "end with the assistant's turn"),
        ({"messages": [USER, ASSISTANT], "label": "yes"}, "label must be true or false"),
        ({"messages": [USER, CALL], "label": True}, "messages ends with a tool call"),
        ({"prompt": "q", "chosen": [CALL], "rejected": "b"}, "chosen ends with a tool call"),
        ({"text": "a", "label": True}, "completion, or instruction and output; has text"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "history[0]"),
        ({"text": ""}, "text is empty"),
        ({"note": 1}, "needs messages"),
    ],
)
def test_a_bad_row_is_named_with_its_field(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError) as error:
        parse(row, "f:7")
    assert str(error.value).startswith("f:7: ") and complaint in str(error.value)


def test_published_files_are_read(bench_data: Path) -> None:
    folder = bench_data / "preference"
    dpo = read_records(folder / "llamafactory_dpo_en_demo.json")
    kto = read_records(folder / "llamafactory_kto_en_demo.json")
    assert len(dpo) == len(kto) == 300
    assert all(isinstance(record, Pair) for record in dpo)
    assert sum(isinstance(r, Rated) and r.desirable for r in kto) == 150
    with pytest.raises(DataError, match=r"ultrafeedback_binarized_sample_train_1000.jsonl:\d+: "):
        read_records(folder / "ultrafeedback_binarized_sample_train_1000.jsonl")
