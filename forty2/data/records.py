"""Records: rows of training data in one form, which all readers return and all training takes.

A record remembers where it came from (`origin`, "file:line"), so that an error found at any later
stage, tokenizing and training included, can name the row. The other keys of its row are in `meta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forty2.files import JsonObject

Message = Mapping[str, Any]
"""`{"role": ..., "content": ...}`, and whatever else the chat template reads (tool calls, names)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation to imitate: every assistant turn is supervised (SFT)."""

    messages: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to imitate without a chat template: every token is supervised (SFT)."""

    text: str
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A prompt with a preferred and a dispreferred response (DPO and similar losses)."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    """The turns that follow the prompt; usually one, an assistant's."""
    rejected: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A prompt with one response that is desirable or not (KTO)."""

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    desirable: bool
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


Record = Chat | Text | Pair | Rated
