"""New special tokens of a recipe, its tags: their names, and what their embeddings begin as."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from forty2.files import JsonObject

if TYPE_CHECKING:
    from forty2.recipe.schema import Recipe

MOST = 1000
"""Most tags of a recipe: a step computes the logits of all of them."""
LONGEST = 64
"""Most characters of a tag."""
_MEANINGS = {
    "system": "system instructions",
    "user": "user message",
    "assistant": "assistant answer",
    "user_context": "user background",
    "assistant_context": "assistant background",
    "toolcall": "tool call",
    "toolresult": "tool result",
    "think": "thinking",
    "cite": "source citation",
}
BUILT_IN: Mapping[str, Mapping[str, str]] = {
    "mypt": {
        **{
            tag: description
            for name, meaning in _MEANINGS.items()
            for tag, description in (
                (f"<myPT_{name}>", f"begin {meaning}"),
                (f"</myPT_{name}>", f"end {meaning}"),
            )
        },
        "<myPT_eot>": "end of text",
    }
}
"""Sets of tags with their descriptions, by name. `mypt`: the 19 of MyPT, in the order of their ids."""

Start = str | tuple[str, ...]
"""What a tag's embedding begins as the mean of: the pieces of a text, or some tokens."""


@dataclass(frozen=True, kw_only=True)
class TagSettings:
    """The tags of a recipe, and how their embeddings begin."""

    starts: Mapping[str, Start]
    """For each tag, in the order of their ids, what its embedding begins as the mean of."""
    rows: Literal["description", "all"] = "description"
    """Rows of the table that are averaged: those that `starts` names, or all of them."""
    noise: float = 0.0
    """Standard deviation of the noise that is added, as a share of that of the table's numbers."""
    pad_to: int = 64
    """Number of which the table's rows become a multiple."""
    seed: int = 0
    """Seed of the noise."""

    def key(self) -> str:
        """Write all of it as JSON, to be hashed."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class AddedTags:
    """Tags that a model has: the record in an adapter's configuration."""

    tokens: tuple[str, ...]
    first: int
    """Id of the first tag; the others follow."""
    rows: int
    """Rows of the model's tables with the tags and padding: the size of its vocabulary."""

    @property
    def end(self) -> int:
        """The id after the last tag's."""
        return self.first + len(self.tokens)

    @property
    def settings(self) -> TagSettings:
        """Settings that add these tags with the same ids; their rows begin as the mean of all."""
        return TagSettings(starts=dict.fromkeys(self.tokens, ""), rows="all", pad_to=self.rows)

    def to_json(self) -> JsonObject:
        return {"tokens": list(self.tokens), "first_id": self.first, "rows": self.rows}

    @classmethod
    def from_json(cls, record: object) -> AddedTags:
        """Read what `to_json` made.

        Raises:
            ValueError: it is damaged.
        """
        match record:
            case {"tokens": [*tokens], "first_id": int(first), "rows": int(rows)} if tokens and all(
                isinstance(token, str) for token in tokens
            ):
                return cls(tuple(map(str, tokens)), first, rows)
        raise ValueError("no record of tags")


Tags = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Tags as a recipe gives them."""


def tag_settings(recipe: Recipe) -> TagSettings | None:
    """Return a recipe's tags; None: it has none."""
    if recipe.tags is None:
        return None
    start = recipe.tags_init
    return TagSettings(
        starts=starts_of(recipe.tags),
        rows=start.rows,
        noise=start.noise,
        pad_to=start.pad_to,
        seed=start.seed,
    )


def with_tags(fingerprint: str, recipe: Recipe) -> str:
    """Return a base model's fingerprint, or that of the base with the recipe's tags."""
    settings = tag_settings(recipe)
    if settings is None:
        return fingerprint
    return hashlib.sha256(f"{fingerprint} {settings.key()}".encode()).hexdigest()


def check_tags(value: object) -> object:
    """Refuse tags that are not, or that cannot be told apart.

    Raises:
        ValueError: with the key, as validators of the schema raise it.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if value not in BUILT_IN:
            raise ValueError(
                f"tags: {value!r} is no built-in set of tags; use {', '.join(BUILT_IN)}, a list of tags, "
                "or a mapping of tags to descriptions"
            )
        return value
    if not isinstance(value, list | dict) or not value:
        raise ValueError(
            "tags: should be a list of tags, a mapping of tags to descriptions, or mypt"
        )
    for tag in value:
        _check_tag(tag)
    if isinstance(value, dict):
        for tag, start in value.items():
            _check_start(tag, start)
    _check_apart(list(value))
    return value


def starts_of(tags: Tags) -> dict[str, Start]:
    """Return, for each tag, what its embedding begins as the mean of."""
    if isinstance(tags, str):
        return dict(BUILT_IN[tags])
    if isinstance(tags, Mapping):
        return {
            tag: start if isinstance(start, str) else tuple(start) for tag, start in tags.items()
        }
    return {tag: tag for tag in tags}


def _check_tag(tag: object) -> None:
    if not isinstance(tag, str):
        raise ValueError(f"tags: {tag!r} is no text; put it in quotes")
    if not tag or len(tag) > LONGEST or not all("!" <= character <= "~" for character in tag):
        raise ValueError(
            f"tags: {tag!r} should be 1 to {LONGEST} characters of ASCII without white space, e.g. <note>"
        )


def _check_start(tag: str, start: object) -> None:
    if isinstance(start, str) and start.strip():
        return
    if isinstance(start, list) and start and all(isinstance(t, str) and t for t in start):
        return
    raise ValueError(
        f"tags: {tag}: should be a description, or a list of tokens whose embeddings are averaged"
    )


def _check_apart(tags: Sequence[str]) -> None:
    """Refuse too many tags, and tags that hold one another: a text would not show which is meant."""
    if len(tags) > MOST:
        raise ValueError(
            f"tags: {len(tags):,} are too many (limit {MOST:,}); name only those in use"
        )
    for tag in tags:
        if tags.count(tag) > 1:
            raise ValueError(f"tags: {tag} is there twice; remove one")
        holder = next((other for other in tags if tag in other and tag != other), None)
        if holder is not None:
            raise ValueError(f"tags: {tag} is a part of {holder}; give it another name")
