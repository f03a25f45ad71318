"""Chat templates rendered once for each sequence of roles, and many conversations encoded at once.

Most conversations of a data set differ in their texts alone. For them the template's text around
the contents is the same, so it is rendered once, with places held, and a conversation is filled in.
Where that could differ from rendering in any way, the caller is told to render.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import compress, count
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes

from forty2.data.records import Message
from forty2.errors import DataError
from forty2.text.word_cache import WordCache

_PLACE = "\ue0f2{}\ue0f3"
_PLACES = re.compile("\ue0f2(\\d+)\ue0f3")

Render = Callable[[Sequence[Message], bool], str]
Encode = Callable[[str], list[int]]


class _Turn(NamedTuple):
    """Where an assistant turn is, in special tokens since the beginning."""

    opens_after: int
    """The turn's prompt ends behind this many special tokens and `lead`."""
    lead: tuple[int, ...]
    """Ids between that special token and the turn's content: always the same."""
    ends_at: int
    """The special token, counted from 1, that ends the turn and is supervised."""


class _Skeleton(NamedTuple):
    parts: list[str]
    """Text before, between and after the contents."""
    turns: list[_Turn]


class TemplateCache:
    """The templates' texts for the sequences of roles met so far."""

    def __init__(
        self, tokenizer: Any, specials: dict[str, int], render: Render, encode: Encode
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._words = None if backend is None else WordCache(backend)
        self._specials = frozenset(specials.values())
        self._special_pattern = re.compile(
            "|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or r"(?!)"
        )
        self._render, self._encode = render, encode
        self._known: dict[tuple[str, ...], _Skeleton | None] = {}
        self._looked_for = _looked_for(str(tokenizer.chat_template))
        self._held = re.compile("|".join(map(re.escape, ["\ue0f2", "\ue0f0", *self._looked_for])))

    def encode(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[list[int], list[bool]] | None]:
        """Ids and mask of each conversation up to its last assistant turn; None: render it."""
        result: list[tuple[list[int], list[bool]] | None] = [None] * len(conversations)
        texts, where = [], []
        for n, messages in enumerate(conversations):
            skeleton = self._of(messages)
            if skeleton is not None:
                contents = [m["content"] for m in messages]
                filled = [t for pair in zip(skeleton.parts, contents, strict=False) for t in pair]
                texts.append("".join([*filled, skeleton.parts[-1]]))
                where.append((n, skeleton))
        if texts and self._words is not None:
            for (n, skeleton), ids in zip(where, self._words.encode_batch(texts), strict=True):
                result[n] = self._masked(ids, skeleton)
        return result

    def _of(self, messages: Sequence[Message]) -> _Skeleton | None:
        for message in messages:
            content = message.get("content")
            if (
                len(message) != 2
                or not isinstance(content, str)
                or not content
                or content[0].isspace()
                or content[-1].isspace()
                or self._special_pattern.search(content)
                or self._held.search(content)
            ):
                return None
        roles = tuple(m["role"] for m in messages)
        if roles[-1:] != ("assistant",) or "tool" in roles:
            return None
        if roles not in self._known:
            self._known[roles] = self._learn(roles)
        return self._known[roles]

    def _learn(self, roles: tuple[str, ...]) -> _Skeleton | None:
        """The skeleton of a sequence of roles, if the template has one."""
        messages = [{"role": r, "content": _PLACE.format(i)} for i, r in enumerate(roles)]
        turns = [i for i, role in enumerate(roles) if role == "assistant"]
        try:
            whole = self._render(messages, False)
            opened = [self._render(messages[:i], True) for i in turns]
        except DataError:
            return None
        if [int(n) for n in _PLACES.findall(whole)] != list(range(len(roles))):
            return None
        places = []
        for i, text in zip(turns, opened, strict=True):
            last = list(self._special_pattern.finditer(text))[-1:]
            start = whole.find(_PLACE.format(i))
            if not last or not whole.startswith(text) or whole[len(text) : start].strip():
                return None
            if start != len(text):  # the template puts something before the content
                return None
            before = len(self._special_pattern.findall(text))
            if len(self._special_pattern.findall(whole[start:])) == 0:
                return None
            lead = tuple(self._encode(text[last[0].end() :]))
            places.append(_Turn(before, lead, before + 1))
        return _Skeleton(_PLACES.split(whole)[::2], places)

    def _masked(self, ids: list[int], skeleton: _Skeleton) -> tuple[list[int], list[bool]] | None:
        at = list(compress(count(), map(self._specials.__contains__, ids)))
        mask = [False] * len(ids)
        end = 0
        for turn in skeleton.turns:
            if len(at) < turn.ends_at:
                return None
            start = at[turn.opens_after - 1] + 1 + len(turn.lead)
            if tuple(ids[start - len(turn.lead) : start]) != turn.lead:
                return None  # the content merged with what stands before it
            end = at[turn.ends_at - 1]
            mask[start : end + 1] = [True] * (end + 1 - start)
        return ids[: end + 1], mask[: end + 1]


def _looked_for(template: str) -> list[str]:
    """Texts that a template compares with, or splits and replaces by: a content may hold them."""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except jinja2.TemplateError:
        return [""]  # found in every content: nothing is filled in
    found: set[str] = set()
    for compare in tree.find_all(nodes.Compare):
        if any(operand.op in ("in", "notin") for operand in compare.ops):
            found |= {c.value for c in compare.find_all(nodes.Const) if isinstance(c.value, str)}
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr):
            consts = (c for argument in call.args for c in argument.find_all(nodes.Const))
            own = (a for a in call.args if isinstance(a, nodes.Const))
            found |= {c.value for c in (*consts, *own) if isinstance(c.value, str)}
    return sorted(found)
