"""Where a turn begins and ends in the rendering of a conversation's marks.

All conversations of one shape share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from forty2.data.messages import REASONING
from forty2.data.records import Message
from forty2.data.thoughts import closing_of, is_thought, tag_alone, tag_at_end
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.marks import MARK, MARKS, Conversation, Shape, range_of

_HEADER_SHOWN = re.compile(r"[<\[].{,59}\Z", re.DOTALL)
"""End of a header that an error shows, from the beginning of a tag."""
MOST_SHAPES = 2000
"""Shapes of conversations remembered at once."""

Render = Callable[[Sequence[Message], bool, Sequence[JsonObject]], str]
"""Renders messages with tools, with or without the header of the next assistant turn."""


class Ending(NamedTuple):
    """The end of a turn: a text of the template up to a control token, or to its own end."""

    text: str
    needs_end: bool
    """Whether it holds no control token."""


class Turn(NamedTuple):
    """The last turn of a shape, an assistant's: where it begins and ends."""

    shape: Shape
    first: int
    """Place of the turn's first text in the order of marks."""
    after: int
    """Place after the last text that generation would write."""
    ending: Ending
    lead: str
    """Text of the template between generation's prompt and the turn's first text."""
    appended: bool
    """Whether generation's prompt is the beginning of the whole."""
    prompt: str
    """Generation's prompt, with marks."""
    header: str
    """What the prompt has behind its last mark."""
    opened: str
    """Tag that opens a thought at the end of generation's prompt; empty: there is none."""
    closing: str
    """What the template writes between a thought and the turn's first text, if a thought is opened."""
    text: str
    """The whole up to the turn's end, with marks."""


class TurnShapes:
    """The shapes of turns in one chat template, remembered.

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
        self._specials = specials
        self._stops = frozenset(stops)
        self._template = template
        self._turns: dict[str, Turn] = {}
        self._written_calls: set[str] = set()

    def turn(self, conversation: Conversation, turn: int) -> Turn:
        """Return where an assistant's turn begins and ends in conversations of this shape."""
        key = conversation.key(turn)
        if key not in self._turns:
            if len(self._turns) >= MOST_SHAPES:
                self._turns.clear()
            self._turns[key] = self.turn_by_marks(conversation, turn)
        return self._turns[key]

    def turn_by_marks(self, conversation: Conversation, turn: int) -> Turn:
        """Find where it begins and ends, without remembering it."""
        marked, owners = conversation.marked(turn)
        if turn == 0:
            raise DataError(
                "messages[0]: an assistant turn without a prompt is never generated; put a user "
                "turn before it, remove it, or mark it `train: false`"
            )
        if not conversation.own_values(turn):
            raise DataError(f"messages[{turn}]: the assistant's turn is empty")
        tools = conversation.tools
        whole = self._render(marked, False, tools)
        prompt = self._render(marked[:-1], True, tools)
        marks = list(MARKS.finditer(whole))
        order = [int(mark[1]) for mark in marks]
        shown = {int(mark[1]) for mark in MARKS.finditer(prompt)}
        shape = Shape(
            MARKS.split(whole)[::2],
            order,
            [owners[n][0] for n in order],
            [
                owner
                for n, owner in enumerate(owners)
                if n not in (order if owner[0] == turn else shown)
            ],
            bool(tools) and prompt == self._prompt_without_tools(marked[:-1]),
        )
        shape.dropped.extend(self._dropped_arguments(conversation, turn, whole, prompt))
        first, after = range_of(shape, turn)
        if first == after:  # the template writes nothing of this turn: `dropped` says so
            return Turn(shape, 0, 0, Ending("", True), "", False, prompt, "", "", "", whole)
        after = self._after_generated(shape, first, after, owners)
        ending = self._ending(shape.parts[after])
        text = whole[: marks[after - 1].end()] + ending.text
        start = marks[first].start()
        appended = whole.startswith(prompt) and len(prompt) <= start
        if appended:
            lead, surplus = whole[len(prompt) : start], ""
        else:
            history = self._render(marked[:-1], False, tools)
            lead, surplus = _after_prompt(prompt, history, shape, first, turn)
        opened = self._opened_thought(prompt, surplus, turn)
        closing = self._closing(opened, marked, tools, lead) if opened else ""
        header = MARKS.split(prompt)[-1]
        return Turn(
            shape, first, after, ending, lead, appended, prompt, header, opened, closing, text
        )

    def _dropped_arguments(
        self, conversation: Conversation, turn: int, whole: str, prompt: str
    ) -> list[tuple[int, str]]:
        """Find arguments of calls that the template does not write."""
        calls = conversation.call_shape(turn)
        if calls in self._written_calls:
            return []
        dropped = []
        for owner, name, messages in conversation.without_arguments(turn):
            own = owner == turn
            try:
                text = self._render(messages if own else messages[:-1], not own, conversation.tools)
            except DataError:
                continue  # the template reads it
            if text == (whole if own else prompt):
                dropped.append((owner, f"arguments.{name}"))
        if not dropped:
            self._written_calls.add(calls)
        return dropped

    def _after_generated(
        self, shape: Shape, first: int, after: int, owners: Sequence[tuple[int, str]]
    ) -> int:
        """Return the place after the last of a turn's texts that generation would write.

        Generation stops at the first token that ends a turn; a template may write a text again
        behind it.
        """
        for place in range(first, after - 1):
            if any(
                found[0] in self._stops for found in self._specials.finditer(shape.parts[place + 1])
            ):
                for unwritten in set(shape.order[place + 1 : after]) - set(
                    shape.order[first : place + 1]
                ):
                    turn, key = owners[unwritten]
                    raise DataError(
                        f"messages[{turn}]: the chat template ends the turn before its {key}, where "
                        "generation would stop; put that into a turn of its own, or use another "
                        "template (chat_template)"
                    )
                return place + 1
        return after

    def _opened_thought(self, prompt: str, surplus: str, turn: int) -> str:
        """Return the tag with which generation's prompt opens a thought, if it does.

        Args:
            surplus: end of the prompt that the template does not write before the answer itself.
        """
        tag = tag_at_end(prompt)
        if is_thought(tag):
            return tag
        if not tag_at_end(surplus):
            return ""  # a header of the answer
        if self._specials.fullmatch(tag) or closing_of(tag) not in self._template:
            raise DataError(f"messages[{turn}]: {_not_written(surplus)}")
        return tag

    def _closing(
        self,
        opened: str,
        marked: Sequence[Message],
        tools: Sequence[JsonObject],
        lead: str,
    ) -> str:
        """Find what the template writes between a thought and the last turn's first text: tried.

        Args:
            opened: the tag that opens the thought.
            lead: what it writes before that text where there is no thought.
        """
        usual = f"\n{closing_of(opened)}\n\n"
        thought, answer = MARK.format("x"), marked[-1]
        ways: list[Message] = [dict.fromkeys(REASONING, thought)]
        if isinstance(answer["content"], str) and answer["content"]:
            ways.append({"content": f"{opened}\n{thought}{usual}{answer['content']}"})
        for more in ways:
            try:
                text = self._render([*marked[:-1], {**answer, **more}], False, tools)
            except DataError:
                continue
            between = MARKS.split(text.partition(thought)[2])[0]
            if closing_of(opened) in between:
                return between
        return usual + lead

    def _ending(self, tail: str) -> Ending:
        """Find the end of a turn in what the template writes after the turn's last text.

        It is the first token there at which generation stops; without one, the last control token,
        since templates write an end of a response before the end of the turn.
        """
        found = list(self._specials.finditer(tail))
        stops = [match for match in found if match[0] in self._stops]
        if stops or found:
            return Ending(tail[: (stops[0] if stops else found[-1]).end()], False)
        return Ending(tail, True)

    def _prompt_without_tools(self, messages: Sequence[Message]) -> str | None:
        try:
            return self._render(messages, True, ())
        except DataError:
            return None


def _after_prompt(
    prompt: str, history: str, shape: Shape, first: int, turn: int
) -> tuple[str, str]:
    """Compare what follows the last text of a prompt with what stands there in the whole.

    Args:
        prompt: generation's prompt with marks, which is not the beginning of the whole.
        history: the prompt without the header of the answer.
        shape: of the whole.
        first: place of the answer's first mark.

    Returns:
        What the template writes between the prompt and the answer, and the end of the prompt that
        the whole does not have: a tag that opens a thought, or an empty thought.
    """
    added = prompt[len(history) :] if prompt.startswith(history) else ""
    if added and shape.parts[first].endswith(added):
        return "", ""
    between = shape.parts[first]
    if marks := list(MARKS.finditer(prompt)):
        header = prompt[marks[-1].end() :]
    else:
        header, between = prompt.removeprefix(history), between.removeprefix(history)
    for length in reversed(range(len(header) + 1)):
        surplus = header[length:]
        tag = tag_alone(surplus)
        if not between.startswith(header[:length]) or (surplus and not tag):
            continue
        lead = between[length:]
        if tag and tag.closed and tag.opening in lead:
            raise DataError(
                f"messages[{turn}]: generation would begin this answer with an empty thought, behind "
                "which no reasoning can be learned; remove it, or turn thinking on (template_options)"
            )
        return lead, surplus
    raise DataError(f"messages[{turn}]: {_not_written(header)}")


def _not_written(header: str) -> str:
    shown = _HEADER_SHOWN.search(header)
    end = shown[0] if shown else header[-60:]
    return (
        f"generation would begin this answer with {end!r}, which the chat template does not "
        "write before it; use another template (chat_template) or other template_options"
    )
