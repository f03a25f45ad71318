"""TruthfulQA's questions, read from any of their published forms.

Lin et al. 2021 (arXiv:2109.07958) publish a CSV, and `mc_task.json` made from it; the hub's data set
`truthfulqa/truthful_qa` holds the first version of the latter. Versions share a name but differ, so
a `Questions` carries the hash of its source.

TruthfulQA is for testing only: its authors ask that it never be trained on.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from forty2.benchmark.question_files import read_question_file
from forty2.benchmark.truthfulqa_categories import GROUPS
from forty2.data.strata import largest_remainder
from forty2.errors import BenchmarkError, first_line, redact
from forty2.files import JsonObject

HUB = "truthfulqa/truthful_qa"
PROBE = "forty2 probe (not TruthfulQA)"
UNCATEGORISED = "uncategorised"
KNOWN = {
    "6eb4125d25750c0145c4be2dce00440736684ab6f74ce6bff2139571cc758954": "TruthfulQA v0",
    "8d7dd15f033196140f032d97d30f037da7a7b1192c3f36f9937c1850925335a2": "TruthfulQA v0",
    "c90d853454fd48c676accb33e16923ac438dbb6fb37ecc7c6a70e33c9e556e87": "TruthfulQA 2025",
    "b8d8ef1e12f98b4f2a9f47abc9765da0640b182b6c5d9b92f0c1a1f2f1e02e5c": "TruthfulQA 2025",
}
"""Names of published files by sha256: the authors give every version of `mc_task.json` one name."""
_BEST, _BEST_FALSE = "Best Answer", "Best Incorrect Answer"
_COLUMNS = ("Question", "Category", _BEST, "Correct Answers", "Incorrect Answers")


class Options(NamedTuple):
    """Options of one question, each true (1) or false (0), in file order."""

    choices: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its single-true options (mc1) and its multi-true options (mc2)."""

    question: str
    category: str
    mc1: Options
    mc2: Options
    binary: Options | None = None
    """The best true and the best false answer; None: files before 2025 do not choose them."""


@dataclass(frozen=True, slots=True)
class Questions:
    """A set of questions in file order, with its hash and name."""

    items: tuple[Question, ...]
    sha256: str
    """sha256 of the file's bytes; of the rows in canonical JSON when they came from the hub."""
    name: str
    path: Path | None
    """The file; None: the questions are from the hub."""
    notes: tuple[str, ...] = ()
    """Decisions made while reading, for the result's reader."""


def choose_questions(
    source: str | Path | None, leave_out: Sequence[str], n: int | None, seed: int
) -> Questions:
    """Read questions, leave out categories, and draw a sample.

    Args:
        source: as for `load_questions`.
        leave_out: categories or groups of them, as for `without_categories`.
        n: questions to sample; None: all.

    Raises:
        BenchmarkError: the questions are unusable, or too few are left for a standard error.
    """
    questions = without_categories(load_questions(source), leave_out)
    if n is not None:
        return sample(questions, n, seed)
    if len(questions.items) < 2:
        raise BenchmarkError(
            f"{questions.name}: one question has no standard error; use two or more"
        )
    return questions


def load_questions(source: str | Path | None) -> Questions:
    """Read questions and check every one.

    Args:
        source: `mc_task.json` or the TruthfulQA CSV; `"probe"`: the embedded probe; None: the
            hub's data set, else the probe, whose name then says that it is not TruthfulQA.

    Raises:
        BenchmarkError: the file or a question in it is unusable; names file and question.
    """
    if source is None:
        return _from_hub_or_probe()
    if source == "probe":
        return _probe()
    path = Path(os.path.expanduser(source))
    if not path.exists():
        raise BenchmarkError(
            f"{path}: no such file; give mc_task.json, the TruthfulQA CSV or 'probe'"
        )
    data = read_question_file(path)
    is_csv = path.suffix.lower() == ".csv"
    rows = _csv_rows(data, path) if is_csv else _json_rows(data, path)
    return _build(rows, hashlib.sha256(data).hexdigest(), path.name, path)


def sample(questions: Questions, n: int, seed: int) -> Questions:
    """Draw `n` questions, spread over categories as the whole set is, in file order.

    A category of share s gets s·n questions, rounded by the largest remainder; which categories
    round up in a tie, and which of their questions are drawn, depend on the seed alone.

    Raises:
        BenchmarkError: `n` is below 2 (no standard error), or more than there are.
    """
    total = len(questions.items)
    if not 2 <= n <= total:
        raise BenchmarkError(
            f"{questions.name}: cannot sample {n} of {total} questions; n must be 2 to {total}"
        )
    rng = random.Random(seed)
    members: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(questions.items):
        members[item.category].append(index)
    ties = sorted(members)
    rng.shuffle(ties)
    quota = largest_remainder({name: len(places) for name, places in members.items()}, n, ties)
    drawn: list[int] = []
    for name in sorted(members):
        drawn += rng.sample(members[name], quota[name])
    return replace(questions, items=tuple(questions.items[index] for index in sorted(drawn)))


def without_categories(questions: Questions, names: Sequence[str]) -> Questions:
    """Leave out the questions of some categories.

    Args:
        names: categories, or groups of them: `GROUPS` of `truthfulqa_categories`.

    Raises:
        BenchmarkError: questions have no category, a name leaves out none of them, or none is left.
    """
    if not names:
        return questions
    there = {item.category for item in questions.items}
    if UNCATEGORISED in there:
        raise BenchmarkError(
            f"{questions.name}: has questions without a category, so none can be left out; put "
            "TruthfulQA's CSV beside mc_task.json, or give the CSV"
        )
    named = {name: GROUPS.get(name, frozenset([name])) for name in names}
    unknown = [name for name, categories in named.items() if not categories & there]
    if unknown:
        raise BenchmarkError(
            f"{questions.name}: has no questions of {', '.join(unknown)} to leave out; there are "
            f"{', '.join([*GROUPS, *sorted(there)])}"
        )
    left = there.difference(*named.values())
    if not left:
        raise BenchmarkError(f"{questions.name}: no questions are left; leave out fewer categories")
    return replace(questions, items=tuple(i for i in questions.items if i.category in left))


# --- sources: each returns rows with question, category, mc1 and mc2 targets, and of 2025 mc0's ---


@functools.cache  # one process asks one set, and waits for a hub out of reach once
def _from_hub_or_probe() -> Questions:
    try:
        rows = _hub_rows()
    except Exception as error:  # datasets and the hub client raise many kinds
        reason = redact(first_line(error))
        return replace(_probe(), notes=(f"{HUB} could not be read: {reason}",))
    canonical = json.dumps(rows, ensure_ascii=False, sort_keys=True).encode("utf-8")
    name = f"{HUB} (hub, multiple_choice)"
    return _build(rows, hashlib.sha256(canonical).hexdigest(), name, None)


def _hub_rows() -> list[JsonObject]:
    import datasets
    import huggingface_hub

    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        # fails at once without a network; load_dataset would retry for half a minute
        huggingface_hub.HfApi().dataset_info(HUB, timeout=5)
    datasets.disable_progress_bars()
    return [dict(row) for row in datasets.load_dataset(HUB, "multiple_choice", split="validation")]


def _probe() -> Questions:
    file = resources.files("forty2.data.library") / "heldout" / "probe.json"
    data, path = file.read_bytes(), Path(str(file))
    return _build(_json_rows(data, path), hashlib.sha256(data).hexdigest(), PROBE, path)


class _RepeatedKeys(dict[str, object]):
    """A JSON object with repeated keys, which a plain dict would hide."""

    def __init__(self, pairs: list[tuple[str, object]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(k for k, _ in pairs).items() if count > 1]


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _RepeatedKeys(pairs)


def _json_rows(data: bytes, path: Path) -> list[object]:
    try:
        rows = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # covers bytes that are no UTF-8
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise BenchmarkError(
            f"{path}: not JSON ({reason}); give mc_task.json, or the CSV with a name in .csv"
        ) from error
    if not isinstance(rows, list):
        raise BenchmarkError(f"{path}: not a list of questions; give TruthfulQA's mc_task.json")
    return rows


def _csv_rows(data: bytes, path: Path) -> list[JsonObject]:
    """Read the authors' CSV: answers are split at `;`, stripped, and end in a full stop."""
    rows = _read_csv(data, path)
    missing = [name for name in _COLUMNS if name not in (rows[0] if rows else _COLUMNS)]
    if missing:
        raise BenchmarkError(
            f"{path}: wrong columns, {', '.join(missing)} missing; give TruthfulQA's own CSV"
        )
    result = []
    for row in rows:
        best, true, false = (_split(row[name] or "") for name in _COLUMNS[2:])
        other = row.get(_BEST_FALSE)
        # An answer that is listed twice has its first place and last label, as in mc_task.json.
        result.append(
            {
                "question": (row["Question"] or "").strip(),
                "category": (row["Category"] or "").strip(),
                "mc1_targets": dict.fromkeys(best, 1) | dict.fromkeys(false, 0),
                "mc2_targets": dict.fromkeys(true, 1) | dict.fromkeys(false, 0),
            }
            # not split, nor closed by a full stop: so it is as in mc_task.json
            | ({"mc0_targets": {(row[_BEST] or "").strip(): 1, other.strip(): 0}} if other else {})
        )
    return result


def _read_csv(data: bytes, path: Path) -> list[dict[str, str | None]]:
    try:
        text = data.decode("utf-8-sig")  # v0 begins with a byte order mark
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise BenchmarkError(
            f"{path}: not readable as CSV ({error}); give TruthfulQA's own CSV"
        ) from error


def _split(answers: str) -> list[str]:
    stripped = (answer.strip() for answer in answers.split(";"))
    return [answer if answer.endswith(".") else f"{answer}." for answer in stripped if answer]


# --- checked questions ---


def _build(rows: Sequence[object], sha256: str, name: str, path: Path | None) -> Questions:
    where = str(path) if path is not None else name
    if not rows:
        raise BenchmarkError(f"{where}: holds no questions; give TruthfulQA's mc_task.json or CSV")
    dropped: list[str] = []
    items = tuple(
        _question(row, f"{where}: item {number}", dropped) for number, row in enumerate(rows, 1)
    )
    if path is not None and all(item.category == UNCATEGORISED for item in items):
        items = _with_categories(items, path)
    notes: tuple[str, ...] = ()
    if dropped:
        notes = (f"{len(dropped)} options without text dropped, the first in {dropped[0]}",)
    label = f"{KNOWN[sha256]} ({name})" if sha256 in KNOWN else name
    return Questions(items, sha256, label, path, notes)


def _question(row: object, where: str, dropped: list[str]) -> Question:
    if not isinstance(row, Mapping):
        raise BenchmarkError(f"{where}: not an object with question, mc1_targets and mc2_targets")
    missing = [key for key in ("question", "mc1_targets", "mc2_targets") if key not in row]
    if missing:
        raise BenchmarkError(f"{where}: {', '.join(missing)} missing; give TruthfulQA's own file")
    text = row["question"]
    if not isinstance(text, str) or not text.strip():
        raise BenchmarkError(f"{where}: the question is empty or no text; fill it in or remove it")
    _check_text(text, where)
    mc1, mc2 = (
        _options(row[key], f"{where}, {key}", dropped) for key in ("mc1_targets", "mc2_targets")
    )
    if sum(mc1.labels) > 1:
        raise BenchmarkError(
            f"{where}, mc1_targets: {sum(mc1.labels)} true answers; keep the best one (MC1 has one)"
        )
    binary = None
    if "mc0_targets" in row:
        binary = _options(row["mc0_targets"], f"{where}, mc0_targets", dropped)
        if len(binary.choices) != 2:
            raise BenchmarkError(f"{where}, mc0_targets: keep one true and one false answer")
    category = row.get("category") or UNCATEGORISED
    return Question(text, str(category), mc1, mc2, binary)


def _options(target: object, where: str, dropped: list[str]) -> Options:
    """Read options of `{text: label}`, or of the hub's `{"choices": [...], "labels": [...]}`."""
    if not isinstance(target, Mapping):
        raise BenchmarkError(f"{where}: not an object of answers and labels")
    if isinstance(target, _RepeatedKeys):
        raise BenchmarkError(f"{where}: {target.repeated[0]!r} is there twice; remove one")
    pairs = list(target.items())
    if set(target) == {"choices", "labels"} and all(
        isinstance(part, list) for part in target.values()
    ):
        if len(target["choices"]) != len(target["labels"]):
            raise BenchmarkError(f"{where}: choices and labels differ in number")
        pairs = list(zip(target["choices"], target["labels"], strict=True))
    pairs_with_text = []
    for choice, label in pairs:
        if not isinstance(choice, str):
            raise BenchmarkError(f"{where}: the option {choice!r} is no text; quote it")
        _check_text(choice, where)
        if type(label) is not int or label not in (0, 1):
            raise BenchmarkError(f"{where}: {choice!r} is labelled {label!r}; use 1 or 0")
        if choice.strip():
            pairs_with_text.append((choice, label))
        else:
            # mc_task.json of 2025 has 39 of these, from answers that end in ";". One space is
            # no answer, yet so short that it would outscore every real one.
            dropped.append(where)
    choices = [choice for choice, _ in pairs_with_text]
    labels = [label for _, label in pairs_with_text]
    twice = next((choice for choice, count in Counter(choices).items() if count > 1), None)
    if twice is not None:
        raise BenchmarkError(f"{where}: {twice!r} is there twice; remove one")
    for label, kind in ((1, "true"), (0, "false")):
        if label not in labels:
            raise BenchmarkError(f"{where}: no {kind} answer; add one or remove the question")
    return Options(tuple(choices), tuple(labels))


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BenchmarkError(
            f"{where}: {text!a} holds half of a surrogate pair; write it out or remove it"
        ) from error


def _with_categories(items: Sequence[Question], path: Path) -> tuple[Question, ...]:
    """Take categories from the TruthfulQA CSV beside the file that has most of its questions."""
    best: dict[str, str] = {}
    for beside in sorted(path.parent.glob("TruthfulQA_*.csv")):
        found = _categories(beside, (item.question.strip() for item in items))
        best = found if len(found) > len(best) else best
    return tuple(
        replace(item, category=best.get(item.question.strip(), UNCATEGORISED)) for item in items
    )


def _categories(path: Path, wanted: Iterable[str]) -> dict[str, str]:
    try:
        rows = _read_csv(path.read_bytes(), path)
    except (OSError, BenchmarkError):
        return {}  # categories are a convenience; the questions are whole without them
    known = {
        (row.get("Question") or "").strip(): (row.get("Category") or "").strip() for row in rows
    }
    return {question: known[question] for question in wanted if known.get(question)}
