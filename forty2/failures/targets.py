"""What rows to teach from are made for: each worse cluster after its failures, and the random arm."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from forty2.data.strata import largest_remainder
from forty2.errors import DataError
from forty2.failures.builtin import is_made
from forty2.failures.clustering import CLUSTERS, read_cluster_items, read_clusters
from forty2.failures.examples import Arm
from forty2.failures.folder import Item, read_half
from forty2.failures.labels import LABELS, is_held_out
from forty2.failures.scored import read_scored
from forty2.failures.teaching import SHOWN
from forty2.files import JsonObject, file_sha256, read_json


@dataclass
class Target:
    """What rows are made for: a cluster, or the random arm.

    Each of its rows has items that it is made after, and is asked for again until one can be kept. So
    what is refused more often is not rarer among the rows.
    """

    arm: Arm
    cluster: int | None
    label: str
    """What its questions are about; "": not known."""
    wanted: int
    pool: Sequence[Item]
    """Items that its questions are made after."""
    tries: Counter[int] = field(default_factory=Counter)
    """Times that each row was asked for."""
    filled: set[int] = field(default_factory=set)
    """Numbers of the rows that are kept."""
    refused: Counter[str] = field(default_factory=Counter)
    _by_stratum: dict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for item in self.pool:
            self._by_stratum[item.stratum].append(item)

    @property
    def name(self) -> str:
        """Its name in the journal."""
        return self.arm if self.cluster is None else f"{self.arm}/{self.cluster}"

    def missing(self, trial: int | None) -> list[int]:
        """Return the numbers of the rows to ask for next.

        Args:
            trial: number of requests after which one must have been kept.
        """
        left = [number for number in range(self.wanted) if number not in self.filled]
        if trial is None or self.filled:
            return left
        return left[: max(0, trial - self.tries.total())]

    def draw(self, seed: int, number: int) -> Draw:
        """Draw the items that a row is made after; they are the same each time that it is asked for."""
        rng = random.Random(f"{seed} {self.name} {number}")
        first = rng.choice(self.pool)
        alike = self._by_stratum[first.stratum] if self.cluster is None else self.pool
        others = rng.sample(alike, min(len(alike), SHOWN))
        items = [first, *(item for item in others if item is not first)][:SHOWN]
        return Draw(self, number, self.tries[number], items)

    def figures(self) -> JsonObject:
        """Return what is recorded of it."""
        return {
            "arm": self.arm,
            "cluster": self.cluster,
            "label": self.label,
            "wanted": self.wanted,
            "asked": self.tries.total(),
            "refused": dict(sorted(self.refused.items())),
            "kept": len(self.filled),
        }


class Draw(NamedTuple):
    """One question to be made."""

    target: Target
    number: int
    """Number of the row."""
    attempt: int
    items: Sequence[Item]
    """Items to make it after; the first gives its stratum and system message."""

    @property
    def key(self) -> str:
        """Name of its request in the journal."""
        return f"{self.target.name}/{self.number}/{self.attempt}"


def find_targets(folder: Path, size: int, *, builtin: bool) -> tuple[list[Target], list[str], str]:
    """Find the worse clusters of a folder, and what their rows are made after; last, the random arm.

    Args:
        size: rows of each arm.
        builtin: whether the built-in generators make them, which need items of their own.

    Returns:
        The targets; what to say about them; and why there are none, or "".

    Raises:
        DataError: there are no clusters or labels, they are of other items, or nothing is left.
        RunError: a file is missing or damaged.
    """
    record = read_clusters(folder)
    worse = [cluster for cluster in record["clusters"] if cluster["worse"]]
    if not worse:
        return [], [], f"{record['sentence']} There is nothing to teach."
    labels = _labels(folder, needed=not builtin)
    failed, clusters = _failed(folder)
    half = [item for item in read_half(folder, "find") if not is_held_out(item)]
    pools: dict[int, list[Item]] = {}
    notes = []
    for number in (cluster["cluster"] for cluster in worse):
        own = [item for item in half if item.id in failed and clusters[item.id] == number]
        pools[number] = [item for item in own if not builtin or is_made(item.source)]
        if builtin and len(pools[number]) < len(own):
            others = len(own) - len(pools[number])
            notes.append(
                f"cluster {number}: {others:,} of {len(own):,} failures were not made by the built-in "
                "generators, which cannot make others like them; a chat model as `teacher` can"
            )
        elif not own:
            notes.append(f"cluster {number}: every failure of it is held out to check its label")
    sizes = {number: len(pool) for number, pool in pools.items() if pool}
    if not sizes:
        raise DataError(f"{folder}: nothing to make questions after; {'; '.join(notes)}")
    shares = largest_remainder(sizes, size)
    targets = [
        Target("targeted", number, labels.get(number, ""), shares[number], pools[number])
        for number in sizes
        if shares[number]
    ]
    everything = [item for item in half if not builtin or is_made(item.source)]
    if len(everything) < len(half):
        notes.append(
            f"random: {len(half) - len(everything):,} of {len(half):,} items were not made by the "
            "built-in generators, so none is made after them"
        )
    targets.append(Target("random", None, "", size, everything))
    return targets, notes, ""


def _failed(folder: Path) -> tuple[set[str], Mapping[str, int]]:
    """Return the items that failed, and the cluster of every scored item."""
    items, clusters = read_scored(folder).items, read_cluster_items(folder)
    if {item.id for item in items} != clusters.keys():
        raise DataError(
            f"{folder / CLUSTERS}: is of other items than those with a verdict now; "
            f"run forty2 failures cluster {folder} again"
        )
    return {item.id for item in items if item.failed}, clusters


def _labels(folder: Path, *, needed: bool) -> dict[int, str]:
    """Return the labels that sort held-out items above chance, by cluster."""
    path = folder / LABELS
    if not path.exists() and not needed:
        return {}
    if not path.exists():
        raise DataError(f"{path}: no such file; make it with forty2 failures label {folder}")
    record = read_json(path)
    if record.get("clusters_sha256") != file_sha256(folder / CLUSTERS):
        raise DataError(f"{path}: is of earlier clusters; run forty2 failures label {folder} again")
    return {one["cluster"]: one["label"] for one in record["labels"] if not one["weak"]}
