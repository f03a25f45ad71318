"""The kinds of rows that an objective learns from: how each is read from a file and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from forty2.data.formats import parse_imitated, parse_pair, parse_rated_rows
from forty2.data.records import Record
from forty2.text.encoder import Encoder, add_mismatched_responses


class RowKind(NamedTuple):
    """One kind of rows, from file to token ids."""

    name: str
    """Its plural, for messages: "pairs"."""
    parse: Callable[[Any, str], Sequence[Record]]
    """The records in a raw row with this origin.

    Raises DataError where the row is of another kind.
    """
    encode: Callable[[Encoder, Sequence[Any]], Sequence[Any]]
    """Token rows of these records, in order."""
    complete: Callable[[Sequence[Any], int], Sequence[Any]] = lambda rows, max_length: rows
    """Called once with all rows that fit, and the length limit: what a row needs of the others."""


CONVERSATIONS = RowKind(
    "conversations",
    lambda row, origin: [parse_imitated(row, origin)],
    lambda encoder, records: encoder.encode_sft(records),
)
PAIRS = RowKind(
    "pairs",
    lambda row, origin: [parse_pair(row, origin)],
    lambda encoder, records: [encoder.encode_pair(record) for record in records],
)
RATED = RowKind(
    "rated responses",
    parse_rated_rows,
    lambda encoder, records: [encoder.encode_rated(record) for record in records],
    add_mismatched_responses,
)
