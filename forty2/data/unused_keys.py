"""Keys that nothing reads although what they hold would change what is learned, by kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from forty2.data.row_keys import is_blank, plain


class Kind(NamedTuple):
    """A kind of keys that matter under any of many names."""

    names: re.Pattern[str]
    """The names, as `plain` writes them."""
    matters: Callable[[object], bool]
    """Function that tells a value that matters from another use of the name."""
    advice: str
    may_stand_in_prompt: bool = False
    """Whether the key is accepted if the conversation already contains its whole value."""


def unused_kind(key: str, value: object, prompt: Callable[[], str]) -> Kind | None:
    """Return the kind of a key beside a conversation that would change what is learned.

    Args:
        prompt: returns all texts of the row's prompt.
    """
    if is_blank(value):
        return None
    kind = _kind_named(plain(key))
    if kind is None or not kind.matters(value):
        return _TOOLS if _holds_tools(value) else None
    if kind.may_stand_in_prompt and all(_stands_in(prompt(), text) for text in _texts(value)):
        return None
    return kind


@lru_cache(maxsize=4096)
def _kind_named(name: str) -> Kind | None:
    return next((kind for kind in _KINDS if kind.names.fullmatch(name)), None)


def joined_texts(value: object) -> str:
    """Return every text and number in a value as one text."""
    return "\n".join(_texts(value))


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str | int | float):
        yield str(value)
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _is_text(value: object) -> bool:
    """Return whether a value is a text of several words, or holds one: no name of a file, no number."""
    return any(len(text.split()) > 1 for text in _texts(value))


def _is_list(value: object) -> bool:
    return isinstance(_decoded(value), list | dict)


def _is_turns(value: object) -> bool:
    return _is_list(value) or _is_text(value)


def _stands_in(text: str, part: str) -> bool:
    """Return whether a text holds another, from the beginning of a word to the end of one."""
    return re.search(rf"(?<!\w){re.escape(part.strip())}(?!\w)", text) is not None


def _holds_tools(value: object) -> bool:
    """Return whether a value is a list of tools as models are offered them, or a text of one."""
    value = _decoded(value)
    return isinstance(value, list) and bool(value) and all(map(_is_tool, value))


def _is_tool(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    function = value.get("function", value)
    schema = {"parameters", "input_schema", "inputSchema"}
    return isinstance(function, dict) and "name" in function and not schema.isdisjoint(function)


def _decoded(value: object) -> object:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value not in (0, 1)


def _kind(names: str, matters: Callable[[object], bool], advice: str, said: bool = False) -> Kind:
    return Kind(re.compile(names), matters, advice, said)


_TOOLS = _kind(
    r"(available|given|candidate)?(tools?|functions?|apis?)(list|defs?|definitions?|schemas?|specs?)?",
    _is_list,
    "write it as the row's tools",
)
_KINDS = (
    _kind(
        r"sys|system|(sys|system|developer)(prompt|message|msg|instruction|text|content)s?|instructions"
        r"|preamble",
        lambda value: isinstance(value, str | list),
        "write it as the row's system",
        said=True,
    ),
    _TOOLS,
    _kind(
        r"(tool|function)calls?",
        _is_list,
        "write the answer as messages with tool_calls",
    ),
    _kind(
        r"(chat|dialog(ue)?|conversation(al)?|message|previous|prior|past|earlier)"
        r"(history|turns?|messages?|context|utterances?|rounds?|conversations?|dialog(ue)?s?)",
        _is_turns,
        "write these turns into the messages",
        said=True,
    ),
    _kind(
        r"turns|utterances|dialog(ue)?s?",
        _is_list,
        "write these turns into the messages",
        said=True,
    ),
    _kind(
        r"(retrieved|reference|source|input|grounding|supporting)?"
        r"(documents?|docs?|passages?|paragraphs?|articles?|contexts?|chunks?)(text|content|list)?s?"
        r"|knowledge|background|story",
        _is_text,
        "write it into the prompt",
        said=True,
    ),
    _kind(
        r"(answer|multiplechoice|mc)?(choices|options)|(option|choice|opt?)[a-f1-6]",
        bool,
        "write them into the prompt",
        said=True,
    ),
    _kind(
        r"(enable|use)thinking|thinking(mode|budget)|reasoning(effort|mode)|chattemplate",
        lambda value: value is not None,
        "set it in the recipe (chat_template, template_options)",
    ),
    _kind(
        r"(sample|sampling|row|example|importance|loss)weights?", _is_number, "rename it to weight"
    ),
)
