"""Opening of data files, reading by lines and decoding, within limits on the size of a row."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, AnyStr, BinaryIO

from forty2.errors import DataError
from forty2.files import LFS_POINTER, WEB_PAGE

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LONGEST = 8_000_000
"""Most bytes of a row, so that a packed file cannot fill the memory."""
BLANK = 1_000_000
"""Most bytes of blanks between two rows."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, and the encodings that they say a file is in."""
_BINARY = {
    b"\x1f\x8b": "a file packed by gzip (.gz)",
    b"PAR1": "a Parquet file (.parquet)",
    b"ARROW1": "an Arrow file (.arrow)",
    b"\xff\xff\xff\xff": "an Arrow stream (.arrow)",
    b"PK\x03\x04": "a zip archive, or a workbook of Excel",
    b"\x28\xb5\x2f\xfd": "a file packed by zstd",
    b"SQLite format 3": "a database of SQLite",
}
"""Kinds of files that hold no text, by their first bytes."""
_UNPACKED, _RATIO = 64_000_000, 200
"""Bytes that any packed file may unpack to; above that, bytes for each byte of the file. Text packs
to a tenth of its size, a file made to fill the memory to a thousandth."""


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading as UTF-8; a .gz file is unpacked, and UTF-16 recoded, as it is read."""
    packed = path.suffix.lower() == ".gz"
    file: io.BufferedReader = (
        io.BufferedReader(_Unpacked(path), 1 << 17) if packed else path.open("rb")
    )
    try:
        start = file.peek(64)
        if start.startswith(LFS_POINTER):
            raise pointer(path)
        if kind := next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None):
            raise DataError(f"{path}: is {kind}, not text; name it by its kind, or save it as text")
        if WEB_PAGE.match(start) and ".txt" not in map(str.lower, path.suffixes):
            raise DataError(f"{path}: is a web page (HTML), not rows; download the file itself")
        encoding = _encoding_of(start[:16])
    except BaseException:
        file.close()
        raise
    if encoding is None:
        return file
    return io.BufferedReader(_Recoded(file, encoding, path), 1 << 17)


def pointer(path: Path) -> DataError:
    """Make the error for a file that Git LFS has not fetched."""
    return DataError(
        f"{path}: is a pointer of Git LFS, not the rows; run `git lfs pull` in its folder"
    )


def _encoding_of(start: bytes) -> str | None:
    """Return UTF-16 or UTF-32 if a file that starts like this certainly is in it; else None."""
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    low, high = start[::2], start[1::2]
    if len(start) < 8 or len(start) % 2:
        return None
    for letters, zeros, encoding in ((low, high, "utf-16-le"), (high, low, "utf-16-be")):
        if not any(zeros) and all(0 < letter < 128 for letter in letters):
            return encoding
    return None


class _Recoded(io.RawIOBase):
    """The content of a file in another encoding, as UTF-8."""

    def __init__(self, file: BinaryIO, encoding: str, path: Path) -> None:
        self._file, self._encoding, self._path = file, encoding, path
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left, self._at = b"", 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go back to the beginning, the only place that can be found again."""
        if offset or whence:
            raise io.UnsupportedOperation("only the beginning can be found again")
        self._file.seek(0)
        self._decoder.reset()
        self._left, self._at = b"", 0
        return 0

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        while not self._left:
            data = self._file.read(1 << 16)
            try:
                self._left = self._decoder.decode(data, not data).encode()
            except UnicodeError as error:
                raise DataError(
                    f"{self._path}: begins as {self._encoding.upper()} but is damaged "
                    f"({reason_of(error)}); save the file as UTF-8"
                ) from error
            if not data:
                break
        count = min(len(view), len(self._left))
        view[:count], self._left = self._left[:count], self._left[count:]
        self._at += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Unpacked(io.RawIOBase):
    """The content of a .gz file; reading fails once it is out of proportion to the file."""

    def __init__(self, path: Path) -> None:
        self._file = gzip.open(path, "rb")  # closed by `close`  # noqa: SIM115
        self._path, self._size = path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go back to the beginning, the only place that can be found again."""
        if offset or whence:
            raise io.UnsupportedOperation("only the beginning can be found again")
        self._file.seek(0)
        self._size = 0
        return 0

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = self._file.readinto(buffer)
        self._size += count
        check_unpacked(self._size, self._path)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def check_unpacked(size: int, path: Path) -> None:
    """Refuse a file that unpacks to this many bytes, if that is out of proportion.

    Raises:
        DataError: naming the file.
    """
    if size > _UNPACKED and size > _RATIO * path.stat().st_size:
        raise DataError(
            f"{path}: unpacks to more than {_RATIO} times its size; if that is right, "
            "unpack it yourself and give JSON Lines"
        )


def numbered_lines(readline: Callable[[int], AnyStr], path: Path) -> Iterator[tuple[int, AnyStr]]:
    """Yield the lines of a file with their numbers, from 1.

    Raises:
        DataError: a line is too long, or too much of the file is blank.
    """
    blank = number = 0
    while line := readline(LONGEST):
        number += 1
        if len(line) == LONGEST:
            raise too_long(f"{path}:{number}")
        blank = blank + len(line) if line.isspace() else 0
        if blank > BLANK:
            raise too_blank(f"{path}:{number}")
        yield number, line


def too_long(origin: str) -> DataError:
    """Make the error for a row above the limit."""
    return DataError(
        f"{origin}: a row longer than {LONGEST:,} bytes; cut it up, or end each row with a new line"
    )


def too_blank(origin: str) -> DataError:
    """Make the error for a stretch without rows."""
    return DataError(f"{origin}: nothing but blanks for {BLANK:,} bytes; remove them")


def decoded(data: bytes, origin: str, *, first: bool = True) -> str:
    """Decode UTF-8; the first line of a file may begin with a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {error.start + 1}" + (" of the line" if ":" in Path(origin).name else "")
        raise not_utf8(origin, where, error.object[error.start]) from error


def not_utf8(origin: str, where: str, byte: int) -> DataError:
    """Make the error for a byte that UTF-8 does not have there; it names the likely encoding."""
    letter = bytes([byte]).decode("cp1252", "replace")
    likely = ""
    if letter.isprintable() and letter != "\ufffd":
        likely = (
            f", or, as 0x{byte:02X} is {letter} in Windows-1252, convert it with "
            "iconv -f WINDOWS-1252 -t UTF-8"
        )
    return DataError(f"{origin}: not UTF-8 ({where}); save the file as UTF-8{likely}")


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
