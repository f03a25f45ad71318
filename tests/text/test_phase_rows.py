"""A phase's files are read once, and the rows, findings and hits are those of separate readings."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forty2.data.checks.contamination import Benchmark, ContaminationFinder
from forty2.data.checks.lint import Linter, lint
from forty2.data.formats import read_chats, read_pairs, read_rated, read_records
from forty2.data.sources import dumps
from forty2.errors import DataError
from forty2.model.loading import LoadedModel
from forty2.text.encoder import Encoder
from forty2.text.phase_rows import PhaseRows, read_phase_rows
from forty2.text.row_kinds import CONVERSATIONS, PAIRS, RATED, RowKind
from forty2.text.rows import add_mismatched_responses, fit_rows

LENGTH = 60
ITEMS = [["What is the colour of a flag?", "Red and green.", "Blue."], ["Who was it then?", "Me."]]
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def encoder(starter: LoadedModel) -> Encoder:
    return Encoder(starter.tokenizer)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file is opened as data."""
    count: Counter[str] = Counter()
    real = Path.open

    def counting(path: Path, *args: Any, **options: Any) -> Any:
        count[path.name] += 1
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", counting)
    return count


def texts(seed: int) -> Iterator[str]:
    generator = random.Random(seed)
    while True:
        letters = "".join(generator.choices("aeioulmnrst", k=4000))
        cut = generator.randint(5, 9)
        yield from (f"{letters[i : i + cut].capitalize()} it is." for i in range(0, 4000, cut))


def conversations(n: int, seed: int = 0) -> Rows:
    text = texts(seed)
    return [{"prompt": next(text), "completion": next(text)} for _ in range(n)]


def pairs(n: int, seed: int = 0) -> Rows:
    text = texts(seed)
    return [{"prompt": next(text), "chosen": next(text), "rejected": next(text)} for _ in range(n)]


def rated(n: int, seed: int = 0) -> Rows:
    chats = [{**row, "label": i % 2 == 0} for i, row in enumerate(conversations(n, seed))]
    return [*chats, *pairs(n, seed + 1)]


def long(rows: Rows, key: str) -> Rows:
    """The rows and two that do not fit: one by its prompt, one by its response."""
    return [*rows, {**rows[0], "prompt": "so it was " * 60}, {**rows[1], key: "then and " * 60}]


MADE: dict[str, tuple[RowKind, Callable[[int, int], Rows], str]] = {
    "conversations": (CONVERSATIONS, conversations, "completion"),
    "pairs": (PAIRS, pairs, "chosen"),
    "rated": (RATED, rated, "completion"),
}


@pytest.fixture
def files(tmp_path: Path) -> Callable[[Rows, Rows], tuple[Path, Path]]:
    def write(train: Rows, valid: Rows) -> tuple[Path, Path]:
        for name, rows in (("train", train), ("valid", valid)):
            (tmp_path / f"{name}.jsonl").write_text(dumps(rows))
        return tmp_path / "train.jsonl", tmp_path / "valid.jsonl"

    return write


Files = Callable[[Rows, Rows], tuple[Path, Path]]


def read(
    kind: RowKind, train: Path, valid: Path | None, encoder: Encoder, *, checked: bool = True
) -> PhaseRows:
    linter = Linter(specials=encoder.specials) if checked else None
    finder = ContaminationFinder([Benchmark("items", ITEMS)])
    return read_phase_rows(kind, train, valid, encoder, LENGTH, linter=linter, contamination=finder)


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("checked", [True, False])
def test_each_file_is_opened_once(
    name: str, checked: bool, encoder: Encoder, files: Files, opened: Counter[str]
) -> None:
    kind, made, _ = MADE[name]
    train, valid = files(made(20, 0), made(5, 9))
    opened.clear()
    read(kind, train, valid, encoder, checked=checked)
    assert opened["train.jsonl"] == opened["valid.jsonl"] == 1


@pytest.mark.parametrize("name", MADE)
def test_rows_and_hits_are_those_of_separate_readings(
    name: str, encoder: Encoder, files: Files
) -> None:
    kind, made, key = MADE[name]
    rows = long(made(600, 0), key)
    rows[7]["prompt"] = "What is the colour of a flag?"
    train, valid = files(rows, made(30, 9))
    found = read(kind, train, valid, encoder)
    assert found.valid is not None
    for path, got in ((train, found.train), (valid, found.valid)):
        encoded: list[Any]
        if kind is CONVERSATIONS:
            encoded = encoder.encode_sft(read_chats(path))
        elif kind is PAIRS:
            encoded = [encoder.encode_pair(record) for record in read_pairs(path)]
        else:
            encoded = [encoder.encode_rated(record) for record in read_rated(path)]
        wanted = fit_rows(encoded, LENGTH)
        if kind is RATED:
            wanted = wanted._replace(rows=add_mismatched_responses(wanted.rows, LENGTH))
        assert got == wanted
    assert len(found.train.shortened) == len(found.train.dropped) == 1
    finder = ContaminationFinder([Benchmark("items", ITEMS)])
    hits = sorted(hit for record in read_records(train) for hit in finder.find(record))
    assert found.hits == hits and [hit.row for hit in hits] == [f"{train}:8"]


def test_the_linter_finds_what_it_finds_alone(encoder: Encoder, files: Files) -> None:
    """A pair among rated responses is linted as the pair that it is."""
    rows = [*rated(60), {"prompt": "q"}, {"prompt": "Hi", "chosen": "A \x07.", "rejected": "B."}]
    train, valid = files([*rows, rows[3]], [rows[9]])
    linter = Linter(specials=encoder.specials)
    with pytest.raises(DataError, match=r"train.jsonl:121: needs messages"):
        read_phase_rows(RATED, train, valid, encoder, LENGTH, linter=linter)
    assert linter.findings() == lint(train, valid, specials=encoder.specials)
    assert {f.check for f in linter.findings()} >= {"row", "control", "duplicate", "overlap"}


def test_the_linters_warnings_are_returned(encoder: Encoder, files: Files) -> None:
    train, _ = files(
        [*conversations(20), {"prompt": "Who?", "completion": "Ask jo.doe@gmail.com."}], []
    )
    found = read(CONVERSATIONS, train, None, encoder)
    assert found.lint_warnings == lint(train, specials=encoder.specials) != []
    assert read(CONVERSATIONS, train, None, encoder, checked=False).lint_warnings == []


def test_the_linters_errors_come_before_rows_that_cannot_be_encoded(
    encoder: Encoder, files: Files
) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    unwritten = {"messages": [{"role": "user", "content": "q"}, calling]}
    train, _ = files([unwritten, *conversations(30)], [])
    with pytest.raises(DataError, match=r"train.jsonl:1: messages\[1\]: the chat template does"):
        read(CONVERSATIONS, train, None, encoder)
    first = conversations(30)[0]
    train.write_text(train.read_text() + dumps([first]))
    with pytest.raises(DataError, match="repeats an earlier training row"):
        read(CONVERSATIONS, train, None, encoder)
    with pytest.raises(DataError, match=r"train.jsonl:1: messages\[1\]: the chat template does"):
        read(CONVERSATIONS, train, None, encoder, checked=False)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        (CONVERSATIONS, pairs(3), "valid.jsonl:1: is a preference pair"),
        (PAIRS, conversations(3), "valid.jsonl:1: chosen is missing"),
        (RATED, conversations(3), "valid.jsonl:1: needs a label"),
        (PAIRS, [], "valid.jsonl: is empty"),
    ],
    ids=["pair", "chat", "unrated", "none"],
)
def test_rows_of_another_kind_are_named(
    kind: RowKind, rows: Rows, message: str, checked: bool, encoder: Encoder, files: Files
) -> None:
    made = next(made for other, made, _ in MADE.values() if other is kind)
    train, valid = files(made(30, 5), rows)
    with pytest.raises(DataError) as error:
        read(kind, train, valid, encoder, checked=checked)
    assert message in str(error.value)


def test_no_row_that_fits_is_an_error(encoder: Encoder, files: Files) -> None:
    rows = [{**row, "completion": "word " * 100} for row in conversations(3)]
    train, _ = files(rows, [])
    with pytest.raises(DataError, match=r"no row's response fits into max_length 60"):
        read(CONVERSATIONS, train, None, encoder, checked=False)


@pytest.mark.parametrize(
    ("systems", "usual"),
    [(["Be brief."] * 3 + ["", "Be kind."], "Be brief."), (["A", "B"], ""), (["", "", "A"], "")],
)
def test_the_system_prompt_of_most_training_rows_is_the_usual_one(
    encoder: Encoder, tmp_path: Path, systems: list[str], usual: str
) -> None:
    rows = [
        {"prompt": f"Question {n}?", "completion": "Yes.", **({"system": s} if s else {})}
        for n, s in enumerate(systems)
    ]
    train, valid = tmp_path / "train.jsonl", tmp_path / "valid.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    valid.write_text(json.dumps({"prompt": "?", "completion": "Yes.", "system": "Z"}) + "\n")
    assert read_phase_rows(CONVERSATIONS, train, valid, encoder, 99).system == usual
