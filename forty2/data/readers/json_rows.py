"""Reading of rows from JSON Lines and JSON arrays, and writing of JSON Lines."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from forty2.data import row_keys
from forty2.data.readers.files import (
    BLANK,
    LONGEST,
    decoded,
    not_utf8,
    numbered_lines,
    open_file,
    too_blank,
    too_long,
)
from forty2.errors import DataError
from forty2.files import JsonObject

_DEEPEST = 100
"""Most levels of nesting: no real data is as deep, and writing a row recurses once a level."""
_BLANKS = re.compile(r"[ \t\r\n]*")


def dumps(rows: Iterable[Mapping[str, object]]) -> str:
    """Write JSON Lines, the same bytes on every platform."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_line(line: bytes, number: int, path: Path) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for one line; nothing for a blank one."""
    if line.strip():
        origin = f"{path}:{number}"
        text = decoded(line, origin, first=number == 1)
        value = parsed(text, origin, whole=line.endswith(b"\n"))
        yield origin, _row(value, origin, escaped="\\u" in text)


class JsonForm(NamedTuple):
    """How a file of JSON holds its rows."""

    kind: Literal["lines", "array", "wrapped", "values"]
    """One on each line; in an array; in an array that an object wraps, as in `{"data": [...]}`; or one
    after another, each over several lines."""
    key: str = ""
    """Key of the array in the object that wraps it."""


_WRAPPERS = {
    "data",
    "rows",
    "examples",
    "train",
    "items",
    "records",
    "instances",
    "samples",
    "dataset",
}
"""Keys under which an object with several keys may hold rows; one with a single key may use any other
than those of a row."""


def json_form(file: BinaryIO, path: Path) -> JsonForm:
    """Find out how a file of JSON holds its rows: by its beginning, because names mislead.

    What begins as none of the forms counts as lines, which are refused one by one. The file is left
    at its beginning.
    """
    named = ".json" in map(str.lower, path.suffixes[-2:])
    first = file.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    try:
        if first == b"[" and named:
            return JsonForm("array")
        with contextlib.suppress(DataError):
            if first == b"[":
                window = _window(file, path)
                window.at += 1
                return JsonForm("array" if window.peek() == "{" else "lines")
            if first == b"{":
                return _form_of_objects(file, path)
        return JsonForm("lines")
    finally:
        file.seek(0)


def refuse_json(file: BinaryIO, path: Path) -> None:
    """Refuse a plain text that holds rows in JSON, which would be learned as a text.

    The file is left at its beginning.

    Raises:
        DataError: with the name to give to the file.
    """
    form = json_form(file, path)
    if form.kind == "lines" and not _begins_with_object(file, path):
        return
    packed = path.suffix.lower() == ".gz"
    name = path.with_suffix("").stem if packed else path.stem
    kind = (".jsonl" if form.kind == "lines" else ".json") + path.suffix * packed
    raise DataError(
        f"{path}: holds rows in JSON, not plain text; name it {name}{kind} to train on the rows"
    )


def _begins_with_object(file: BinaryIO, path: Path) -> bool:
    """Return whether the first line that is not blank is an object; leave the file at its beginning."""
    try:
        line = next((line for _, line in numbered_lines(file.readline, path) if line.strip()), b"")
        return isinstance(parsed(decoded(line, str(path)), str(path)), dict)
    except DataError:
        return False
    finally:
        file.seek(0)


def _form_of_objects(file: BinaryIO, path: Path) -> JsonForm:
    """Find out how a file that begins with an object holds its rows."""
    file.seek(0)
    lines = (line for _, line in numbered_lines(file.readline, path) if line.strip())
    line = next(lines, b"")
    with contextlib.suppress(DataError):
        value = parsed(decoded(line, str(path)), str(path))
        alone = next(lines, None) is None
        key = _wrapping_key(value, alone=alone) if isinstance(value, dict) else None
        return JsonForm("lines") if key is None else JsonForm("wrapped", key)
    with contextlib.suppress(DataError):
        if (key := _find_wrapped(_window(file, path))) is not None:
            return JsonForm("wrapped", key)
    window = _window(file, path)
    begin = window.origin
    window.value()
    several_lines = window.origin != begin and window.peek() in ("", "{")
    return JsonForm("values" if several_lines else "lines")


def _window(file: BinaryIO, path: Path) -> _Window:
    """Go to the first value of a file of JSON."""
    file.seek(0)
    window = _Window(file, path)
    window.peek()
    return window


def json_rows(
    path: Path, complain: Callable[[str], None] | None = None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield (origin, row) for each row of a file of JSON, decoded one by one to have only one in memory.

    Args:
        complain: called with a message about each line or element that is not a row, or about what
            ends the reading of an array; None: raise it.
    """
    with open_file(path) as file:
        form = json_form(file, path)
        lines = form.kind == "lines"
        rows = _lines(file, path, complain) if lines else _values(file, path, form, complain)
        try:
            yield from rows
        except DataError as error:
            if complain is None or lines:
                raise
            complain(str(error))


def _lines(
    file: BinaryIO, path: Path, complain: Callable[[str], None] | None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield the rows of a file of JSON Lines."""
    for number, line in numbered_lines(file.readline, path):
        try:
            yield from json_line(line, number, path)
        except DataError as error:
            if complain is None:
                raise
            complain(str(error))


def _values(
    file: BinaryIO, path: Path, form: JsonForm, complain: Callable[[str], None] | None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield the rows of a file of JSON that are not one on each line."""
    window = _window(file, path)
    if form.kind == "values":
        while window.peek():
            yield from window.row(window.origin, complain)
    elif form.kind == "array":
        yield from _elements(window, complain)
    else:
        yield from _wrapped(window, form.key, complain)
    if window.peek():
        raise DataError(f"{window.origin}: the array ends before this; put all rows into one")


def _wrapping_key(value: JsonObject, *, alone: bool) -> str | None:
    """Return the key under which an object wraps rows; None: it is a row.

    Args:
        alone: whether the file holds nothing else. A list of objects under any key is then taken for
            rows, beside facts about the file, unless the object has keys of a row.
    """
    unknown = (alone or len(value) == 1) and not value.keys() & row_keys.ALL
    for key, rows in value.items():
        wraps = key in _WRAPPERS or unknown
        if wraps and isinstance(rows, list) and rows and _is_row(rows[0]):
            return key
    return None


def _is_row(value: object) -> bool:
    """Return whether an element of a list may be a row: an object that is not a message."""
    return isinstance(value, dict) and not {"role", "from"} & value.keys()


def _find_wrapped(window: _Window) -> str | None:
    """Return the key under which the object at `window` wraps rows; None: it does not."""
    unknown = True
    for key in _keys(window):
        unknown = unknown and key not in row_keys.ALL
        wraps = key in _WRAPPERS or unknown
        if wraps and window.peek() == "[":
            window.at += 1
            if window.peek() == "{":
                return key if _is_row(window.value()[0]) else None
            while window.peek() != "]":  # a list of something else beside the rows
                window.value()
                window.at += window.peek() == ","
            window.at += 1
        else:
            window.value()
    return None


def _wrapped(
    window: _Window, wanted: str, complain: Callable[[str], None] | None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield the rows under one key of the object at `window`, and move past the object."""
    for key in _keys(window):
        if key == wanted:
            yield from _elements(window, complain)
            continue
        origin = window.origin
        value, _ = window.value()
        if isinstance(value, list) and value and _is_row(value[0]):
            raise DataError(
                f"{origin}: {wanted} and {key} both hold rows; save those to train on to a file of "
                "their own"
            )
    if window.peek() != "}":
        raise DataError(f"{window.origin}: the object does not end after its rows")
    window.at += 1


def _keys(window: _Window) -> Iterator[str]:
    """Yield the keys of the object at `window`, each time at its value, which is then passed."""
    window.at += 1
    while window.peek() == '"':
        key, _ = window.value()
        if window.peek() != ":":
            return
        window.at += 1
        window.peek()
        yield str(key)
        if window.peek() != ",":
            return
        window.at += 1


def _elements(
    window: _Window, complain: Callable[[str], None] | None
) -> Iterator[tuple[str, JsonObject]]:
    """Yield the rows of the array at `window`, and move past it."""
    window.at += 1
    number, line = 0, ""
    while window.peek() != "]":
        origin = window.origin
        number, line, before = number + 1, origin, line
        # Rows on one line are told apart by their numbers.
        named = origin if line != before else f"{window.path}:row {number}"
        yield from window.row(named, complain)
        after = window.peek()
        if after == ",":
            window.at += 1
        elif after != "]":
            raise DataError(f"{origin}: after this row there must come a comma or the end")
    window.at += 1


class _Window:
    """The part of a JSON file that is being read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.at = 0
        """Index of the character of the part that is read next."""
        self._text, self._line = "", 1
        self._file, self.path = file, path
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode

    @property
    def origin(self) -> str:
        return f"{self.path}:{self._line}"

    def peek(self) -> str:
        """Move `at` to the next character that is not blank and return it; "" at the end."""
        blank = 0
        while True:
            match = _BLANKS.match(self._text, self.at)
            assert match is not None  # it matches the empty text
            end = match.end()
            blank += end - self.at
            self._go(end)
            if end < len(self._text) or not self._grow():
                return self._text[self.at : self.at + 1]
            if blank > BLANK:
                raise too_blank(self.origin)

    def row(
        self, origin: str, complain: Callable[[str], None] | None
    ) -> Iterator[tuple[str, JsonObject]]:
        """Read the value at `at` and move past it; yield it with its origin if it is a row.

        Args:
            complain: called with a message about a value that is no row; None: raise it.
        """
        value, text = self.value()
        try:
            row = _row(value, origin, escaped="\\u" in text)
        except DataError as error:
            if complain is None:
                raise
            complain(str(error))
        else:
            yield origin, row

    def value(self) -> tuple[object, str]:
        """Read the value at `at` and move past it; also return its JSON text."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self.at)
                written = self._text[self.at : end]
                _check_depth(value, written)
                self._go(end)
                return value, written
            except (ValueError, RecursionError) as error:
                cut = isinstance(error, json.JSONDecodeError) and (
                    error.msg.startswith("Unterminated") or error.pos > len(self._text) - 16
                )
                if not cut or not self._grow():
                    raise DataError(f"{self.origin}: not JSON: {_why(error)}") from error

    def _go(self, end: int) -> None:
        self._line += self._text.count("\n", self.at, end)
        self.at = end

    def _grow(self) -> bool:
        """Read more: as much again as is not decoded yet, so that nothing is decoded more than twice."""
        left = self._text[self.at :]
        if len(left) >= LONGEST:
            raise too_long(self.origin)
        data = self._file.read(max(len(left), 1 << 16))
        try:
            self._text, self.at = left + self._decode(data, not data), 0
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = self._line + left.count("\n") + before.count(b"\n")
            where = "a byte of the line"
            raise not_utf8(f"{self.path}:{line}", where, error.object[error.start]) from error
        return bool(data)


def parsed(text: str, origin: str, *, whole: bool = True, deepest: int = _DEEPEST) -> object:
    """Parse JSON, without NaN, infinities, repeated keys and deep nesting.

    Args:
        whole: whether the text is complete; a last line without a line end may be cut off.
        deepest: most levels of nesting.
    """
    try:
        value: object = _DECODER.decode(text)
        _check_depth(value, text, deepest)
        return value
    except (ValueError, RecursionError) as error:
        cut = "" if whole else "; the last line is cut off"
        if getattr(error, "msg", "") == "Extra data":
            cut = f" behind character {getattr(error, 'pos', 0)}; put each object on a line of its own"
        raise DataError(f"{origin}: not a JSON object: {_why(error)}{cut}") from error


def unique_keys(pairs: list[tuple[str, object]]) -> JsonObject:
    """Make a JSON object; refuse a key given twice, which would hide the first value.

    Raises:
        ValueError: naming the key.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{repeated(key for key, _ in pairs)!r} is there twice; remove one")
    return found


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs more than once; None: none does."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number in JSON")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


_DECODER = json.JSONDecoder(
    parse_constant=_no_number, parse_float=_number, object_pairs_hook=unique_keys
)


def _check_depth(value: object, text: str, deepest: int = _DEEPEST) -> None:
    """Refuse values nested too deeply, with the error that still deeper ones cause."""
    if text.count("{") + text.count("[") <= deepest:
        return
    level = [value]
    for _ in range(deepest):
        level = [inner for outer in level for inner in _within(outer)]
    if level:
        raise RecursionError


def _within(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _why(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(getattr(error, "msg", "") or error).split("; use sys.")[0]


def _row(value: object, origin: str, *, escaped: bool) -> JsonObject:
    """Check that a value is a row; an `escaped` one may hold halves of surrogate pairs."""
    if not isinstance(value, dict):
        raise DataError(f"{origin}: not a JSON object but {type(value).__name__}")
    if escaped:
        try:
            dumps([value]).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{origin}: holds half of a surrogate pair, which is not valid Unicode"
            ) from error
    return value
