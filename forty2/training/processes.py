"""The processes that train together, on one machine or on several, through `mx.distributed`.

`mlx.launch` starts the same command in each of them. Each process computes its own shard of every
batch, gradients and metrics are summed over all of them, and so all take the same step. The first
process alone writes files and reports; the others end without a message when their part is done, or
when the first one reports why they cannot go on.

A collective call waits for the same call in every other process, so all processes must make the
same calls in the same order. In a process that trains alone the calls return at once: nothing is
computed, copied or waited for.
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
"""Environment variables of which `mlx.launch` sets one; the last two are MPI's."""

Value = TypeVar("Value")
Json = Any
"""A value that JSON can hold."""


class Group:
    """The processes that train together, and the place of this one among them.

    Raises:
        PeerLost: from every collective call, if a process ended or cannot be reached.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def shard(self, items: Sequence[Value], rotation: int = 0) -> Sequence[Value]:
        """Return this process's part of the items, every size-th; empty where there are too few.

        Args:
            rotation: places to shift by, so that the remainder falls to each process in turn.
        """
        return items[(self.rank + rotation) % self.size :: self.size]

    def all_sum(self, tree: Value) -> Value:
        """Sum nested lists and dicts of arrays or numbers over all processes.

        Sums are computed in fp32 and have the dtypes of the parts; one exchange covers them all.
        """
        if self.size == 1:
            return tree
        # By name: a dict's order may differ between processes.
        arrays = {name: mx.array(leaf) for name, leaf in sorted(tree_flatten(tree))}
        flat = mx.concatenate([one.astype(mx.float32).reshape(-1) for one in arrays.values()])
        ends = np.cumsum([one.size for one in arrays.values()])[:-1].tolist()
        parts = mx.split(_exchange(mx.distributed.all_sum, flat), ends)
        sums = {
            name: part.reshape(one.shape).astype(one.dtype)
            for (name, one), part in zip(arrays.items(), parts, strict=True)
        }
        summed: Value = tree_map_with_path(lambda name, _: sums[name], tree)
        return summed

    def all_max(self, value: int) -> int:
        """Return the largest of the processes' values."""
        if self.size == 1:
            return value
        largest = np.asarray(_exchange(mx.distributed.all_max, mx.array(value, mx.int32)))
        return int(largest)

    def broadcast(self, make: Callable[[], Value]) -> Value:
        """Call `make` in the first process only, and return its value, which is JSON, in all."""
        if self.size == 1:
            return make()
        value: Value = self._gather(make() if self.first else None)[0]
        return value

    def broadcast_files(self, folder: Path, patterns: Sequence[str]) -> None:
        """Copy files of the first process's folder into the same places of the others' folders."""
        if self.size == 1:
            return
        found = {
            str(path.relative_to(folder))
            for pattern in patterns
            for path in folder.glob(pattern)
            if path.is_file()
        }
        for name in self.broadcast(lambda: sorted(found)):
            data = self._gather_bytes((folder / name).read_bytes() if self.first else b"")[0]
            if not self.first:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)

    @contextlib.contextmanager
    def synchronized(self) -> Iterator[dict[str, str]]:
        """Wait, after work that each process does by itself, until all have succeeded.

        Yields:
            A dict for the caller to fill with values that must agree in all processes, by name.

        Raises:
            RunError: in the first process, if another one failed or a value does not agree.
            OtherProcessEnded: in the others then, or if the first process failed.
        """
        must_agree: dict[str, str] = {}
        if self.size == 1:
            yield must_agree
            return
        error: Exception | None = None
        try:
            yield must_agree
        except Exception as raised:
            error = raised
        message = None if error is None else str(error) or type(error).__name__
        reports = self._gather(
            {"host": socket.gethostname(), "error": message, "must_agree": must_agree}
        )
        if error is not None and (self.first or not isinstance(error, Forty2Error)):
            raise error
        for number, report in enumerate(reports, 1):
            where = f"on {report['host']}, process {number} of {self.size}"
            if report["error"] is not None:
                self.stop_all(f"{where}: {report['error']}")
            for name, value in reports[0]["must_agree"].items():
                if report["must_agree"][name] != value:
                    self.stop_all(
                        f"{where}: {name} is not the same as on {reports[0]['host']}; copy the "
                        "files from there, so that all machines train on the same"
                    )

    def stop_all(self, message: str) -> NoReturn:
        """End all processes, which must all call this; the first one reports the message."""
        if not self.first:
            raise OtherProcessEnded
        raise RunError(message)

    def _gather(self, value: Json) -> list[Json]:
        """Return the values of all processes, by rank."""
        return [json.loads(data) for data in self._gather_bytes(json.dumps(value).encode())]

    def _gather_bytes(self, data: bytes) -> list[bytes]:
        gather = mx.distributed.all_gather
        lengths = np.asarray(_exchange(gather, mx.array([len(data)]))).tolist()
        padded = np.frombuffer(data.ljust(max(1, *lengths), b"\0"), np.uint8)
        rows = np.asarray(_exchange(gather, mx.array(padded)[None]))
        return [row[:length].tobytes() for row, length in zip(rows, lengths, strict=True)]


ALONE = Group()
"""One process, which trains alone."""


def launched() -> bool:
    """Return whether this process was started as one of several."""
    return any(name in os.environ for name in _LAUNCHED)


@functools.cache
def joined() -> Group:
    """Return the group that this process was started in, once all its processes have joined.

    Raises:
        RunError: they cannot be reached.
    """
    if not launched():
        return ALONE
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise RunError(
            f"cannot reach the other processes: {error}; check the hostfile's addresses, and "
            "whether another run has the port (mlx.launch --starting-port)"
        ) from error
    return Group(group.rank(), group.size())


def _exchange(function: Callable[[mx.array], mx.array], array: mx.array) -> mx.array:
    mx.eval(array)  # first: a GPU that waits for another machine would be taken to hang
    try:
        whole = function(array)
        mx.eval(whole)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise PeerLost(
            f"another process ended or cannot be reached ({error}); go on with `resume=True`, with as "
            "many processes as you like"
        ) from error
    return whole
