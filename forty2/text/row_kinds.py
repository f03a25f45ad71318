"""The kinds of rows that an objective learns from: how each is parsed from a file and encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from forty2.data.formats import parse_imitated, parse_pair, parse_rated_or_pair, rated_sides
from forty2.data.records import Chat, Pair, Rated, Record, Text
from forty2.files import JsonObject
from forty2.text.encoder import Encoder
from forty2.text.rows import AnyRow, RatedRow, add_mismatched_responses


@dataclass(frozen=True, slots=True)
class RowKind:
    """One kind of rows, from file to token ids.

    The three steps take and give one kind of record and of row. Python's types cannot say so of a
    table of kinds, so these are unchecked: `encode` gets the records of `parse`, `complete` the
    rows of `encode`.
    """

    name: str
    """Its plural, for messages: "pairs"."""
    parse: Callable[[JsonObject, str], Record]
    """The record in a raw row with this origin.

    Raises DataError where the row is damaged or of another kind.
    """
    encode: Callable[[Encoder, Sequence[Any]], Sequence[AnyRow]]
    """Token rows of these records, in order; a record can give several."""
    complete: Callable[[Sequence[Any], int], Sequence[AnyRow]] = lambda rows, max_length: rows
    """Called once with all rows that fit, and the length limit: adds what a row needs of others."""


def _encode_conversations(encoder: Encoder, records: Sequence[Chat | Text]) -> Sequence[AnyRow]:
    return encoder.encode_sft(records)


def _encode_pairs(encoder: Encoder, records: Sequence[Pair]) -> Sequence[AnyRow]:
    return [encoder.encode_pair(record) for record in records]


def _encode_rated(encoder: Encoder, records: Sequence[Rated | Pair]) -> list[RatedRow]:
    return [encoder.encode_rated(side) for record in records for side in rated_sides(record)]


CONVERSATIONS = RowKind("conversations", parse_imitated, _encode_conversations)
PAIRS = RowKind("pairs", parse_pair, _encode_pairs)
RATED = RowKind("rated responses", parse_rated_or_pair, _encode_rated, add_mismatched_responses)
