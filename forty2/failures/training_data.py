"""What a model was trained on, and which questions of a test set are in it.

The training data is named by a file, or by a run, whose recipe says which files its phases read. Of a
run that goes on from another one's adapter, the earlier run's data counts, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from forty2.data.build import build
from forty2.data.checks.contamination import Benchmark, ContaminationFinder, Hit, texts_by_key
from forty2.data.formats import parse
from forty2.data.record_texts import turn_text
from forty2.data.records import Message, Record, Text
from forty2.data.sources import BUILTIN, read_rows
from forty2.errors import DataError
from forty2.files import JsonObject, file_sha256
from forty2.recipe.reading import load_recipe
from forty2.run_paths import find_run

_DEEPEST = 20
"""Runs, each of which goes on from the one before."""


class TrainingFile(NamedTuple):
    """One source of training rows."""

    name: str
    """What is printed and recorded."""
    source: str
    """What `read_rows` takes, or a built-in set."""
    seed: int = 42
    """Seed of a built-in set."""


class Overlap(NamedTuple):
    """Which questions are in training data."""

    hits: dict[int, str]
    """How the training data holds a question, by its place."""
    rows: int
    """Rows that were searched."""


def training_files(name: str) -> list[TrainingFile]:
    """List the training data that a name stands for: a run's, or the file itself.

    Raises:
        DataError: a run has data of which only token ids are left.
        RecipeError: a run's recipe cannot be read.
    """
    run = None if name.startswith((BUILTIN, "hub:")) else find_run(name)
    return [TrainingFile(name, name)] if run is None else list(_of_run(run, _DEEPEST))


def _of_run(run: Path, deepest: int) -> Iterator[TrainingFile]:
    recipe = load_recipe(str(run / "recipe.yaml"))
    for phase_name, phase in recipe.phases.items():
        replayed = [
            entry.source for entry in phase.replay or () if entry.source not in recipe.phases
        ]
        for source in (phase.data, *filter(None, [phase.valid]), *replayed):
            if (Path(source) / "train" / "rows.idx").is_file():
                raise DataError(
                    f"{run}: phase {phase_name} was trained on prepared token ids ({source}), which "
                    "cannot be compared with texts; name the file that they were made from"
                )
            yield TrainingFile(f"{run}: {phase_name}: {source}", source, recipe.seed)
    if recipe.init_from is not None and deepest:
        adapter = Path(recipe.init_from).expanduser()
        places = map(find_run, (adapter, *adapter.parents[:2]))  # of the run, or inside it
        if (before := next(filter(None, places), None)) is not None:
            yield from _of_run(before, deepest - 1)


def about_file(file: TrainingFile) -> JsonObject:
    """Describe training data for a record: its name, and its hash if it is a file."""
    path = Path(file.source).expanduser()
    digest = {"sha256": file_sha256(path)} if path.is_file() else {}
    return {"name": file.name, "source": file.source, **digest}


class TrainingSearch:
    """Finds questions in training data: by prompt, as near copies, and by 13 words in a row.

    Args:
        questions: messages of each question.
        groups: group of each question, those that nearly repeat it; None: not known. Then words that
            eleven questions share are a wording, not a question; with groups, those that two share.
    """

    def __init__(
        self, questions: Sequence[Sequence[Message]], groups: Sequence[int] | None = None
    ) -> None:
        items = [[*_question_first(messages)] for messages in questions]
        self._finder = ContaminationFinder([Benchmark("", items)], groups=groups)

    def search(self, file: TrainingFile) -> Overlap:
        """Read training data once, row by row.

        Raises:
            DataError: it cannot be read.
        """
        found: dict[int, str] = {}
        rows = 0
        for record in records_of(file):
            rows += 1
            for place, how in self.find(record).items():
                found.setdefault(place, how)
        return Overlap(found, rows)

    def find(self, record: Record) -> dict[int, str]:
        """Return how a row holds questions, by their places."""
        return {hit.item: _how(hit) for hit in self._finder.find(record)}


def _question_first(messages: Sequence[Message]) -> Iterator[str]:
    """Yield the question, then every turn that it consists of; "" for one of several turns."""
    turns = [turn_text(m) for m in messages if m["role"] != "system"]
    yield turns[0] if len(turns) == 1 else ""
    yield from turns


def _how(hit: Hit) -> str:
    return {"the question": "prompt", "a text almost alike": "near copy"}.get(hit.how, "13 words")


def records_of(file: TrainingFile) -> Iterator[Record]:
    """Yield the rows of training data; of a row in no shape of training, each text.

    Raises:
        DataError: it cannot be read.
    """
    for origin, row in rows_of(file):
        try:
            yield parse(row, origin)
        except DataError:  # a benchmark's row, such as question and choices: every text counts
            texts = [text for _, text in texts_by_key(row)]
            yield from (Text(text=text, origin=origin) for text in texts)


def rows_of(file: TrainingFile) -> Iterator[tuple[str, JsonObject]]:
    """Yield origin and raw row of training data, of a built-in set too.

    Raises:
        DataError: it cannot be read.
    """
    if not file.source.startswith(BUILTIN):
        yield from read_rows(file.source)
        return
    built = build(file.source.removeprefix(BUILTIN), seed=file.seed)
    yield from ((file.name, dict(row)) for row in (*built.train, *built.valid))
