"""Questions that a teacher proposes: those that can be kept, and why the others are refused."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from forty2.data.checks.near_duplicates import NearDuplicates
from forty2.data.record_texts import turn_text
from forty2.errors import DataError
from forty2.failures.examples import ARMS, Example, chat_of
from forty2.failures.folder import HALVES, Half, item_id, read_half
from forty2.failures.targets import Draw, Target
from forty2.failures.teaching import Proposal
from forty2.failures.testset import question_text, text_key, twin_groups
from forty2.failures.training_data import TrainingSearch
from forty2.failures.verifiers import CheckFailed, UnitTest, check, parse_verifier

_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_HEADING = re.compile(
    r"^[\W_]*(?:(?:new|harder) )?(?:question|problem|exercise|task|prompt|q)\b[\s\d*_#.)]*:[\s*_]*",
    re.IGNORECASE,
)


class Pool:
    """Questions made so far, and what they must not repeat."""

    def __init__(self, folder: Path) -> None:
        self._copies = _Copies(folder)
        self._seen: set[bytes] = set()
        self._near = NearDuplicates()
        self._taken: list[tuple[Draw, Proposal]] = []
        self._is_left: list[bool] = []

    def take(self, draw: Draw, made: Proposal) -> str | None:
        """Take a question in; return why it is refused, or None."""
        if (wrong := _own_check(made)) is not None:
            return wrong
        text = question_text(made.messages)
        key = text_key(text)
        if key in self._seen:
            return "copy of another row"
        try:
            copied = self._copies.half(made)
        except DataError:
            return "no chat that can be trained on"
        if copied is not None:
            return f"copy of the half {copied}"
        self._seen.add(key)
        self._near.add(text)
        self._taken.append((draw, made))
        self._is_left.append(True)
        return None

    def drop_near_copies(self) -> None:
        """Drop what nearly repeats an earlier question."""
        for group in self._near.groups():
            for place in group[1:].tolist():
                if self._is_left[place]:
                    self._is_left[place] = False
                    self._taken[place][0].target.refused["near copy of another row"] += 1

    def fill(self, targets: Sequence[Target]) -> None:
        """Tell each target which of its rows are kept."""
        for target in targets:
            target.filled = {draw.number for draw, _ in self._left() if draw.target is target}

    def rows(self) -> list[Example]:
        """Return the questions that are kept, by target and number."""
        left = sorted(
            self._left(),
            key=lambda one: (
                ARMS.index(one[0].target.arm),
                one[0].target.cluster or 0,
                one[0].number,
            ),
        )
        groups = twin_groups([question_text(made.messages) for _, made in left])
        return [
            Example(
                id=item_id(made.messages, made.verifier, made.reply),
                arm=draw.target.arm,
                cluster=draw.target.cluster,
                stratum=draw.items[0].stratum,
                messages=made.messages,
                reply=made.reply,
                verifier=made.verifier,
                reference=made.reference,
                source=made.source,
                group=group,
            )
            for (draw, made), group in zip(left, groups, strict=True)
        ]

    def _left(self) -> list[tuple[Draw, Proposal]]:
        return [one for one, is_left in zip(self._taken, self._is_left, strict=True) if is_left]


def _own_check(made: Proposal) -> str | None:
    """Check a reply by its own verifier; unit tests run when the rows are scored, in the sandbox."""
    if made.verifier is None:
        return None
    verifier = parse_verifier(made.verifier, made.source)
    if isinstance(verifier, UnitTest):
        return None
    try:
        return None if check(verifier, made.reply).passed else "reply fails its own verifier"
    except CheckFailed:
        return "verifier cannot be checked"


class _Copies:
    """Says whether a row copies a question of the test set: as a prompt, nearly, or 13 words of it.

    This is the one place of this step that reads the untouched half, and yes or no is all that it says.
    """

    def __init__(self, folder: Path) -> None:
        halves = [read_half(folder, half) for half in HALVES]
        self._find = len(halves[0])
        every = [item for half in halves for item in half]
        self._search = TrainingSearch(
            [item.messages for item in every], [item.group for item in every]
        )

    def half(self, made: Proposal) -> Half | None:
        """Return the half of which a row holds a question; None: of neither."""
        *before, asked = made.messages
        hits: set[int] = set()
        for text in dict.fromkeys((turn_text(asked), plain_question(turn_text(asked)))):
            turns = [*before, {**asked, "content": text}]
            hits.update(self._search.find(chat_of(turns, made.reply, made.source)))
        return (HALVES[min(hits) >= self._find]) if hits else None


def plain_question(text: str) -> str:
    """Return a question without markup, other forms of its letters, and a word such as "Question 3:" before it."""
    plain = _TAG.sub(" ", unicodedata.normalize("NFKC", html.unescape(text)))
    return _HEADING.sub("", plain.strip()) or text
