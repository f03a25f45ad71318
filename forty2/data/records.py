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
"""`{"role": ..., "content": ...}`, and whatever else the chat template reads: tool calls, names,
reasoning. `"train": False` marks an assistant turn that is not learned; templates never see it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation to imitate: assistant turns are supervised, but for `train: False` (SFT)."""

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
    """A prompt with a preferred and a dispreferred response (DPO and similar losses).

    Each response is the turns that follow the prompt: it begins and ends with an assistant turn, and
    is usually that one turn.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[JsonObject, ...] = ()
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """A prompt with one response, of turns as in a pair, that is desirable or not (KTO)."""

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    desirable: bool
    tools: tuple[JsonObject, ...] = ()
    origin: str = ""
    meta: Mapping[str, object] = field(default_factory=dict)


Record = Chat | Text | Pair | Rated
