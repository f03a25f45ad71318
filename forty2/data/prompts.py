"""Prompts to be answered: one a line in a plain text, or one a row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from forty2.data.formats import parse_prompt
from forty2.data.readers.files import reason_of
from forty2.data.readers.json_rows import json_form
from forty2.data.records import Message
from forty2.data.sources import read_rows
from forty2.errors import DataError


class Prompt(NamedTuple):
    """Turns to be answered, and where they are from."""

    messages: tuple[Message, ...]
    origin: str
    """File and line."""


def read_prompts(source: str | Path, system: str | None = None) -> list[Prompt]:
    """Read the prompts of a `.txt` file, one a line, or of rows in any shape that training takes.

    Empty lines, and answers in the rows, are left out.

    Args:
        system: system message of prompts that have none; None or "": no message.

    Raises:
        DataError: the file cannot be read or has no prompts, or a row holds no prompt.
    """
    path = Path(os.path.expanduser(source))
    if path.suffix == ".txt":
        found = _lines(path)
    else:
        found = [Prompt(parse_prompt(row, origin), origin) for origin, row in read_rows(source)]
    if not found:
        raise DataError(f"{source}: is empty")
    if not system:
        return found
    turn = {"role": "system", "content": system}
    return [
        prompt
        if prompt.messages[0]["role"] == "system"
        else prompt._replace(messages=(turn, *prompt.messages))
        for prompt in found
    ]


def _lines(path: Path) -> list[Prompt]:
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        with path.open("rb") as file:
            form = json_form(file, path)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {reason_of(error)}") from error
    if form.kind != "lines":
        raise DataError(f"{path}: holds rows in JSON; give it a name that ends in .json")
    if lines and all(map(_is_object, lines)):
        raise DataError(f"{path}: holds JSON Lines; give it a name that ends in .jsonl")
    return [
        Prompt(({"role": "user", "content": line},), f"{path}:{n}")
        for n, line in enumerate(lines, 1)
        if line.strip()
    ]


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
