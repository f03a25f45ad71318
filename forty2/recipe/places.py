"""Places of a recipe's keys in its file, for messages that need the model, the data or the prompts.

Such messages begin with a key, as `phases.beta.gate: …`; whoever reads recipes catches the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from forty2.errors import DataError, ModelError, RecipeError, printable
from forty2.recipe.document import Document, Location
from forty2.recipe.schema import Recipe

_KEY = re.compile(r"([a-z_]+(?:\.[\w-]+)*): ")


@contextlib.contextmanager
def with_places(recipe: Recipe) -> Iterator[None]:
    """Put the file and line of a key before each message that begins with the key.

    A recipe that was made in Python has no file: its messages stay as they are.
    """
    try:
        yield
    except (RecipeError, ModelError, DataError) as error:
        if recipe.written is not None:
            lines = str(error).split("\n")
            error.args = ("\n".join(_with_place(line, recipe.written) for line in lines),)
        raise


def changed(recipe: Recipe, **changes: object) -> Recipe:
    """Return a recipe with other values, whose messages name the same file."""
    return written_as(dataclasses.replace(recipe, **changes), recipe.written)  # type: ignore[arg-type]


def written_as(recipe: Recipe, document: Document | None) -> Recipe:
    """Tell a recipe in which file it was written."""
    object.__setattr__(recipe, "written", document)
    return recipe


def _with_place(message: str, document: Document) -> str:
    found = _KEY.match(message)
    if found is None:
        return message
    at: Location = tuple(found[1].split("."))
    if not _is_key(at, document):
        return message
    return f"{printable(document.place_of(at))}: {message}"


def _is_key(at: Location, document: Document) -> bool:
    """Return whether a key is in the file, or could stand in one of its sections."""
    if at in document.lines:
        return True
    section: object = document.tree
    for key in at[:-1]:
        section = section.get(key) if isinstance(section, dict) else None
    return len(at) > 1 and isinstance(section, dict)
