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

    `encode` gets the records that `parse` returns, and `complete` the rows that `encode` returns.
    Python's types cannot express this for a table of kinds, so it is unchecked.
    """

    name: str
    """Plural for messages: "pairs"."""
    parse: Callable[[JsonObject, str], Record]
    """Function from a raw row and its origin to a record.

    Raises DataError if the row is damaged or of another kind.
    """
    encode: Callable[[Encoder, Sequence[Any]], Sequence[AnyRow]]
    """Function from records to token rows, in order; a record can give several."""
    complete: Callable[[Sequence[Any], int], Sequence[AnyRow]] = lambda rows, max_length: rows
    """Function that adds to rows what they need of other rows: called once, with all rows that fit
    and the length limit in tokens."""
    takes_also: tuple[RowKind, ...] = ()
    """Other kinds of rows that it can parse."""


def _encode_conversations(encoder: Encoder, records: Sequence[Chat | Text]) -> Sequence[AnyRow]:
    return encoder.encode_sft(records)


def _encode_pairs(encoder: Encoder, records: Sequence[Pair]) -> Sequence[AnyRow]:
    return [encoder.encode_pair(record) for record in records]


def _encode_rated(encoder: Encoder, records: Sequence[Rated | Pair]) -> list[RatedRow]:
    return [encoder.encode_rated(side) for record in records for side in rated_sides(record)]


CONVERSATIONS = RowKind("conversations", parse_imitated, _encode_conversations)
PAIRS = RowKind("pairs", parse_pair, _encode_pairs)
RATED = RowKind(
    "rated responses", parse_rated_or_pair, _encode_rated, add_mismatched_responses, (PAIRS,)
)
