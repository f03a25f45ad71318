"""Replies to eval prompts: what was given where something else was expected, and the tags in them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from forty2.report.expectations import expectation
from forty2.report.markdown import Table
from forty2.report.replies import Piece
from forty2.report.run_types import EvalReply, Run

CONFUSION_NOTE = (
    "Replies to eval prompts that did not pass, the most frequent first. Underlined: the first word that "
    "differs from an expected text."
)
TAGS_NOTE = (
    "Share of the replies to eval prompts that hold a tag, of those that should. Broken: half a tag, "
    "one that is not closed, or wrong nesting."
)
_MOST = 12
"""Different confusions that a stage shows."""


class Confusion(NamedTuple):
    """An expected text, and what was given in its place."""

    expected: list[Piece]
    given: list[Piece]
    times: int
    prompt: str
    """The first prompt of them."""


class StageConfusions(NamedTuple):
    """The confusions of a stage."""

    stage: str
    failed: int
    """Prompts that did not pass."""
    asked: int
    shown: list[Confusion]
    """The most frequent of them."""


def confusions(run: Run) -> list[StageConfusions]:
    """Count what was given where something else was expected, at each stage that followed training."""
    return [
        _confusions(stage, replies) for stage, replies in [*run.eval_replies.items()][1:] if replies
    ]


def _confusions(stage: str, replies: Sequence[EvalReply]) -> StageConfusions:
    failed = [one for one in replies if not one.passed]
    counts = Counter((one.expected, one.match, one.reply) for one in failed)
    first = {(one.expected, one.match, one.reply): one.prompt for one in reversed(failed)}
    shown = [
        Confusion(*_sides(*key), times, first[key]) for key, times in counts.most_common(_MOST)
    ]
    return StageConfusions(stage, len(failed), len(replies), shown)


def _sides(expected: str, match: str, given: str) -> tuple[list[Piece], list[Piece]]:
    """Put what is expected into words; mark the first difference where it is a text."""
    wanted = expectation(expected, match)
    if not wanted.is_text:
        return [Piece("".join(wanted[:3]), False)], [Piece(given, False)] if given else []
    text, reply = first_difference(wanted.text, given)
    around = [Piece(words, False) for words in (wanted.before, wanted.after) if words]
    return [*around[:1], *text, *around[1:]], reply


def first_difference(expected: str, given: str) -> tuple[list[Piece], list[Piece]]:
    """Mark the first word of each text that the other one does not have in its place."""
    one, other = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (expected, given))
    same = len([*takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))])
    return _marked(one, same), _marked(other, same)


def _marked(words: Sequence[str], at: int) -> list[Piece]:
    parts = ("".join(words[:at]), False), ("".join(words[at : at + 1]), True)
    pieces = [*parts, ("".join(words[at + 1 :]), False)]
    return [Piece(text, differs) for text, differs in pieces if text]


def confusion_table(run: Run) -> Table:
    """Make the table of the last stage's confusions; no rows: there are none."""
    found = confusions(run)
    rows = [
        (*("".join(piece.text for piece in side) for side in one[:2]), f"{one.times}", one.prompt)
        for one in (found[-1].shown if found else [])
    ]
    return Table(("Expected", "Given", "Times", "First prompt"), rows)


def tags_table(run: Run) -> Table:
    """Make the table of the tags in replies by stage; no rows: no reply should hold one."""
    stages = run.eval_replies
    tags = dict.fromkeys(tag for replies in stages.values() for one in replies for tag in one.tags)
    if not tags:
        return Table(("Tag", *stages), [])
    rows = [
        (
            tag,
            *(
                _share([one.tags[tag] for one in replies if tag in one.tags])
                for replies in stages.values()
            ),
        )
        for tag in tags
    ]
    rows.append(
        ("broken tags", *(_share([one.broken for one in replies]) for replies in stages.values()))
    )
    return Table(("Tag", *stages), rows)


def _share(values: Sequence[bool]) -> str:
    return f"{sum(values) / len(values):.0%} of {len(values)}" if values else "–"
