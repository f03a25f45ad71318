"""Training data as the model sees it: supervised and cut-off text, and counts over a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from jinja2 import Environment

from forty2.data.checks.findings import Reasons
from forty2.data.checks.lint import Linter, readable_rows
from forty2.data.formats import parse
from forty2.data.records import Chat, Record, Text
from forty2.data.sets import STRATA
from forty2.data.sources import no_rows, read_rows
from forty2.errors import DataError
from forty2.files import JsonObject
from forty2.text.encoder import Encoder
from forty2.text.rows import AnyRow, RatedRow, Row, divide_text
from forty2.text.token_weights import NO_WEIGHTS, TokenWeights
from forty2.text.tokenizer import Tokenizer

Role = Literal["prompt", "supervised", "cut", "weight"]
"""What a text is; `weight`: the weight of the token before it, e.g. ×2."""
Span = tuple[str, Role]
Section = tuple[str, list[Span]]
"""A title ("" for a conversation or a text) and a text in runs of one role."""

_CHUNK = 256
"""Rows that are encoded together."""


def spans(
    record: Record,
    encoder: Encoder,
    tokenizer: Tokenizer,
    max_length: int,
    weights: TokenWeights = NO_WEIGHTS,
) -> list[Section]:
    """Cut a record's text into runs of one role, a section for each row and response.

    Args:
        weights: weights of supervised tokens, written behind each of these.
    """
    shown: list[Section] = []
    rows: list[AnyRow] = []
    for row in encoder.encode(record):
        rows += divide_text(row, max_length) or [row]
    for number, row in enumerate(rows, 1):
        sections = list(_sections(row, f"{number} of {len(rows)}" if len(rows) > 1 else ""))
        longest = max(len(ids) for _, ids, _ in sections)
        start = min(mask.index(True) for _, _, mask in sections)
        excess = max(0, longest - max_length)
        if excess >= start:  # the response would not fit: the whole row is dropped
            excess = longest
        shown += [
            (title, list(_runs(ids, mask, excess, tokenizer, weights)))
            for title, ids, mask in sections
        ]
    return shown


def _sections(row: AnyRow, title: str) -> Iterator[tuple[str, Sequence[int], Sequence[bool]]]:
    """Yield title, ids and mask of each response with its prompt."""
    if isinstance(row, Row):
        yield title, row.ids, row.mask
        return
    verdict = "desirable" if isinstance(row, RatedRow) and row.desirable else "undesirable"
    titles = (verdict,) if isinstance(row, RatedRow) else ("chosen", "rejected")
    for name, ids, mask in zip(titles, row.responses, row.response_masks, strict=False):
        yield name, row.prompt + ids, [False] * len(row.prompt) + mask


def _runs(
    ids: Sequence[int],
    mask: Sequence[bool],
    cut: int,
    tokenizer: Tokenizer,
    weights: TokenWeights,
) -> Iterator[Span]:
    roles: list[Role] = [
        "cut" if i < cut else "supervised" if on else "prompt" for i, on in enumerate(mask)
    ]
    start = 0
    for i in range(1, len(ids) + 1):
        weight = weights.get(ids[i - 1]) if roles[i - 1] == "supervised" else None
        if i == len(ids) or roles[i] != roles[start] or weight is not None:
            yield tokenizer.decode(list(ids[start:i])), roles[start]
            start = i
        if weight is not None:
            yield f"×{weight:g}", "weight"


def shown_rows(
    file: str,
    count: int,
    encoder: Encoder,
    tokenizer: Tokenizer,
    max_length: int,
    weights: TokenWeights = NO_WEIGHTS,
) -> tuple[list[tuple[str, list[Section]]], list[str]]:
    """Cut the first rows of a file as `spans` does.

    Returns:
        Origin and sections of each row, and why the others among them cannot be shown.

    Raises:
        DataError: the file cannot be read.
    """
    shown: list[tuple[str, list[Section]]] = []
    refused: list[str] = []
    rows = read_rows(file, refused.append)
    while len(shown) + len(refused) < count and (found := next(rows, None)) is not None:
        origin, row = found
        try:
            record = parse(row, origin)
            shown.append((origin, spans(record, encoder, tokenizer, max_length, weights)))
        except DataError as error:
            refused.append(str(error))
    return shown, refused


def page(rows: Sequence[tuple[str, Sequence[Section]]]) -> str:
    """Return one HTML page of rows, each an origin and its sections."""
    source = (resources.files(__package__) / "preview.html.jinja").read_text("utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(source).render(rows=rows)


class _Measured(NamedTuple):
    """A record with the number of its tokens, and of the supervised ones among them."""

    record: Record
    tokens: int
    supervised: int


def _measured(
    chunk: Sequence[tuple[str, JsonObject]], encoder: Encoder, complain: Callable[[str], None]
) -> list[_Measured]:
    """Measure the rows of a chunk; `complain` gets why a row is no record or cannot be encoded."""
    records: list[Record] = []
    for origin, raw in chunk:
        try:
            records.append(parse(raw, origin))
        except DataError as error:
            complain(str(error))
    chats = [record for record in records if isinstance(record, Chat | Text)]
    try:
        together = iter(encoder.encode_sft_records(chats))
    except DataError:  # some cannot be encoded: encode one by one to find which
        return list(filter(None, (_measure(record, encoder, complain) for record in records)))
    measured: list[_Measured] = []
    for record in records:
        if isinstance(record, Chat | Text):
            rows = next(together)
            tokens, supervised = sum(len(row.ids) for row in rows), sum(sum(r.mask) for r in rows)
            measured.append(_Measured(record, tokens, supervised))
        elif (one := _measure(record, encoder, complain)) is not None:
            measured.append(one)
    return measured


def _measure(record: Record, encoder: Encoder, complain: Callable[[str], None]) -> _Measured | None:
    try:
        return _Measured(record, *encoder.measure(record))
    except DataError as error:
        complain(str(error))
        return None


def stats(source: str | Path, encoder: Encoder) -> JsonObject:
    """Count the rows of a source, their tokens, lengths, strata and near duplicates.

    Returns:
        rows, tokens, unreadable: counts. supervised, near_duplicates: shares of tokens and of rows,
        0 to 1. unreadable_because: reason, rows and the first origins. ignored: keys that nothing
        reads. histogram: label and rows of each range of lengths. strata: rows by value, for each
        key.

    Raises:
        DataError: it holds no readable row.
    """
    linter = Linter()
    lengths: Counter[int] = Counter()
    """Number of rows by the number of bits of their length: a histogram over powers of two."""
    strata: dict[str, Counter[str]] = {}
    tokens = supervised = rows = 0
    reasons = Reasons()
    stream = readable_rows(source, reasons.add)
    while chunk := list(islice(stream, _CHUNK)):
        for measured in _measured(chunk, encoder, reasons.add):
            rows += 1
            tokens += measured.tokens
            supervised += measured.supervised
            lengths[measured.tokens.bit_length()] += 1
            linter.add(measured.record, "train")
            for key in STRATA:
                value = measured.record.meta.get(key)
                if isinstance(value, str | int):
                    strata.setdefault(key, Counter())[str(value)] += 1
    if not rows:
        if not reasons.first:
            raise no_rows(source)
        raise DataError(f"{source}: holds no readable rows; the first: {reasons.first}")
    near = sum(f.count for f in linter.findings() if f.check in ("near", "duplicate"))
    return {
        "rows": rows,
        "tokens": tokens,
        "supervised": supervised / tokens,
        "unreadable": reasons.rows,
        "unreadable_because": reasons.listed(),
        "ignored": str(linter.ignored),
        "near_duplicates": near / rows,
        "histogram": [
            (f"{1 << (b - 1)}–{(1 << b) - 1}", lengths[b])
            for b in range(min(lengths), max(lengths) + 1)
        ],
        "strata": {key: dict(counts.most_common(40)) for key, counts in strata.items()},
    }
