"""The processes that train together, on one machine or on several, through `mx.distributed`.

`mlx.launch` starts the same command in each of them. Each sees its own share of every batch, what
they find is summed, and so all take the very same step. The first one alone writes and speaks; the
others end, without a word, when their part is done or when the first says why it cannot be.

What is called here meets its like in every other process, so all must make the same calls in the
same order. A process that is alone meets nobody: for it nothing is computed, copied or waited for.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path

from forty2.errors import Forty2Error, OtherProcessEnded, PeerLost, RunError, is_out_of_memory

_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""One of these is set in what `mlx.launch` starts; the last two are MPI's."""

Value = TypeVar("Value")


class Group:
    """So many processes, and which of them this one is.

    Raises:
        PeerLost: from whatever waits for the others: one of them ended or cannot be reached.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def share(self, items: Sequence[Value], turn: int = 0) -> Sequence[Value]:
        """Every size-th item, from this process's own on; none where there are too few.

        Args:
            turn: by how much the processes change places, so that what is left over goes round.
        """
        return items[(self.rank + turn) % self.size :: self.size]

    def total(self, tree: Value) -> Value:
        """The sum of a list or dict of arrays or numbers over all processes, in fp32, in one exchange."""
        if self.size == 1:
            return tree
        # By name: what holds the arrays may have come about in another order elsewhere.
        arrays = {name: mx.array(leaf) for name, leaf in sorted(tree_flatten(tree))}
        flat = mx.concatenate([one.astype(mx.float32).reshape(-1) for one in arrays.values()])
        ends = np.cumsum([one.size for one in arrays.values()])[:-1].tolist()
        parts = mx.split(_exchanged(mx.distributed.all_sum, flat), ends)
        sums = {
            name: part.reshape(one.shape).astype(one.dtype)
            for (name, one), part in zip(arrays.items(), parts, strict=True)
        }
        summed: Value = tree_map_with_path(lambda name, _: sums[name], tree)
        return summed

    def most(self, value: int) -> int:
        """The largest of the processes' values."""
        if self.size == 1:
            return value
        largest: Any = _exchanged(mx.distributed.all_max, mx.array(value, mx.int32)).item()
        return int(largest)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns in the first process, which alone calls it; it must be JSON."""
        if self.size == 1:
            return make()
        value: Value = self._gather(make() if self.first else None)[0]
        return value

    def mirror(self, folder: Path, patterns: Sequence[str]) -> None:
        """Copy the files of the first one's folder that match into the others' folders."""
        if self.size == 1:
            return
        found = {
            str(path.relative_to(folder))
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.is_file()
        }
        for name in self.from_first(lambda: sorted(found)):
            data = self._gather_bytes((folder / name).read_bytes() if self.first else b"")[0]
            if not self.first:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)

    @contextlib.contextmanager
    def together(self) -> Iterator[dict[str, str]]:
        """What each process does by itself: where one fails, all end, and the first says why.

        Yields:
            To be filled with what must be the same everywhere, by its name.

        Raises:
            RunError: another process failed, or something is not the same there.
        """
        alike: dict[str, str] = {}
        if self.size == 1:
            yield alike
            return
        failed: Exception | None = None
        try:
            yield alike
        except Exception as error:
            failed = error
        said = None if failed is None else str(failed) or type(failed).__name__
        all_said = self._gather({"host": socket.gethostname(), "said": said, "alike": alike})
        if failed is not None and (self.first or not isinstance(failed, Forty2Error)):
            raise failed
        for number, other in enumerate(all_said):
            where = f"on {other['host']}, process {number + 1} of {self.size}"
            if other["said"] is not None:
                self.end(f"{where}: {other['said']}")
            for name, value in all_said[0]["alike"].items():
                if other["alike"][name] != value:
                    self.end(
                        f"{where}: {name} is not the same as on {all_said[0]['host']}; copy what "
                        "is there, so that all machines train on the same"
                    )

    def end(self, said: str) -> NoReturn:
        """End all processes, with a message by the first."""
        if not self.first:
            raise OtherProcessEnded
        raise RunError(said)

    def _gather(self, value: Any) -> list[Any]:
        """Every process's value, which must be JSON."""
        return [json.loads(data) for data in self._gather_bytes(json.dumps(value).encode())]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        gather = mx.distributed.all_gather
        lengths: Any = _exchanged(gather, mx.array([len(data)])).tolist()
        padded = np.frombuffer(data.ljust(max(1, *lengths), b"\0"), np.uint8)
        rows = np.asarray(_exchanged(gather, mx.array(padded)[None]))
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


ALONE = Group()


def launched() -> bool:
    """Whether this process was started as one of several."""
    return any(name in os.environ for name in _LAUNCHED)


@functools.cache
def joined() -> Group:
    """The group that this process was started in, once all of it is there.

    Raises:
        RunError: it cannot be reached.
    """
    if not launched():
        return ALONE
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise RunError(
            f"cannot meet the other processes: {error}; look at the hostfile's addresses, and "
            "whether another run has the port (mlx.launch --starting-port)"
        ) from error
    return Group(group.rank(), group.size())


def _exchanged(function: Callable[[mx.array], mx.array], array: mx.array) -> mx.array:
    mx.eval(array)  # before: a GPU that waited for another machine would be taken for hung
    try:
        whole = function(array)
        mx.eval(whole)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(
            f"another process ended or cannot be reached ({error}); go on with --resume, with as "
            "many processes as you like"
        ) from error
    return whole
