"""Reading of GGUF files: typed metadata and raw tensors. A damaged file is a `ModelError`.

The gguf package also has a reader, but that takes 2 s for the starter's vocabulary (this one 0.1 s),
and a damaged, huge length occupies it for hours. So the package is used only to dequantize.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from forty2.errors import ModelError
from forty2.files import is_lfs_pointer

_T = TypeVar("_T")
Scalar = int | float | bool
Value = Scalar | str | list[Scalar] | list[str]
"""A metadata value."""
_SCALARS = {  # metadata type → struct code
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_TEXT, _ARRAY = 8, 9
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
"""End of the name of one of several parts of a model."""
_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


class Tensor(NamedTuple):
    """A tensor as the file stores it."""

    kind: GGMLQuantizationType
    """Packing of the values."""
    shape: tuple[int, ...]
    """Size of each axis, rows first, as in numpy; the file has the reverse order."""
    data: NDArray[np.uint8]
    """Bytes of the tensor, mapped from the file."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class GgufFile:
    """An open GGUF file. Tensors are memory-mapped, so their bytes are read when they are used.

    Raises:
        ModelError: the file cannot be read, is damaged, or is one part of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors: dict[str, Tensor] = {}
        self._values: dict[str, Value] = {}
        try:
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise ModelError(
                    f"{path}: this is a pipe or a device, not a file; save it to a file first"
                )
            with path.open("rb") as file:
                magic = file.read(4)
            if is_lfs_pointer(path):
                raise ModelError(
                    f"{path}: is a pointer of Git LFS, not the model; run `git lfs pull` in its folder"
                )
            if magic != b"GGUF":
                raise ModelError(
                    f"{path}: not a GGUF file (it begins with {magic!r}); check the path"
                )
            self._read(np.memmap(path, np.uint8, "r"))
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
        except (_Damaged, UnicodeDecodeError) as error:
            raise ModelError(
                f"{path}: damaged or cut short ({error}); download the file again"
            ) from error
        parts = self.get("split.count", int) or 1
        if parts > 1:
            first = _PART.sub(rf"-{1:05}-of-\2.gguf", path.name)
            raise ModelError(
                f"{path}: one of {parts} parts; join them first: llama-gguf-split --merge {first} "
                "WHOLE.gguf"
            )

    def get(self, key: str, kind: type[_T]) -> _T | None:
        """Return a metadata value; None: there is none.

        Raises:
            ModelError: it is of another type.
        """
        value = self._values.get(key)
        if value is not None and not isinstance(value, kind):
            raise ModelError(
                f"{self.path}: {key} is not {_TYPE_NAMES.get(kind, f'a {kind.__name__}')}"
            )
        return value

    def value(self, key: str) -> Value:
        """Return a metadata value of any type; the key must be there."""
        return self._values[key]

    def need(self, key: str, kind: type[_T]) -> _T:
        """Return a metadata value that must be there.

        Raises:
            ModelError: it is missing or of another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise ModelError(
                f"{self.path}: {key} is missing; convert the model again with a newer llama.cpp"
            )
        return value

    def keys(self, prefix: str) -> set[str]:
        """Return the metadata keys that begin with a prefix, without it."""
        return {key.removeprefix(prefix) for key in self._values if key.startswith(prefix)}

    def _read(self, data: NDArray[np.uint8]) -> None:
        cursor = _Cursor(memoryview(data))  # type: ignore[arg-type]  # an array is a buffer
        cursor.at = 4
        version = cursor.count("I")
        if version not in (2, 3):
            raise ModelError(
                f"{self.path}: GGUF version {version} is unknown (2 and 3 are known), or the file "
                "is for machines of the other byte order; download the common version"
            )
        tensors, values = cursor.count("Q"), cursor.count("Q")
        for _ in range(values):
            key = cursor.text()
            self._values[key] = cursor.value(cursor.count("I"))
        places = [(cursor.text(), *cursor.tensor()) for _ in range(tensors)]
        align = self.get("general.alignment", int) or 32
        if align < 1:
            raise _Damaged(f"general.alignment is {align}")
        start = -(-cursor.at // align) * align
        for name, shape, number, offset in places:
            try:
                kind = GGMLQuantizationType(number)
            except ValueError as error:
                raise ModelError(
                    f"{self.path}: tensor {name!r} is of unknown type {number}; get the model in "
                    "another quantization, or a newer gguf package"
                ) from error
            values_a_block, bytes_a_block = GGML_QUANT_SIZES[kind]
            if shape[-1] % values_a_block:
                raise _Damaged(f"a row of {name!r} is not made of whole blocks")
            begin = start + offset
            end = begin + math.prod(shape) // values_a_block * bytes_a_block
            if end > len(data):
                raise _Damaged(f"it ends within {name!r}")
            self.tensors[name] = Tensor(kind, shape, data[begin:end])


class _Damaged(Exception):
    """The bytes are not those of a GGUF file."""


class _Cursor:
    """Reads values one after another, and never beyond the end."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> memoryview:
        """Take the next bytes.

        Raises:
            _Damaged: there are fewer.
        """
        if size > len(self.data) - self.at:
            raise _Damaged("it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def count(self, code: str) -> int:
        """Take an unsigned integer: struct code I or Q."""
        return int(self.scalars(code, 1)[0])

    def scalars(self, code: str, count: int) -> list[Scalar]:
        """Take numbers of one struct code; an absurd count fails at the end of the file."""
        packed = self.take(count * struct.calcsize(f"<{code}"))
        return list(struct.unpack(f"<{count}{code}", packed))

    def text(self) -> str:
        """Take a length and that many bytes of UTF-8."""
        return str(self.take(self.count("Q")), "utf-8")

    def value(self, kind: int) -> Value:
        """Take a metadata value of a type, by its number in the format."""
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], 1)[0]
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise _Damaged(f"there is no metadata type {kind}")
        kind, count = self.count("I"), self.count("Q")
        if kind in _SCALARS:
            return self.scalars(_SCALARS[kind], count)
        if kind != _TEXT:
            raise _Damaged(f"an array of metadata type {kind}")
        return [self.text() for _ in range(count)]

    def tensor(self) -> tuple[tuple[int, ...], int, int]:
        """Take a tensor's shape, the number of its type, and its offset in bytes."""
        dimensions = self.count("I")
        if not 1 <= dimensions <= 4:
            raise _Damaged(f"a tensor of {dimensions} dimensions")
        shape = tuple(reversed([self.count("Q") for _ in range(dimensions)]))
        return shape, self.count("I"), self.count("Q")
