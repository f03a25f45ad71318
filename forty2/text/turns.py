"""Where each assistant turn begins and ends in a rendered chat template.

The borders come from the template itself. It is rendered once with a mark in place of every text
that a user wrote (contents, reasoning, names and arguments of calls); what it writes around the
marks is its own. A conversation's rendering is then read from left to right against these pieces, so
that nothing is found by searching for a user's text. All conversations of one shape share the marks'
rendering.

A turn that is learned begins where generation would begin, after the prompt rendered with the header
of the next answer, and ends with the token at which generation stops. Where a template rewrites
earlier turns (it drops their reasoning, say), each turn is an example of its own, behind the prompt
that generation would see.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from forty2.data.messages import REASONING
from forty2.data.records import Message
from forty2.data.thoughts import begins_anew, closes_again, closing_of, closings, continued
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.marks import MARK, MARKS, Conversation, find_places
from forty2.text.template_text import inspected_texts, variable_texts
from forty2.text.turn_shapes import MOST_SHAPES, Render, Turn, TurnShapes

_CLOSED = (
    "the reasoning in this answer would follow a thought that is closed already, where generation "
    "writes none; put it into reasoning_content, remove it, or turn thinking on (template_options)"
)
_CLOSING_TAG = re.compile(r"</[^<>\s]+>|\[/[A-Z_]+\]")


class Example(NamedTuple):
    """A rendered text to learn from."""

    text: str
    spans: list[tuple[int, int]]
    """Beginning and end of each turn that is learned, in characters; the last ends the text."""
    needs_end: bool
    """Whether the template writes no token that ends the last turn, so that one must be added."""


class Turns:
    """Finds the turns of conversations in the renderings of one chat template.

    Args:
        render: renders messages; raises DataError if the template refuses them.
        specials: matches control tokens.
        stops: spellings of the tokens at which generation stops.
        template: source of the chat template.
    """

    def __init__(
        self, render: Render, specials: re.Pattern[str], stops: Collection[str], template: str
    ) -> None:
        self._render = render
        self._looked_for = inspected_texts(template) | variable_texts(template)
        self._inspects = re.compile("|".join(map(re.escape, sorted(self._looked_for))) or r"(?!)")
        self._shapes = TurnShapes(render, specials, stops, template)
        self._chained: dict[str, bool] = {}

    def examples(
        self,
        messages: Sequence[Message],
        learned: Sequence[int],
        tools: Sequence[JsonObject] = (),
    ) -> list[Example]:
        """Render a conversation up to its last learned turn, and find the learned turns.

        Args:
            learned: indices of the assistant turns to learn, in order.

        Returns:
            One example where the template only appends; else one for each learned turn, or for each
            group of turns that follow one another without a change.

        Raises:
            DataError: the template refuses the conversation, or does not write a part of it.
        """
        conversation = Conversation(messages, tools)
        if self._appends(conversation, learned):
            found = self._in_one(conversation, learned)
            if found is not None:
                return [found]
        return _joined(self._alone(conversation, turn) for turn in learned)

    # --- conversations whose template only appends ---

    def _appends(self, conversation: Conversation, learned: Sequence[int]) -> bool:
        """Return whether each turn's example begins with the one before it, for this shape."""
        last = learned[-1]
        key = f"{list(learned)} {conversation.key(last)}"
        if key not in self._chained:
            if len(self._chained) >= MOST_SHAPES:
                self._chained.clear()
            self._chained[key] = self._appends_by_marks(conversation, learned)
        return self._chained[key]

    def _appends_by_marks(self, conversation: Conversation, learned: Sequence[int]) -> bool:
        before = ""
        for turn in learned:
            found = self._shapes.turn(conversation, turn)
            if not found.appended or not found.prompt.startswith(before):
                return False
            if found.ending.needs_end and turn != learned[-1]:
                return False
            before = found.text
        return True

    def _in_one(self, conversation: Conversation, learned: Sequence[int]) -> Example | None:
        """Find all learned turns in one rendering; None: it is not as its shape says."""
        last = learned[-1]
        turns = [self._shapes.turn(conversation, turn) for turn in learned]
        shape = turns[-1].shape
        for turn, found in zip(learned, turns, strict=True):
            self._check_whole(conversation, found, turn)
        text = self._render(conversation.messages[: last + 1], False, conversation.tools)
        places = find_places(text, shape, conversation.values(last))
        if places is None:
            return None
        inspected = any(self._inspects.search(value) for value in conversation.values(last))
        spans = []
        for turn, found in zip(learned, turns, strict=True):
            start = places[found.first][0] - len(found.lead)  # the last shape begins with this one
            end = places[found.after - 1][1] + len(found.ending.text)
            if not text.startswith(found.lead, start):
                return None
            if inspected and self._prompt(conversation, turn) != text[:start]:
                return None
            if _generated(found, text[:start], text[start:end], turn) != text[start:end]:
                return None
            spans.append((start, end))
        return Example(text[:end], spans, turns[-1].ending.needs_end)

    # --- one turn alone ---

    def _alone(self, conversation: Conversation, turn: int) -> Example:
        """Render one turn behind the prompt that generation would see."""
        found = self._shapes.turn(conversation, turn)
        self._check_whole(conversation, found, turn)
        prompt = self._prompt(conversation, turn)
        text = self._render(conversation.messages[: turn + 1], False, conversation.tools)
        span = _span(text, found, conversation.values(turn))
        if (
            span is None
            or not prompt.endswith(found.header)
            or (found.appended and text[: span[0]] != prompt)
        ):
            # The template may go by what earlier turns say: find this one behind their own texts.
            if mark := MARKS.search(prompt):
                raise DataError(
                    f"messages[{turn}]: a text before this turn holds {mark[0]!r}, by which forty2 "
                    "finds the texts in a chat template; write it in another way"
                )
            conversation = Conversation(conversation.messages, conversation.tools, turn)
            found = self._shapes.turn_by_marks(conversation, turn)
            self._check_whole(conversation, found, turn)
            span = _span(text, found, conversation.values(turn))
        answer = (
            self._altered(conversation, turn, found, prompt, text)
            if span is None
            else text[slice(*span)]
        )
        whole = prompt + _generated(found, prompt, answer, turn)
        return Example(whole, [(len(prompt), len(whole))], found.ending.needs_end)

    def _altered(
        self, conversation: Conversation, turn: int, found: Turn, prompt: str, text: str
    ) -> str:
        """Return an answer that the template does not write as it writes other texts.

        Either it writes the whole in another way (reasoning cut out of the content and put before
        it), or it leaves out the reasoning, which generation would nevertheless write.
        """
        message = conversation.messages[turn]
        content = message.get("content")
        content = content if isinstance(content, str) else ""
        tail = found.shape.parts[-1]
        repeats = found.after < len(found.shape.order)
        if begins_anew(prompt, content) or closes_again(prompt, content):
            raise DataError(f"messages[{turn}]: {_CLOSED}")
        if not repeats and text.startswith(prompt) and text.endswith(tail):
            written = text[len(prompt) : len(text) - len(tail) + len(found.ending.text)]
            own = (continued(found.opened, value) for value in conversation.own_values(turn))
            if all(_bare(value) in _bare(written) for value in own):
                return written
        if not repeats and set(message) == {"role", "content"}:
            before = found.text.rindex(MARK.format(found.shape.order[-1]))
            kept = text[before : len(text) - len(tail)].strip()
            known = text.startswith(found.text[:before]) and text.endswith(tail)
            if known and kept in self._rests(content):
                return content + found.ending.text
        raise DataError(
            f"messages[{turn}]: the chat template alters the content, so this row cannot be trained "
            "on; use a template that leaves contents as they are (chat_template)"
        )

    def _rests(self, content: str) -> set[str]:
        """Return what templates keep of a content from which they cut the reasoning.

        Whatever the source says of the tag that ends it: a rendering that keeps nothing but what
        follows that tag has cut there.
        """
        tags = {tag for tag in _CLOSING_TAG.findall(content) if tag in self._looked_for}
        tags.update(closings(content))
        return {
            rest.strip()
            for tag in tags
            for rest in (content.partition(tag)[2], content.rpartition(tag)[2])
        }

    def _prompt(self, conversation: Conversation, turn: int) -> str:
        return self._render(conversation.messages[:turn], True, conversation.tools)

    def _check_whole(self, conversation: Conversation, found: Turn, turn: int) -> None:
        """Refuse a conversation of which the template does not write a part.

        A template may leave out what earlier turns thought: generation does not see it either.
        """
        for owner, key in found.shape.dropped:
            if owner == turn or key not in REASONING:
                raise DataError(f"messages[{owner}]: {_dropped(conversation, owner, key)}")
        if found.shape.tools_dropped:
            raise DataError(
                "tools: the chat template does not show them to the model; use a template for tools "
                "(chat_template), or remove them"
            )


def _generated(found: Turn, prompt: str, answer: str, turn: int) -> str:
    """Return what the template writes of an answer as generation would write it behind its prompt.

    Behind a thought that the prompt has opened, an answer without reasoning begins by closing it.
    """
    written = continued(found.opened, answer)
    if found.opened:
        closing = closing_of(found.opened)
        if closing not in answer:
            written = found.closing + answer.removeprefix(found.lead)
        elif answer.startswith(found.lead) and found.lead.strip() and closing not in found.lead:
            raise DataError(
                f"messages[{turn}]: the chat template begins this answer with {found.lead!r}, where "
                "generation goes on with a thought; put the reasoning into reasoning_content"
            )
    if begins_anew(prompt, written) or closes_again(prompt, written):
        raise DataError(f"messages[{turn}]: {_CLOSED}")
    return written


def _joined(examples: Iterable[Example]) -> list[Example]:
    """Join examples that begin with the whole of the one before them."""
    joined: list[Example] = []
    for example in examples:
        last = joined[-1] if joined else None
        start = example.spans[0][0]
        if last is not None and not last.needs_end and example.text[:start].startswith(last.text):
            joined[-1] = Example(example.text, [*last.spans, *example.spans], example.needs_end)
        else:
            joined.append(example)
    return joined


def _span(text: str, found: Turn, values: Sequence[str]) -> tuple[int, int] | None:
    """Find what follows the prompt in a rendering, up to the end of its last turn."""
    places = find_places(text, found.shape, values)
    if places is None:
        return None
    start = places[found.first][0] - len(found.lead)
    if not text.startswith(found.lead, start):
        return None
    return start, places[found.after - 1][1] + len(found.ending.text)


def _bare(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


def merging(messages: Sequence[Message]) -> str:
    """Say how to merge system turns into user turns, for a template that takes none."""
    roles = [message["role"] for message in messages]
    if roles[:2] == ["system", "user"] and roles.count("system") == 1:
        return (
            "merge it into the first user turn (system_turn: fold in a recipe, else "
            "`system_turn=fold`)"
        )
    return "merge each system turn into the user turn after it, in the file"


def _dropped(conversation: Conversation, owner: int, key: str) -> str:
    """Say what a template does not write, and what to do about it."""
    role = conversation.messages[owner]["role"]
    if key == "tool_calls":
        return (
            "the chat template does not write this turn's tool call, so it cannot be learned; use a "
            "template for tools (chat_template)"
        )
    if key.startswith("arguments."):
        return (
            f"the chat template does not write the argument {key.removeprefix('arguments.')!r} of this "
            "turn's tool call; use another template for tools (chat_template)"
        )
    if key in REASONING:
        return (
            f"the chat template does not write this turn's {key}; use a template that has it "
            f"(chat_template), put it into the content, or remove it"
        )
    if role == "system":
        return f"the chat template leaves out the system turn; {merging(conversation.messages)}"
    return (
        f"the chat template leaves out or alters the content of this {role} turn; use one that writes "
        "contents as they are (chat_template)"
    )
