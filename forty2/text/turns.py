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

import functools
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

import jinja2
from jinja2 import nodes

from forty2.data.messages import REASONING
from forty2.data.records import Message
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.marks import MARK, MARKS, Conversation, Shape, find_places, range_of

_TAG = re.compile(r"\s*<([A-Za-z][\w:.-]*)>\s*(</\1>\s*)?")
"""A tag, alone or with the one that closes it."""
_OPENED = re.compile(r"<([A-Za-z][\w:.-]*)>\s*$")
"""A tag that a prompt ends with: a header of the answer, or the beginning of a thought."""
_THOUGHT = re.compile(r"think|thought|reason", re.IGNORECASE)
"""Names of tags around a thought."""
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
"""Tags with which templates show transformers what an assistant writes."""
_CLOSING_TAG = re.compile(r"</[^<>\s]+>|\[/[A-Z_]+\]")
_UNCLEAR = (
    "the chat template changes what came before this turn in a way that depends on its content, so "
    "its beginning cannot be found; use a template that only appends (chat_template)"
)
CLOCK = "strftime_now"
"""Function that gives a template the date; one stopped at a date is a macro of this name."""
_MOST_SHAPES = 2000
"""Shapes of conversations remembered at once."""
_ROLES = ("system", "user", "assistant", "tool", "developer", "function", "ipython")

Render = Callable[[Sequence[Message], bool, Sequence[JsonObject]], str]
"""Renders messages with tools, with or without the header of the next assistant turn."""


class Example(NamedTuple):
    """A rendered text to learn from."""

    text: str
    spans: list[tuple[int, int]]
    """Beginning and end of each turn that is learned, in characters; the last ends the text."""
    needs_end: bool
    """Whether the template writes no token that ends the last turn, so that one must be added."""


class Ending(NamedTuple):
    """The end of a turn: a text of the template up to a control token, or to its own end."""

    text: str
    needs_end: bool
    """Whether it holds no control token."""


class _Turn(NamedTuple):
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
    opened: str
    """Name of the tag that opens a thought at the end of generation's prompt; empty: there is none."""
    text: str
    """The whole up to the turn's end, with marks."""


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
        self._specials = specials
        self._stops = frozenset(stops)
        self._template = template
        self.inspected = inspected_texts(template)
        """Texts that the template looks for in what users wrote."""
        self._inspects = re.compile("|".join(map(re.escape, sorted(self.inspected))) or r"(?!)")
        self._turns: dict[str, _Turn] = {}
        self._chained: dict[str, bool] = {}
        self._written_calls: set[str] = set()

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
            self._chained[key] = self._appends_by_marks(conversation, learned)
        return self._chained[key]

    def _appends_by_marks(self, conversation: Conversation, learned: Sequence[int]) -> bool:
        before = ""
        for turn in learned:
            found = self._turn(conversation, turn)
            if not found.appended or not found.prompt.startswith(before):
                return False
            if found.ending.needs_end and turn != learned[-1]:
                return False
            before = found.text
        return True

    def _in_one(self, conversation: Conversation, learned: Sequence[int]) -> Example | None:
        """Find all learned turns in one rendering; None: it is not as its shape says."""
        last = learned[-1]
        turns = [self._turn(conversation, turn) for turn in learned]
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
            if _behind_opened(found.opened, text[start:end]) != text[start:end]:
                return None
            if inspected and self._prompt(conversation, turn) != text[:start]:
                return None
            spans.append((start, end))
        return Example(text[:end], spans, turns[-1].ending.needs_end)

    # --- one turn alone ---

    def _alone(self, conversation: Conversation, turn: int) -> Example:
        """Render one turn behind the prompt that generation would see."""
        found = self._turn(conversation, turn)
        self._check_whole(conversation, found, turn)
        prompt = self._prompt(conversation, turn)
        answer = _behind_opened(found.opened, self._answer(conversation, turn, found, prompt))
        text = prompt + answer
        return Example(text, [(len(prompt), len(text))], found.ending.needs_end)

    def _answer(self, conversation: Conversation, turn: int, found: _Turn, prompt: str) -> str:
        """Return what the template writes after the prompt, up to the end of the turn."""
        text = self._render(conversation.messages[: turn + 1], False, conversation.tools)
        span = _span(text, found, conversation.values(turn))
        if span is not None and (not found.appended or text[: span[0]] == prompt):
            return text[slice(*span)]
        # The template may write earlier turns differently from marks; try this turn behind marks.
        behind, values = self._behind_marks(conversation, turn)
        span = _span(behind, found, values)
        if span is not None:
            if not text.endswith(behind[span[0] :]):
                raise DataError(f"messages[{turn}]: {_UNCLEAR}")
            return behind[slice(*span)]
        return self._altered(conversation, turn, found, prompt, text, behind)

    def _behind_marks(self, conversation: Conversation, turn: int) -> tuple[str, list[str]]:
        """Render a turn behind the marks of earlier ones; return the texts it is made of, too."""
        marked, owners = conversation.marked(turn)
        own = conversation.own_values(turn)
        marks = [MARK.format(n) for n in range(len(owners) - len(own))]
        messages = [*marked[:-1], conversation.messages[turn]]
        return self._render(messages, False, conversation.tools), [*marks, *own]

    def _altered(
        self,
        conversation: Conversation,
        turn: int,
        found: _Turn,
        prompt: str,
        text: str,
        behind: str,
    ) -> str:
        """Return an answer that the template does not write as it writes other texts.

        Either it writes the whole in another way (reasoning cut out of the content and put before
        it), or it leaves out the reasoning, which generation would nevertheless write.
        """
        message = conversation.messages[turn]
        content = str(message.get("content") or "")
        tail = found.shape.parts[-1]
        repeats = found.after < len(found.shape.order)
        if not repeats and text.startswith(prompt) and text.endswith(tail):
            written = text[len(prompt) : len(text) - len(tail) + len(found.ending.text)]
            own = (_continued(found.opened, value) for value in conversation.own_values(turn))
            if all(_bare(value) in _bare(written) for value in own):
                return written
        cut = [tag[0] for tag in _CLOSING_TAG.finditer(content) if tag[0] in self.inspected]
        closed = any(found.prompt.rstrip().endswith(tag) for tag in cut)
        if cut and not closed and not repeats and set(message) == {"role", "content"}:
            before = found.text.rindex(MARK.format(found.shape.order[-1]))
            kept = behind[before : len(behind) - len(tail)].strip()
            if behind.startswith(found.text[:before]) and behind.endswith(tail) and kept in content:
                return content + found.ending.text
        raise DataError(
            f"messages[{turn}]: the chat template alters the content, so this row cannot be trained "
            "on; use a template that leaves contents as they are (chat_template)"
        )

    # --- shapes ---

    def _turn(self, conversation: Conversation, turn: int) -> _Turn:
        key = conversation.key(turn)
        if key not in self._turns:
            if len(self._turns) >= _MOST_SHAPES:
                self._turns.clear()
                self._chained.clear()
            self._turns[key] = self._turn_by_marks(conversation, turn)
        return self._turns[key]

    def _turn_by_marks(self, conversation: Conversation, turn: int) -> _Turn:
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
            return _Turn(shape, 0, 0, Ending("", True), "", False, prompt, "", whole)
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
        return _Turn(shape, first, after, ending, lead, appended, prompt, opened, text)

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
        """Return the name of the tag with which generation's prompt opens a thought, if it does.

        Args:
            surplus: end of the prompt that the template does not write before the answer itself.
        """
        tag = _OPENED.search(prompt)
        if tag is None or _THOUGHT.search(tag[1]):
            return tag[1] if tag else ""
        if _OPENED.search(surplus) is None:
            return ""  # a header of the answer
        if f"</{tag[1]}>" not in self._template:
            raise DataError(f"messages[{turn}]: {_not_written(surplus)}")
        return tag[1]

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

    def _prompt(self, conversation: Conversation, turn: int) -> str:
        return self._render(conversation.messages[:turn], True, conversation.tools)

    def _check_whole(self, conversation: Conversation, found: _Turn, turn: int) -> None:
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
    marks = list(MARKS.finditer(prompt))
    same = marks and first and int(marks[-1][1]) == shape.order[first - 1]
    header = prompt[marks[-1].end() :] if marks else prompt
    between = shape.parts[first]
    for length in reversed(range(len(header) + 1)) if same else ():
        surplus = header[length:]
        tag = _TAG.fullmatch(surplus)
        if not between.startswith(header[:length]) or (surplus and not tag):
            continue
        lead = between[length:]
        if tag and tag[2] and f"<{tag[1]}>" in lead:
            raise DataError(
                f"messages[{turn}]: generation would begin this answer with an empty thought, behind "
                "which no reasoning can be learned; remove it, or turn thinking on (template_options)"
            )
        return lead, surplus
    raise DataError(f"messages[{turn}]: {_not_written(header)}")


def _not_written(header: str) -> str:
    return (
        f"generation would begin this answer with {header[-60:]!r}, which the chat template does not "
        "write before it; use another template (chat_template) or other template_options"
    )


def _continued(opened: str, answer: str) -> str:
    """Return an answer without the tag with which it begins, where its prompt has opened that tag."""
    opening = re.match(rf"\s*<{re.escape(opened)}>\s*", answer) if opened else None
    return answer[opening.end() :] if opening else answer


def _behind_opened(opened: str, answer: str) -> str:
    """Return an answer as generation would write it behind a tag that its prompt has opened.

    An answer without reasoning begins by closing the thought.
    """
    if not opened or f"</{opened}>" in answer:
        return _continued(opened, answer)
    return f"\n</{opened}>\n\n{answer}"


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


def _span(text: str, found: _Turn, values: Sequence[str]) -> tuple[int, int] | None:
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
        return (
            "the chat template leaves out the system turn; merge it into the first user turn "
            "(system_turn: fold in a recipe, else `system_turn=fold`)"
        )
    return (
        f"the chat template leaves out or alters the content of this {role} turn; use one that writes "
        "contents as they are (chat_template)"
    )


@functools.lru_cache(maxsize=16)
def inspected_texts(template: str) -> frozenset[str]:
    """Find the texts that a template looks for, splits at or replaces."""
    template = _GENERATION_TAG.sub("", template)
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(
            template
        )
    except jinja2.TemplateError:
        return frozenset([""])  # found in every text
    found: set[str] = set()
    own = [part for part in tree.body if not isinstance(part, nodes.Macro) or part.name != CLOCK]
    for part in own:
        for node in part.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
            found |= {c.value for c in node.find_all(nodes.Const) if isinstance(c.value, str)}
    return frozenset(text for text in found if text.strip() and text not in _ROLES)
