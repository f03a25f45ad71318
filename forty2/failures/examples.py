"""Rows to teach from: questions with right replies, as `generate` makes and `score` accepts them.

generated.jsonl   one row a line, those of the targeted arm first
generated.json    who made them and how, and what was refused and why
accepted.jsonl    the rows that passed, with who decided and the score
accepted.json     counts, and what was refused and why
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from forty2.data.formats import parse_chat
from forty2.data.records import Chat, Message
from forty2.errors import RunError
from forty2.failures.folder import json_line
from forty2.files import JsonObject, atomic_write

GENERATED, ABOUT_GENERATED = "generated.jsonl", "generated.json"
ACCEPTED, ABOUT_ACCEPTED = "accepted.jsonl", "accepted.json"

Arm = Literal["targeted", "random"]
ARMS: tuple[Arm, Arm] = ("targeted", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A question, and a reply to learn."""

    id: str
    """Hash of messages, verifier and reply."""
    arm: Arm
    cluster: int | None
    """Cluster that it is meant for; None: of the random arm."""
    stratum: str
    messages: tuple[Message, ...]
    """The question; the last turn is the user's."""
    reply: str
    verifier: JsonObject | None
    reference: str | None
    """A right answer that was made with the question by a program, for a judge; None: there is none."""
    source: str
    """Who made it."""
    group: int
    """Rows of one group nearly repeat each other."""

    def chat(self) -> Chat:
        """Return the row as training reads it.

        Raises:
            DataError: it is no chat that can be trained on.
        """
        return chat_of(self.messages, self.reply, self.id)


def chat_of(messages: Iterable[Message], reply: str, origin: str) -> Chat:
    """Return question and reply as a chat.

    Raises:
        DataError: they are no chat that can be trained on.
    """
    turns = [*messages, {"role": "assistant", "content": reply}]
    return parse_chat({"messages": turns}, origin)


def write_examples(path: Path, rows: Iterable[Example]) -> None:
    """Write rows as JSON Lines."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json_line(asdict(row)))


def read_examples(folder: str | Path) -> list[Example]:
    """Read the generated rows of a folder.

    Raises:
        RunError: there are none, or a line is damaged.
    """
    path = Path(folder) / GENERATED
    if not path.exists():
        raise RunError(f"{path}: no such file; make it with forty2 failures generate {folder}")
    return list(_read(path))


def _read(path: Path) -> Iterator[Example]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield Example(**{**row, "messages": tuple(row["messages"])})
            except (ValueError, TypeError, KeyError) as error:
                raise RunError(f"{path}:{number}: damaged ({error}); make it again") from error
