"""Chat templates rendered once for each sequence of roles, to encode many conversations fast.

Most conversations of a data set differ only in their texts. The template's text around the contents
is the same for them, so it is rendered once, with placeholders, and the contents are filled in.
If the result could differ from rendering in any way, `None` asks the caller to render.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import compress, count
from typing import NamedTuple

import jinja2
from jinja2 import nodes

from forty2.data.records import Message
from forty2.errors import DataError
from forty2.text.special_tokens import SpecialTokens
from forty2.text.tokenizer import Tokenizer
from forty2.text.word_cache import WordCache

_PLACE = "\ue0f2{}\ue0f3"
_PLACES = re.compile("\ue0f2(\\d+)\ue0f3")
"""Placeholder for a content in a rendered template."""

Render = Callable[[Sequence[Message], bool], str]
"""Renders messages, with or without the header of the next assistant turn."""


class _Turn(NamedTuple):
    """The place of an assistant turn, counted in special tokens from the beginning."""

    opens_after: int
    """Number of special tokens before the turn's header."""
    lead: tuple[int, ...]
    """Ids of the header, up to the turn's content: always the same."""
    ends_at: int
    """Number, counted from 1, of the special token that ends the turn and is supervised."""


class _Rendering(NamedTuple):
    """A template rendered for one sequence of roles."""

    parts: list[str]
    """Texts before, between and after the contents."""
    turns: list[_Turn]


class TemplateCache:
    """Encodes conversations by filling them into the rendering of their sequence of roles."""

    def __init__(self, tokenizer: Tokenizer, specials: SpecialTokens, render: Render) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._word_cache = None if backend is None else WordCache(backend)
        self._specials = specials
        self._special_ids = frozenset(specials.ids.values())
        self._render = render
        self._renderings: dict[tuple[str, ...], _Rendering | None] = {}
        """Renderings by roles; None: conversations with these roles must be rendered whole."""
        compared = _compared_texts(str(tokenizer.chat_template))
        self._needs_rendering = re.compile(
            "|".join(map(re.escape, ["\ue0f2", "\ue0f0", *compared]))
        )
        """Matches texts that a content must not hold: placeholders, and texts that the template tests."""

    def encode(
        self, conversations: Sequence[Sequence[Message]]
    ) -> list[tuple[list[int], list[bool]] | None]:
        """Encode conversations that end with an assistant turn.

        Returns:
            Ids and mask of each; None for one that must be rendered.
        """
        result: list[tuple[list[int], list[bool]] | None] = [None] * len(conversations)
        texts, where = [], []
        for n, messages in enumerate(conversations):
            rendering = self._rendering(messages)
            if rendering is not None:
                contents = [m["content"] for m in messages]
                filled = [t for pair in zip(rendering.parts, contents, strict=False) for t in pair]
                texts.append("".join([*filled, rendering.parts[-1]]))
                where.append((n, rendering))
        if texts and self._word_cache is not None:
            for (n, rendering), ids in zip(
                where, self._word_cache.encode_batch(texts), strict=True
            ):
                result[n] = self._masked(ids, rendering)
        return result

    def _rendering(self, messages: Sequence[Message]) -> _Rendering | None:
        """Return the rendering that a conversation may be filled into; None: render it instead."""
        for message in messages:
            content = message.get("content")
            if (
                len(message) != 2
                or not isinstance(content, str)
                or not content
                or content[0].isspace()
                or content[-1].isspace()
                or self._specials.pattern.search(content)
                or self._needs_rendering.search(content)
            ):
                return None
        roles = tuple(m["role"] for m in messages)
        if roles[-1:] != ("assistant",) or "tool" in roles:
            return None
        if roles not in self._renderings:
            self._renderings[roles] = self._render_roles(roles)
        return self._renderings[roles]

    def _render_roles(self, roles: tuple[str, ...]) -> _Rendering | None:
        """Render a sequence of roles with placeholders; None: contents cannot be filled in."""
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
            last = list(self._specials.pattern.finditer(text))[-1:]
            start = whole.find(_PLACE.format(i))
            if not last or not whole.startswith(text) or whole[len(text) : start].strip():
                return None
            if start != len(text):  # the template puts something before the content
                return None
            before = len(self._specials.pattern.findall(text))
            if len(self._specials.pattern.findall(whole[start:])) == 0:
                return None
            lead = tuple(self._specials.encode(text[last[0].end() :]))
            places.append(_Turn(before, lead, before + 1))
        return _Rendering(_PLACES.split(whole)[::2], places)

    def _masked(self, ids: list[int], rendering: _Rendering) -> tuple[list[int], list[bool]] | None:
        """Mask the assistant turns of a filled-in conversation; None: it must be rendered."""
        at = list(compress(count(), map(self._special_ids.__contains__, ids)))
        mask = [False] * len(ids)
        end = 0
        for turn in rendering.turns:
            if len(at) < turn.ends_at:
                return None
            start = at[turn.opens_after - 1] + 1 + len(turn.lead)
            if tuple(ids[start - len(turn.lead) : start]) != turn.lead:
                return None  # the content merged with the header into one token
            end = at[turn.ends_at - 1]
            mask[start : end + 1] = [True] * (end + 1 - start)
        return ids[: end + 1], mask[: end + 1]


def _compared_texts(template: str) -> list[str]:
    """Find the texts that a template looks for in contents, splits them at or replaces in them."""
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
