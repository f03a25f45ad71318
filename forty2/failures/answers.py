"""What a reply answers: its final number, choice, text, program or JSON value.

A reply may reason first, name other numbers on the way, and wrap its answer in Markdown or LaTeX.
Where it says which part is the answer ("The answer is …", "#### …", a box), that part alone counts,
the last one if there are several.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

_BRACE = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*\{)|[{}]")
_STATED = re.compile(
    r"####[ \t]*|\b(?:final\s+)?answer\b(?:\s+(?:is|would\s+be|should\s+be|equals)\b|\s*[:=])+"
    r"(?!\s*not\b)[ \t:]*\n?",
    re.IGNORECASE,
)
"""Words that say that the answer follows."""
_NUMBER = re.compile(
    r"(?<![\w.])(?P<sign>[-−–](?=[\d.$€£]))?[$€£]?(?P<minus>[-−])?"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<part>\.\d+)?(?P<power>[eE][-+]?\d{1,3})?"
    r"(?:\s?/\s?(?P<below>\d+)(?![\d/]))?"
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_UNIT = re.compile(r"[ \u00a0\u202f]?(%|°?[A-Za-zµ]+[²³]?(?:/[a-z]+)?)")
_FRACTION = re.compile(r"\\d?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_LATEX = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_LATEX_SPACE = re.compile(r"\\[,;! ]|\{,\}|\\(?=[$%])|\\[()\[\]]")
_BOLD = re.compile(r"\*\*(.+?)\*\*")
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_QUOTED = re.compile(
    r"`([^`\n]+)`|\"([^\"\n]+)\"|“([^”\n]+)”|(?<!\w)'([^'\n]+)'(?!\w)|\*\*(.+?)\*\*"
)
_WRAPPINGS = (
    ("**", "**"),
    ("__", "__"),
    ("`", "`"),
    ('"', '"'),
    ("'", "'"),
    ("“", "”"),
    ("$", "$"),
)
_OPENING = re.compile(r"[{\[]")
_MOST_STARTS = 200
"""Brackets at which a JSON value is looked for; each may take a search to the end of the reply."""
_MOST_DIGITS = 1000
"""Digits of a number that are read; of a longer one, the size alone counts."""
_NOT_WITHIN = 30
"""Characters before a place in which a "not" that belongs to it ends and begins."""
_AFTER_LABEL = r"(?=\s*(?:$|[^\w\s'’])|[ \t]*\n|\s+(?:because|since|as)\b)"
"""What may follow a choice's letter: "B", "B.", "B because", but not "A dog"."""


class Number(NamedTuple):
    """A number in a text, and the unit that stands after it."""

    value: Fraction
    unit: str


def without_thoughts(reply: str) -> str:
    """Return a reply without what a reasoning model thinks before it; of thoughts that were cut, nothing."""
    return _after_thoughts(reply).strip()


def _after_thoughts(reply: str) -> str:
    return reply.rpartition("</think>")[2].partition("<think>")[0]


# --- where the answer is --------------------------------------------------------------------------


def stated_answer(text: str) -> str | None:
    """Return what a text says is its answer; None: it does not say.

    It is the content of the last box, or else the line after the last "The answer is", "Answer:" or
    "####".
    """
    if (box := _last_box(text)) is not None:
        return box
    ends = [found.end() for found in _STATED.finditer(text)]
    if not ends:
        return None
    line = text[ends[-1] :].lstrip().partition("\n")[0].strip()
    if line.count("**") % 2:  # the words before it are in bold, too
        line = line.replace("**", "", 1).strip()
    return line or None


def _last_box(text: str) -> str | None:
    """Return the content of the box that begins last; None: no box is closed."""
    open_braces: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for found in _BRACE.finditer(text):
        if found[0] != "}":
            open_braces.append((found["box"] is not None, found.end()))
        elif open_braces:
            is_box, start = open_braces.pop()
            if is_box and (last is None or start > last[0]):
                last = start, found.start()
    return None if last is None else text[slice(*last)]


def bare(text: str) -> str:
    """Return a text without quotes, emphasis, box and final full stop around it, and single spaces."""
    text = " ".join(_plain_latex(text).split())
    while True:
        before = text
        text = text.strip()
        if text.endswith(".") and not text.endswith(".."):
            text = text[:-1]
        for opening, closing in _WRAPPINGS:
            inside = text[len(opening) : -len(closing)]
            wrapped = text.startswith(opening) and text.endswith(closing) and len(text) > 2
            if wrapped and inside and opening not in inside:
                text = inside
        if text == before:
            return text


def candidates(reply: str) -> list[str]:
    """Return the texts that a reply may give as its answer, without what is around them.

    It is the stated answer alone, if there is one. Otherwise: the whole reply, its only code block,
    its only quoted or emphasised part, and what stands after a colon on its last line.
    """
    text = without_thoughts(reply)
    if (stated := stated_answer(text)) is not None:
        return [bare(stated)]
    found = [text]
    if len(blocks := code_blocks(text)) == 1:
        found.append(blocks[0])
    quoted = [m for m in _QUOTED.finditer(text) if not _is_denied(text, m.start())]
    if len(quoted) == 1:
        found += [part for part in quoted[0].groups() if part is not None]
    last = text.rstrip().rpartition("\n")[2]
    if ": " in last and not re.search(r"\bnot:? *$", last.rpartition(": ")[0]):
        found.append(last.rpartition(": ")[2])
    return [bare(part) for part in found]


def _is_denied(text: str, place: int) -> bool:
    """Return whether the word before a place is "not"."""
    before = text[max(0, place - _NOT_WITHIN) : place]
    return re.search(r"\bnot\s*[*_\"'`]*$", before, re.IGNORECASE) is not None


# --- numbers --------------------------------------------------------------------------------------


def final_number(reply: str) -> Number | None:
    """Return the number that a reply answers; None: there is none.

    It is the one in the stated answer, after the last equals sign of its sentence. Without one, it
    is the last that stands in bold type at the beginning of a bold part, or else the last of all.
    """
    text = without_thoughts(reply)
    if (stated := stated_answer(text)) is not None:
        sentence = re.split(r"[.;!?](?:\s|$)", stated, maxsplit=1)[0]
        numbers = list(numbers_in(sentence.rpartition("=")[2])) or list(numbers_in(stated))
        return numbers[0] if numbers else None
    bold = [part[1] for part in _BOLD.finditer(text) if not _is_denied(text, part.start())]
    strong = [found for part in bold if (found := _number_at_start(part)) is not None]
    numbers = strong or list(numbers_in(text))
    return numbers[-1] if numbers else None


def numbers_in(text: str) -> Iterator[Number]:
    """Yield the numbers of a text, but for ordinals and those after "not".

    1,200 is one number and 1, 200 are two; 3/4 is a fraction; the minus in 10-12 is none.
    """
    text = _plain_latex(text)
    for found in _NUMBER.finditer(text):
        if found["digits"] is None and found["part"] is None:
            continue
        if _ORDINAL.match(text, found.end()) or _is_denied(text, found.start()):
            continue
        yield _number(found, text)


def _number_at_start(text: str) -> Number | None:
    text = _plain_latex(text).strip()
    found = _NUMBER.match(text)
    if found is None or (found["digits"] is None and found["part"] is None):
        return None
    return _number(found, text)


def _number(found: re.Match[str], text: str) -> Number:
    value = _whole((found["digits"] or "0").replace(",", ""))
    value += Fraction(f"0{(found['part'] or '')[:_MOST_DIGITS]}")
    value *= Fraction(f"1{found['power'] or ''}")
    if found["below"] and (below := _whole(found["below"])):
        value /= below
    if found["sign"] or found["minus"]:
        value = -value
    unit = _UNIT.match(text, found.end())
    return Number(value, unit[1] if unit else "")


def _whole(digits: str) -> Fraction:
    """Read a whole number; a model that repeats a digit without end writes one that Python refuses."""
    return Fraction(digits if len(digits) <= _MOST_DIGITS else f"1e{len(digits)}")


def _plain_latex(text: str) -> str:
    text = _FRACTION.sub(r"\1/\2", text)
    return _LATEX_SPACE.sub("", _LATEX.sub(r" \1", text))


# --- choices --------------------------------------------------------------------------------------


def chosen(reply: str, choices: Mapping[str, str]) -> str | None:
    """Return the label of the choice that a reply makes; None: it makes none, or several.

    A label counts in the stated answer, as the whole reply, at the beginning of exactly one line, or
    where it alone stands in brackets, in bold or after "option". The word "a" and the pronoun "I" do
    not count, nor does a list of all choices.

    Args:
        choices: text of each choice, by its label.
    """
    text = without_thoughts(reply)
    labels = "|".join(sorted(map(re.escape, choices), key=len, reverse=True))
    stated = stated_answer(text)
    if stated is not None:
        return _label_at_start(stated, labels, choices)
    if (whole := _label_of(bare(text), choices)) is not None:
        return whole
    head = (
        rf"^[ \t]*[*_(\[]*(?:option |choice )?({labels})(?:[*_\])]*[).:][*_]*(?=\s|$)|[*_\])]*\s*$)"
    )
    started = {found[1] for found in re.finditer(head, text, re.MULTILINE)}
    marked = (
        rf"\(({labels})\)|\*\*\(?({labels})[).]?\*\*|\b(?:[Oo]ption|[Cc]hoice)\s+\(?({labels})\b"
    )
    named = {part for found in re.finditer(marked, text) for part in found.groups() if part}
    return (started | named).pop() if len(started | named) == 1 else None


def _label_at_start(text: str, labels: str, choices: Mapping[str, str]) -> str | None:
    text = _plain_latex(text).strip()
    start = rf"[*_`(\[\"']*(?:option\s+|choice\s+)?[*_`(\[\"']*({labels}){_AFTER_LABEL}"
    found = re.match(start, text, re.IGNORECASE)
    if found is not None:
        return next(label for label in choices if label.casefold() == found[1].casefold())
    return _label_of(bare(text), choices)


def _label_of(text: str, choices: Mapping[str, str]) -> str | None:
    """Return the choice that a text is: its label, its text, or both."""
    folded = text.casefold().strip("().")
    for label, choice in choices.items():
        both = {f"{label}{mark} {choice}".casefold() for mark in (".", ")", ":")}
        if folded == label.casefold() or text.casefold() in both:
            return label
    same = [label for label, choice in choices.items() if bare(choice).casefold() == folded]
    return same[0] if len(same) == 1 else None


# --- programs and JSON ----------------------------------------------------------------------------


def code_blocks(text: str) -> list[str]:
    """Return the contents of a text's fenced blocks; the last may lack its end."""
    return [found[2] for found in _FENCE.finditer(text)]


def program_of(reply: str, entry_point: str) -> str:
    """Return the program in a reply: the first code block that defines a function.

    Without such a block it is the first block, and without any, the whole reply.
    """
    text = _after_thoughts(reply)
    blocks = code_blocks(text)
    defines = re.compile(rf"^\s*(?:async\s+)?def\s+{re.escape(entry_point)}\b", re.MULTILINE)
    found = next((block for block in blocks if defines.search(block)), None)
    return found if found is not None else (blocks[0] if blocks else text)


def json_values(reply: str) -> list[object]:
    """Return the JSON objects and lists that a reply gives.

    If it is one value as a whole, or in its code blocks, this is all; otherwise those in its text.
    """
    text = without_thoughts(reply)
    for parts in ([text], code_blocks(text)):
        values = [value for part in parts for value in _whole_value(part)]
        if values:
            return values
    return list(_values_in(text))


def _whole_value(text: str) -> Sequence[object]:
    try:
        return [json.loads(text)]
    except (ValueError, RecursionError):
        return []


def _values_in(text: str) -> Iterator[object]:
    decoder, place = json.JSONDecoder(), 0
    for _ in range(_MOST_STARTS):
        found = _OPENING.search(text, place)
        if found is None:
            return
        try:
            value, place = decoder.raw_decode(text, found.start())
        except RecursionError:  # so would be the value that begins inside
            return
        except ValueError:
            place = found.end()
        else:
            yield value
