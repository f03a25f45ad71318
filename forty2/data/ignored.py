"""Keys of rows that nothing reads, counted, so that nobody believes they were used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from forty2.data.messages import REASONING
from forty2.data.record_texts import messages_of
from forty2.data.records import Record

_READ = frozenset(("weight", "entity", "template", "pair_type"))
"""Keys of `meta` that weigh a row, divide a set or are checked by the lint."""
_READ_IN_MESSAGES = frozenset(
    ("role", "content", "name", "tool_calls", "tool_call_id", "train", *REASONING)
)
"""Keys of messages that chat templates or we read; a template that reads others is rare."""
_MOST_KEYS, _MOST_NAMED = 1000, 12


class IgnoredKeys:
    """Counts of the rows that hold each key that nothing reads.

    Args:
        read: further keys that are read, because a recipe names them.
    """

    def __init__(self, read: Collection[str] = ()) -> None:
        self._read = _READ.union(read)
        self.rows: Counter[str] = Counter()
        """Number of rows by key; of the first 1,000 keys, so that it stays small."""

    def add(self, record: Record) -> None:
        """Take in one record."""
        unread = record.meta.keys() - self._read
        for message in messages_of(record):
            unread |= {f"messages[].{key}" for key in message.keys() - _READ_IN_MESSAGES}
        for key in unread:
            if key in self.rows or len(self.rows) < _MOST_KEYS:
                self.rows[key] += 1

    def __str__(self) -> str:
        """List the keys, those in as many rows together: "id, source (120 rows); note (3 rows)"."""
        by_count: dict[int, list[str]] = {}
        named = sorted(self.rows.items(), key=lambda item: (-item[1], item[0]))
        for key, count in named[:_MOST_NAMED]:
            shown = key if key.isprintable() else ascii(key)
            by_count.setdefault(count, []).append(shown[:40])
        groups = [f"{', '.join(keys)} ({count:,} rows)" for count, keys in by_count.items()]
        more = len(named) - _MOST_NAMED
        return "; ".join([*groups, f"and {more:,} more"] if more > 0 else groups)
