"""Checks of one row at a time: forbidden characters, control tokens, personal data, roles, length."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import pairwise

from forty2.data.checks.contamination import Benchmark, ContaminationFinder
from forty2.data.checks.findings import INDEX, CheckedRow, Fault, Level, RowFaults
from forty2.data.record_texts import messages_of, prompt_turns, texts_of
from forty2.data.records import Chat, Message, Record
from forty2.data.thoughts import closes_unopened
from forty2.errors import DataError

CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]"
)
"""Control characters, and invisible characters."""
_SPECIAL = re.compile(r"<\|[\w-]{1,40}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</s>")
"""Spellings of control tokens in common use."""
_OPENS_ANSWER: dict[Level, re.Pattern[str]] = {
    "error": re.compile(
        r"(<\|im_start\|>assistant|<\|start_header_id\|>assistant<\|end_header_id\|>|\[/INST\]"
        r"|<start_of_turn>model|<[|｜](?:assistant|CHATBOT_TOKEN)[|｜]>)\s*$",
        re.IGNORECASE,
    ),
    "warning": re.compile(r"(?:^|\n)((?:#+ ?(?:Response|Answer)|(?:#+ ?)?Assistant):)\s*$", re.I),
}
"""Ends of prompts that a chat template has written already: its control tokens, or its words alone."""
_PERSONAL = {
    "an e-mail address": re.compile(r"\b[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]*[a-z]{2}\b", re.I),
    "a telephone number": re.compile(
        # +49 170 1234567; (555) 123-4567; 0170 1234567, 030/123456, 03-1234-5678 and 01 23 45 67 89,
        # with a separator, so that no number in a calculation is one
        r"(?<![\w.])(?<!\d[ -])(?:\+\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d(?:[ -]?\d){6,11}"
        r"|\(\d{2,5}\)[ -]?\d{3,4}(?:[ -]?\d{2,5}){1,3}|\d{3}-\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4}"
        r"|0\d(?:[ .-]\d{2}){4}(?![ .-]\d)|0\d[ -]\d{4}[ -]\d{4}"
        r"|0\d{2,4}[ /-]\d{3,4}(?:[ -]?\d{2,5}){1,3})\b(?![.,]\d)"
        # a local number, where a word before it says so: call me at 867-5309; Tel. 12345678
        r"|\b(?:call|dial|text|phone|ring)\b[^\d\n]{0,20}\b\d{3}-\d{4}\b"
        r"|\b(?:tel|telephone|phone|mobile|cell|fax|telefon|handy)\b[.:]?(?: (?:number|no|is)\b)*[.:]?"
        r" ?\d{3,5}[ -]?\d{3,5}\b(?![.,]\d)",
        re.I,
    ),
    "an IBAN": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b"),
    "a card number": re.compile(r"\b\d(?:[ -]?\d){12,18}\b"),
    "an IP address": re.compile(
        r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b"
    ),
}
_NOT_PERSONAL = re.compile(
    r"[@.]example(?:\.\w{2,4}){0,2}$|\.(?:test|invalid|localhost)$|@(?:\w+\.)?test(?:\.\w{2,4})?$"
    r"|\b555[-. ]01\d\d$|127\.0\.0\.1|0\.0\.0\.0|192\.168\."
)
"""Domains reserved for examples (RFC 2606), telephone numbers reserved for fiction, and addresses of
no one machine."""


class TextCheck:
    """Finds characters and tokens that must not be trained on, and personal data.

    Args:
        specials: the tokenizer's special tokens; empty: the spellings in common use.
    """

    def __init__(self, specials: Collection[str]) -> None:
        longest_first = sorted(specials, key=len, reverse=True)
        self._special = (
            re.compile("|".join(map(re.escape, longest_first))) if specials else _SPECIAL
        )
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        for text in texts_of(row.record):
            if CONTROL.search(text):
                message = "holds control or invisible characters"
                self._found.add("control", "error", message, row.index)
            if token := self._special.search(text):
                message = f"spells the special token {token[0]}"
                self._found.add("special", "error", message, row.index)
            for kind, pattern in _PERSONAL.items():
                matches = (match[0] for match in pattern.finditer(text))
                if any(_plausible(kind, m) and not _NOT_PERSONAL.search(m) for m in matches):
                    self._found.add("personal", "warning", f"holds {kind}", row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class RenderedCheck:
    """Finds prompts that a chat template has written already; ours would wrap them in a user turn."""

    def __init__(self) -> None:
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        for text in prompt_turns(row.record)[-1:]:
            for level, pattern in _OPENS_ANSWER.items():
                if found := pattern.search(text):
                    message = (
                        f"its prompt ends with {found[1]}, where a chat template begins the answer; "
                        "write the turns as messages"
                    )
                    self._found.add("rendered", level, message, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class ThoughtCheck:
    """Finds answers that close a thought which they do not open."""

    def __init__(self) -> None:
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        answers = (m for m in messages_of(row.record) if m["role"] == "assistant")
        for closing in filter(None, (closes_unopened(m["content"]) for m in answers)):
            message = (
                f"its answer closes a thought with {closing} that it does not open; unless the chat "
                "template opens it, put the thought into reasoning_content"
            )
            self._found.add("thought", "warning", message, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class RoleCheck:
    """Finds conversations whose turns are in an order that chat templates refuse or garble."""

    def __init__(self) -> None:
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        if isinstance(row.record, Chat) and (problem := _disorder(row.record.messages)):
            self._found.add("roles", "error", problem, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class LengthCheck:
    """Finds rows that lose the beginning of their prompt, or are dropped, when they are encoded.

    Rows that cannot be encoded, because the chat template refuses them, are counted by the reason.

    Args:
        fits: returns what is wrong with a record's length; None: nothing. Raises DataError if the
            record cannot be encoded.
    """

    def __init__(self, fits: Callable[[Record], str | None]) -> None:
        self._fits = fits
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        try:
            problem = self._fits(row.record)
        except DataError as error:
            reason = str(error).removeprefix(f"{row.record.origin}: ")
            self._found.add("template", "error", INDEX.sub("[…]", reason), row.index)
            return
        if problem:
            level: Level = "error" if "response" in problem else "warning"
            self._found.add("length", level, problem, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


class BenchmarkCheck:
    """Finds training rows that overlap with benchmark files."""

    def __init__(self, benchmarks: Sequence[Benchmark]) -> None:
        self._finder = ContaminationFinder(benchmarks, near_copies=False)
        self._found = RowFaults()

    def add(self, row: CheckedRow) -> None:
        if row.split == "train" and (hits := self._finder.find(row.record)):
            message = f"overlaps with {hits[0].benchmark}; take it out"
            self._found.add("benchmark", "error", message, row.index)

    def faults(self) -> Iterator[Fault]:
        return self._found.faults()


def _disorder(messages: Sequence[Message]) -> str | None:
    """Say what is wrong with the order of the roles; None: nothing."""
    roles = [m["role"] for m in messages]
    if "system" in roles[1:]:
        return "a system message stands after the first turn"
    speakers = [role for role in roles if role in ("user", "assistant")]
    if speakers[:1] == ["assistant"]:
        return "the assistant speaks first"
    # A tool's result lies between two turns of the assistant.
    if any(a == b for a, b in pairwise(speakers)) and "tool" not in roles:
        return "two turns of one role follow each other"
    return None


def _plausible(kind: str, number: str) -> bool:
    """Return whether a number can be of its kind: a card number's last digit is checked (Luhn)."""
    if kind != "a card number":
        return True
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in digits[-2::-2]]
    return len(digits) >= 13 and (sum(digits[::-2]) + sum(doubled)) % 10 == 0
