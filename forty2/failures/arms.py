"""The training rows of each arm of a recovery: new rows of the arm, and some of the original data.

What differs between the arms is their new rows alone. All arms get the same original rows and,
to within a row, as many tokens of new ones: as the arm with the fewest has. Rows that ask what the untouched half
asks are left out of all. So are those that do not fit into the recipe's `max_length`, which training
would drop.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from forty2.data.formats import parse, to_row
from forty2.data.records import Chat, Text
from forty2.data.sources import read_rows
from forty2.data.splitting import seeded_order
from forty2.errors import DataError, RunError
from forty2.failures.examples import ACCEPTED, ARMS, Arm, chat_of
from forty2.failures.folder import Item, json_line
from forty2.failures.training_data import TrainingFile, TrainingSearch, about_file, rows_of
from forty2.files import JsonObject, atomic_write, file_sha256

if TYPE_CHECKING:
    from forty2.text.encoder import Encoder

NONE = "none"
"""The arm that is not trained: the model as it was."""
ORIGINAL_SHARE = 0.1
"""Share of original rows, by tokens."""
_SHARED = ("prompt", "near copy")
"""Ways to ask what the untouched half asks. Questions made from one template share 13 words, too."""
_HELD = 4
"""Original rows held for each new one; the rest of a large file is not."""


class Sized(NamedTuple):
    """A row, and its length."""

    line: bytes
    """The row as JSON."""
    tokens: int
    supervised: int


class ArmRows(NamedTuple):
    """The training rows of the arms, and their record."""

    files: dict[Arm, Path]
    record: JsonObject
    """By arm: rows and tokens, and what was left out; the original data; the budget."""


class _Lengths:
    """Measures rows as training will."""

    def __init__(self, encoder: Encoder, max_length: int) -> None:
        self._encoder, self._max_length = encoder, max_length

    def of(self, record: Chat | Text) -> tuple[int, int] | None:
        """Return tokens and supervised tokens of a row; None: it does not fit."""
        from forty2.text.rows import fit_rows, row_length, supervised_tokens

        rows = fit_rows(self._encoder.encode_sft([record]), self._max_length).rows
        tokens = sum(map(row_length, rows))
        return (tokens, sum(map(supervised_tokens, rows))) if rows else None


def write_arms(
    folder: Path,
    untouched: Sequence[Item],
    original: Sequence[TrainingFile],
    encoder: Encoder,
    max_length: int,
    seed: int,
) -> ArmRows:
    """Choose the rows of each arm, and write them to `recover/ARM.jsonl`.

    Args:
        untouched: items whose questions may be in no row.
        original: data that the model was trained on before; empty: there is none.
        encoder: encodes rows as the recipe's phase does.

    Raises:
        RunError: there are no accepted rows.
        DataError: an arm has no row that can be used, or original data cannot be read.
    """
    search = TrainingSearch([item.messages for item in untouched])
    lengths = _Lengths(encoder, max_length)
    rows, about = dict[Arm, list[Sized]](), dict[str, JsonObject]()
    for arm, accepted in read_accepted(folder).items():
        left_out: Counter[str] = Counter()
        usable = list(_usable(accepted, search, lengths, left_out))
        if not usable:
            raise DataError(
                f"{folder / ACCEPTED}: no row of the arm {arm} can be used "
                f"({_listed(left_out) or 'there are none'}); make more with forty2 failures generate"
            )
        rows[arm] = seeded_order(usable, f"{seed} {arm}")
        about[arm] = {"accepted": len(accepted), "left_out": left_out}
    budget = min(sum(row.tokens for row in own) for own in rows.values())
    for arm, own in rows.items():
        rows[arm] = within(own, budget)
        spare = len(own) - len(rows[arm])
        if spare:
            about[arm]["left_out"]["beyond the budget"] = spare
    new = sum(row.tokens for own in rows.values() for row in own) / len(rows)
    wanted = new * ORIGINAL_SHARE / (1 - ORIGINAL_SHARE)
    most = _HELD * max(map(len, rows.values())) + 100
    old, about_old = _original(original, search, lengths, wanted, most, seed)
    files = {arm: folder / "recover" / f"{arm}.jsonl" for arm in rows}
    for arm, own in rows.items():
        with atomic_write(files[arm]) as file:
            file.writelines(row.line for row in [*own, *old])
        tokens, before = (sum(row.tokens for row in part) for part in (own, old))
        about[arm] |= {
            "rows": len(own),
            "tokens": tokens,
            "supervised": sum(row.supervised for row in own),
            "original_share": before / (tokens + before),
            "sha256": file_sha256(files[arm]),
            "left_out": dict(sorted(about[arm]["left_out"].items())),
        }
    return ArmRows(files, {"arms": about, "original": about_old, "budget_tokens": budget})


def read_accepted(folder: Path) -> dict[Arm, list[JsonObject]]:
    """Read the rows of `accepted.jsonl` by arm, in their order.

    Raises:
        RunError: there is no such file.
        DataError: it has no rows, or a row is damaged.
    """
    path = folder / ACCEPTED
    if not path.exists():
        raise RunError(
            f"{path}: no such file; make it with forty2 failures generate and score {folder}"
        )
    found: dict[Arm, list[JsonObject]] = {arm: [] for arm in ARMS}
    for origin, row in read_rows(path):
        arm = row.get("arm")
        if arm not in found:
            raise DataError(f"{origin}: arm must be {' or '.join(ARMS)}, not {arm!r}")
        if not isinstance(row.get("reply"), str) or not isinstance(row.get("messages"), list):
            raise DataError(f"{origin}: needs messages and a reply")
        found[arm].append({**row, "origin": origin})
    if not any(found.values()):
        raise DataError(f"{path}: holds no accepted rows; see what was refused in accepted.json")
    return found


def within(rows: Iterable[Sized], budget: float) -> list[Sized]:
    """Return the first rows that fit into a budget of tokens, going on after one that does not."""
    taken, used = [], 0
    for row in rows:
        if used + row.tokens <= budget:
            taken.append(row)
            used += row.tokens
    return taken


def _usable(
    accepted: Iterable[JsonObject],
    search: TrainingSearch,
    lengths: _Lengths,
    left_out: Counter[str],
) -> Iterator[Sized]:
    for row in accepted:
        record = chat_of(row["messages"], row["reply"], row["origin"])
        sized = _sized(record, search, lengths, left_out)
        if sized is not None:
            yield sized


def _sized(
    record: Chat | Text, search: TrainingSearch, lengths: _Lengths, left_out: Counter[str]
) -> Sized | None:
    """Measure a row that may be trained on; None: it is counted as left out."""
    if {*search.find(record).values()} & {*_SHARED}:
        left_out["asks what the untouched half asks"] += 1
        return None
    length = lengths.of(record)
    if length is None:
        left_out["too long"] += 1
        return None
    return Sized(json_line(to_row(record)), *length)


# --- the original data ----------------------------------------------------------------------------


def _original(
    files: Sequence[TrainingFile],
    search: TrainingSearch,
    lengths: _Lengths,
    wanted: float,
    most: int,
    seed: int,
) -> tuple[list[Sized], JsonObject | None]:
    """Draw rows of the original data, each once, up to a number of tokens."""
    if not files:
        return [], None
    left_out: Counter[str] = Counter()
    drawn, rows = _drawn(files, most, seed, left_out)
    taken: list[Sized] = []
    used = 0
    for record in drawn:
        if used >= wanted:
            break
        sized = _sized(record, search, lengths, left_out)
        # of two totals, the one nearer to what is wanted
        if sized is not None and used + sized.tokens / 2 <= wanted:
            taken.append(sized)
            used += sized.tokens
    return taken, {
        "sources": [about_file(file) for file in files],
        "available": rows,
        "rows": len(taken),
        "tokens": used,
        "wanted_tokens": round(wanted),
        "left_out": dict(sorted(left_out.items())),
    }


def _drawn(
    files: Sequence[TrainingFile], most: int, seed: int, left_out: Counter[str]
) -> tuple[list[Chat | Text], int]:
    """Return a seeded sample in its order, and the number of rows that it is of."""
    held: list[tuple[int, int, Chat | Text]] = []  # the smallest hashes, the largest of them first
    rows = 0
    for record in _imitated(files, left_out):
        rows += 1
        line = json_line(to_row(record))
        digest = hashlib.sha256(f"{seed} {rows} ".encode() + line).digest()
        entry = (-int.from_bytes(digest[:8]), rows, record)
        if len(held) < most:
            heapq.heappush(held, entry)
        elif entry > held[0]:
            heapq.heapreplace(held, entry)
    return [record for _, _, record in sorted(held, key=lambda entry: -entry[0])], rows


def _imitated(files: Sequence[TrainingFile], left_out: Counter[str]) -> Iterator[Chat | Text]:
    """Yield the rows that an SFT phase can learn from; pairs and ratings are counted."""
    for file in files:
        for origin, row in rows_of(file):
            record = parse(row, origin)
            if isinstance(record, Chat | Text):
                yield record
            else:
                left_out["no conversation"] += 1


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,}: {why}" for why, count in counts.items())
