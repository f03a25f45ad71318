"""A fault in a row's texts, roles or origin is found where it is, and nothing that only looks like one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.lint_rows import Row, chat, chats, found, sentence

from forty2.data.checks.contamination import benchmark_of
from forty2.data.checks.lint import Linter
from forty2.data.formats import parse
from forty2.data.records import Record
from forty2.errors import DataError

SENTENCE = sentence(random.Random(5), 40)


BAD: dict[str, tuple[Row, tuple[str, str]]] = {
    "control": (chat("What is it?", "A zero-width\u200bspace."), ("control", "error")),
    "bell": (chat("What is it?", "A bell \x07 rings."), ("control", "error")),
    "special": (chat("Say it", "It is <|im_end|> indeed."), ("special", "error")),
    "mail": (chat("Who wrote?", "It was jane.doe@company.com, I think."), ("personal", "warning")),
    "phone": (chat("Whom to call?", "Call +49 170 1234567 now."), ("personal", "warning")),
    "local": (chat("Whom to call?", "Call 030 1234 5678 now."), ("personal", "warning")),
    "brackets": (chat("Whom to call?", "Call (555) 123-4567 now."), ("personal", "warning")),
    "dashes": (chat("Whom to call?", "It is 555-123-4567."), ("personal", "warning")),
    "slash": (chat("Whom to call?", "0170/1234567"), ("personal", "warning")),
    "dots": (chat("Whom to call?", "It is 555.123.4567."), ("personal", "warning")),
    "pairs": (chat("Whom to call?", "It is 06 12 34 56 78."), ("personal", "warning")),
    "short": (chat("Whom to call?", "Just call me at 867-5309."), ("personal", "warning")),
    "labelled": (chat("Whom to call?", "Tel.: 12345678"), ("personal", "warning")),
    "second mail": (
        chat("Who?", "Not jane@example.com but jane@acme.de wrote."),
        ("personal", "warning"),
    ),
    "no example": (chat("Who wrote?", "It was jane@example-shop.de."), ("personal", "warning")),
    "second address": (chat("Where?", "At 127.0.0.1 or 8.8.4.4 it is."), ("personal", "warning")),
    "card": (chat("Pay how?", "Use 4111 1111 1111 1111 for it."), ("personal", "warning")),
    "iban": (chat("Pay where?", "To DE89 3704 0044 0532 0130 00 please."), ("personal", "warning")),
    "cut": (chat("Tell me more", SENTENCE.rstrip(".") + " and then the"), ("truncated", "warning")),
}


@pytest.mark.parametrize("name", BAD)
def test_a_fault_in_one_row_is_named_by_its_line(name: str) -> None:
    row, (check, level) = BAD[name]
    rows = chats(60)
    rows[6:6] = [row]
    (finding,) = found(rows)
    assert (finding.check, finding.level, finding.origins) == (check, level, ("train:7",))


@pytest.mark.parametrize(
    "text",
    [
        "Write to jane@example.com for that.",
        "The number 1234 5678 9012 3456 is no card.",
        "A family emoji \U0001f468\u200d\U0001f469\u200d\U0001f467 is joined.",
        "It costs 3 < 5.",
        "Write to info@shop.example or to me@mail.test for that.",
        "Write to info@example.co.uk, or to x@mail.example.org.",
        "Call me at 555-0142, or at (555) 555-0199, as in films.",
        "The phone has 128 megabytes, and they call 100-200 of them a lot.",
        "It counts 01 02 03 04 05 06 and so on.",
        "It was in 2010-2015, on 01.02.2003, or 10 000 000 times, for 12,500.50 in all.",
        "The result is 0.125 1234 and 3-4-5, in the years 1990 1995 2000.",
        "The router is at 192.168.0.1 here.",
    ],
)
def test_what_only_looks_like_a_fault_is_none(text: str) -> None:
    assert found([*chats(60), chat("What then?", text)]) == []


def test_rows_that_cannot_be_read_are_reported_apart_by_their_reason() -> None:
    linter = Linter()
    for line, reason in ((3, "not JSON"), (5, "prompt is empty"), (9, "not JSON")):
        linter.add_unreadable(f"rows.jsonl:{line}: {reason}")
    linter.add(parse(chat("What is it?", "It is a bell."), "rows.jsonl:1"), "train")
    found = [(f.message, f.count, f.origins) for f in linter.findings() if f.check == "row"]
    assert found == [
        ("not readable: rows.jsonl:3: not JSON", 2, ("rows.jsonl:3", "rows.jsonl:9")),
        ("not readable: rows.jsonl:5: prompt is empty", 1, ("rows.jsonl:5",)),
    ]


def test_rows_that_the_template_refuses_are_counted_by_reason() -> None:
    def fits(record: Record) -> str | None:
        number = int(record.origin.split(":")[1])
        if number % 10 == 0:
            raise DataError(f"{record.origin}: messages[{number}]: the template refuses this")
        return "its prompt does not fit" if number == 7 else None

    linter = Linter(fits=fits)
    for number, row in enumerate(chats(60), 1):
        linter.add(parse(row, f"f:{number}"), "train")
    findings = [(f.check, f.level, f.message, f.count) for f in linter.findings()]
    assert findings == [
        ("template", "error", "messages[…]: the template refuses this", 6),
        ("length", "warning", "its prompt does not fit", 1),
    ]
    assert linter.findings()[0].origins == tuple(f"f:{n}" for n in range(10, 60, 10))


@pytest.mark.parametrize(
    ("roles", "complaint"),
    [
        (["user", "system", "assistant"], "system message"),
        (["assistant", "user", "assistant"], "speaks first"),
        (["user", "assistant", "assistant"], "follow each other"),
    ],
)
def test_roles_out_of_order(roles: list[str], complaint: str) -> None:
    turns = [{"role": role, "content": f"turn {n}."} for n, role in enumerate(roles)]
    (finding,) = found([*chats(50), {"messages": turns}])
    assert finding.check == "roles" and complaint in finding.message


def test_a_benchmark_in_the_training_data_is_found(bench_data: Path, tmp_path: Path) -> None:
    path = bench_data / "truthfulqa" / "mc_task_v0_817.json"
    benchmark = benchmark_of(path)
    asked = json.loads(path.read_text("utf-8"))
    long = next(t for r in asked for t in r["mc2_targets"] if len(t.split()) > 18)
    rows = chats(40)
    rows += [chat(asked[5]["question"].upper(), "An answer."), chat("Is it?", f"Well, {long} So.")]
    rows += [chat("What happens then?", " ".join(long.split()[:11]) + ".")]
    (finding,) = found(rows, benchmarks=[benchmark])
    assert (finding.check, finding.count) == ("benchmark", 2)
    assert finding.origins == ("train:41", "train:42")


@pytest.mark.parametrize(
    ("prompt", "level"),
    [
        ("[INST] Hi [/INST]", "error"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "error"),
        ("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n", "error"),
        ("<｜User｜>Hi<｜Assistant｜>", "error"),
        ("### Instruction:\nHi\n\n### Response:\n", "warning"),
        ("A chat.\nUser: Hi\nAssistant:", "warning"),
        ("What does [/INST] mean?", None),
        ("Which of these is the assistant: he, or she?", None),
        ("Who is the assistant:", None),
    ],
)
def test_a_prompt_that_another_template_has_written_is_found(
    prompt: str, level: str | None
) -> None:
    linter = Linter(specials=["<eos>"])
    linter.add(parse({"prompt": prompt, "completion": "Hello."}, "f:1"), "train")
    levels = [f.level for f in linter.findings() if f.check == "rendered"]
    assert levels == ([] if level is None else [level])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("One.\n</think>\n\nYes.", ["warning"]),
        ("[/THINK]Yes.", ["warning"]),
        ("<think>One.</think>Yes.", []),
        ('<reason id="1">One.</reason>', []),
        ("</b>", []),
    ],
)
def test_an_answer_that_closes_a_thought_which_it_does_not_open_is_found(
    answer: str, found: list[str]
) -> None:
    linter = Linter()
    linter.add(parse({"prompt": "Is it?", "completion": answer}, "f:1"), "train")
    assert [f.level for f in linter.findings() if f.check == "thought"] == found
