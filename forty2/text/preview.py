"""Training data as the model sees it: what is supervised, what is cut off, and how much there is."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from forty2.data.checks.lint import Linter
from forty2.data.formats import parse
from forty2.data.records import Chat, Pair, Rated, Record, Text
from forty2.data.sets import STRATA
from forty2.data.sources import read_rows
from forty2.errors import DataError
from forty2.text.encoder import Encoder

Role = Literal["prompt", "supervised", "cut"]
Span = tuple[str, Role]
Section = tuple[str, list[Span]]
T = TypeVar("T")

_CHUNK = 256

_PAGE = """<!doctype html><meta charset="utf-8"><title>forty2 data</title>
<style>body{{font:15px/1.5 system-ui;max-width:60em;margin:2em auto;padding:0 1em}}
pre{{white-space:pre-wrap;background:#8881;padding:1em;border-radius:6px}}
.prompt{{opacity:.55}}.supervised{{color:#0a7a3c;font-weight:600}}
.cut{{text-decoration:line-through;opacity:.6}}</style>
<p><span class="supervised">supervised</span>, <span class="prompt">prompt</span>,
<span class="cut">cut off</span></p>
{rows}"""


def spans(record: Record, encoder: Encoder, tokenizer: Any, max_length: int) -> list[Section]:
    """A record's text in runs of one role, under a title for each response."""
    match record:
        case Chat() | Text():
            row = encoder.encode_sft_record(record)
            sections = [("", row.ids, row.mask)]
        case Pair():
            pair = encoder.encode_pair(record)
            sections = [
                (name, pair.prompt + ids, [False] * len(pair.prompt) + [True] * len(ids))
                for name, ids in (("chosen", pair.chosen), ("rejected", pair.rejected))
            ]
        case Rated():
            rated = encoder.encode_rated(record)
            mask = [False] * len(rated.prompt) + [True] * len(rated.chosen)
            verdict = "desirable" if record.desirable else "undesirable"
            sections = [(verdict, rated.prompt + rated.chosen, mask)]
    longest = max(len(ids) for _, ids, _ in sections)
    start = min(mask.index(True) for _, _, mask in sections)
    excess = max(0, longest - max_length)
    if excess >= start:  # the response would not fit: the whole row is dropped
        excess = longest
    return [(title, list(_runs(ids, mask, excess, tokenizer))) for title, ids, mask in sections]


def _runs(ids: Sequence[int], mask: Sequence[bool], cut: int, tokenizer: Any) -> Iterator[Span]:
    roles: list[Role] = [
        "cut" if i < cut else "supervised" if on else "prompt" for i, on in enumerate(mask)
    ]
    start = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or roles[i] != roles[start]:
            yield tokenizer.decode(list(ids[start:i])), roles[start]
            start = i


def page(rows: Sequence[tuple[str, Sequence[Section]]]) -> str:
    """One HTML page of rows."""
    parts = []
    for origin, sections in rows:
        parts.append(f"<h3>{html.escape(origin)}</h3>")
        for title, runs in sections:
            text = "".join(f'<span class="{role}">{html.escape(t)}</span>' for t, role in runs)
            parts.append(f"<h4>{html.escape(title)}</h4><pre>{text}</pre>")
    return _PAGE.format(rows="\n".join(parts))


def _measured(
    chunk: Sequence[tuple[str, dict[str, Any]]], encoder: Encoder
) -> Iterator[tuple[Record | None, tuple[int, int] | None]]:
    """Records of a chunk with their tokens and supervised tokens; None where one cannot be read."""
    records = [_attempt(lambda raw=raw, at=at: parse(raw, at)) for at, raw in chunk]  # type: ignore[misc]
    chats = [record for record in records if isinstance(record, Chat | Text)]
    together = _attempt(lambda: encoder.encode_sft(chats))
    rows = iter(together or ())
    for record in records:
        if record is None:
            yield None, None
        elif isinstance(record, Chat | Text) and together is not None:
            row = next(rows)
            yield record, (len(row.ids), sum(row.mask))
        else:
            yield record, _attempt(lambda record=record: encoder.measure(record))  # type: ignore[misc]


def _attempt(action: Callable[[], T]) -> T | None:
    try:
        return action()
    except DataError:
        return None


def stats(source: str | Path, encoder: Encoder) -> dict[str, Any]:
    """Counts over a source: rows, tokens, supervised share, lengths, strata, near duplicates."""
    linter = Linter()
    lengths: Counter[int] = Counter()
    strata: dict[str, Counter[str]] = {}
    tokens = supervised = rows = unreadable = 0
    stream = read_rows(source)
    while chunk := list(islice(stream, _CHUNK)):
        for record, measured in _measured(chunk, encoder):
            if record is None or measured is None:
                unreadable += 1
                continue
            length, learned = measured
            rows += 1
            tokens += length
            supervised += learned
            lengths[length.bit_length()] += 1
            linter.add(record, "train")
            for key in STRATA:
                if isinstance(record.meta.get(key), str | int):
                    strata.setdefault(key, Counter())[str(record.meta[key])] += 1
    if not rows:
        raise DataError(f"{source}: holds no readable rows")
    near = sum(f.count for f in linter.findings() if f.check in ("near", "duplicate"))
    return {
        "rows": rows,
        "tokens": tokens,
        "supervised": supervised / tokens,
        "unreadable": unreadable,
        "near_duplicates": near / rows,
        "histogram": [
            (f"{1 << (b - 1)}–{(1 << b) - 1}", lengths[b])
            for b in range(min(lengths), max(lengths) + 1)
        ],
        "strata": {key: dict(counts.most_common(40)) for key, counts in strata.items()},
    }
