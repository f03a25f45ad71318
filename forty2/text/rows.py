"""Tokenized rows, and shortening of rows to a length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import compress, islice, takewhile
from typing import Any, NamedTuple

import numpy as np

from forty2.errors import DataError

_ROWS_SEARCHED = 1000
"""Rows whose ends of turns are looked at: they are the template's, so all rows have the same few."""


class Row(NamedTuple):
    """A tokenized conversation."""

    ids: list[int]
    mask: list[bool]
    """True where the token is supervised; as long as `ids`."""
    origin: str
    segments: list[int] | None = None
    """For each token, the number of its row among those packed into this one; None: not packed."""
    weight: float = 1.0
    """Average number of times that the row comes in an epoch."""
    is_text: bool = False
    """Whether it is a text without a prompt, which may be divided."""


Masks = tuple[list[bool], list[bool]]
"""For each of two responses, which of its tokens are supervised."""


class PairRow(NamedTuple):
    """A tokenized preference pair."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    origin: str
    weight: float = 1.0
    """Average number of times that the pair comes in an epoch."""
    masks: Masks | None = None
    """Supervised tokens; None: all. In responses of several turns, a user's turns are not."""

    @property
    def responses(self) -> tuple[list[int], list[int]]:
        """Both responses, in the order in which they are batched, stored and scored."""
        return self.chosen, self.rejected

    @property
    def response_masks(self) -> Masks:
        """For each response, which of its tokens are supervised."""
        return self.masks or _all_of(self.responses)


class RatedRow(NamedTuple):
    """A tokenized response with its verdict, and a response to another prompt.

    Like a pair it has two responses, but only the first is learned. The second belongs to another
    prompt; KTO measures on it how far the policy has drifted.
    """

    prompt: list[int]
    response: list[int]
    mismatched_response: list[int]
    """Response to another prompt; empty until `add_mismatched_responses` is called."""
    desirable: bool
    origin: str
    weight: float = 1.0
    """Average number of times that the response comes in an epoch."""
    masks: Masks | None = None
    """Supervised tokens of both responses; None: all."""

    @property
    def responses(self) -> tuple[list[int], list[int]]:
        """Both responses, in the order in which they are batched, stored and scored."""
        return self.response, self.mismatched_response

    @property
    def response_masks(self) -> Masks:
        """For each response, which of its tokens are supervised."""
        return self.masks or _all_of(self.responses)


def _all_of(responses: tuple[list[int], list[int]]) -> Masks:
    first, second = responses
    return [True] * len(first), [True] * len(second)


AnyPair = PairRow | RatedRow
"""A row with a prompt and two responses."""
AnyRow = Row | PairRow | RatedRow


def row_length(row: AnyRow) -> int:
    """Count a row's tokens; of a rated row, those of its prompt and its own response."""
    if isinstance(row, Row):
        return len(row.ids)
    first, second = row.responses
    return len(row.prompt) + len(first) + len(second) * isinstance(row, PairRow)


def supervised_tokens(row: AnyRow) -> int:
    """Count the tokens of a row that are learned; of a rated row, those of its own response."""
    if isinstance(row, Row):
        return sum(row.mask)
    first, second = row.response_masks
    return sum(first) + sum(second) * isinstance(row, PairRow)


class FittedRows(NamedTuple):
    """Rows that fit the length, and the origins of those that did not."""

    rows: Sequence[Any]
    """Rows that fit, all of the kind that the objective needs."""
    shortened: list[str]
    """Origins of rows whose prompt lost its beginning."""
    dropped: list[str]
    """Origins of rows whose response does not fit whole."""


def fit_rows(rows: Iterable[AnyRow], max_length: int) -> FittedRows:
    """Shorten prompts from the left until a row fits; drop rows whose response alone does not.

    A text without a prompt is divided, and loses nothing: each part but the first begins with the last
    token of the one before, so that every token is learned once.

    Args:
        max_length: most tokens of prompt and response together; of two responses the longer counts.
    """
    fitting: list[AnyRow] = []
    shortened: list[str] = []
    dropped: list[str] = []
    for row in rows:
        if (parts := divide_text(row, max_length)) is not None:
            fitting += parts
            continue
        fitted = _cut_row(row, max_length) if isinstance(row, Row) else _cut_pair(row, max_length)
        if fitted is None:
            dropped.append(row.origin)
        else:
            fitting.append(fitted)
            if fitted is not row:
                shortened.append(row.origin)
    return FittedRows(fitting, shortened, dropped)


def divide_text(row: AnyRow, max_length: int) -> list[Row] | None:
    """Divide a text into parts of at most `max_length` tokens; None: it is short, or no text."""
    if not isinstance(row, Row) or not row.is_text or len(row.ids) <= max_length:
        return None
    starts = range(0, len(row.ids) - 1, max_length - 1)
    parts = [row.ids[start : start + max_length] for start in starts]
    return [row._replace(ids=ids, mask=[i > 0 for i in range(len(ids))]) for ids in parts]


def _cut_row(row: Row, max_length: int) -> Row | None:
    excess = len(row.ids) - max_length
    if excess <= 0:
        return row
    # One prompt token stays, because the first supervised token is predicted from it.
    if excess >= row.mask.index(True):
        return None
    return row._replace(ids=row.ids[excess:], mask=row.mask[excess:])


def _cut_pair(row: AnyPair, max_length: int) -> AnyPair | None:
    excess = len(row.prompt) + max(map(len, row.responses)) - max_length
    if excess <= 0:
        return row
    return None if excess >= len(row.prompt) else row._replace(prompt=row.prompt[excess:])


def add_mismatched_responses(rows: Sequence[RatedRow], max_length: int) -> list[RatedRow]:
    """Give each row a response to another prompt: the next row's, in an order drawn at random.

    Such a response is measured, not learned, so one that is too long is cut at its end.

    Raises:
        DataError: all prompts are the same.
    """
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    other = next((i for i in order if not _same_prompt(rows[i], rows[order[-1]])), None)
    if other is None:
        raise DataError(
            f"{rows[0].origin}: all rows that fit have this one prompt; kto needs at least two "
            "prompts, because it measures drift by responses to other prompts"
        )
    result = list(rows)
    after = order[-1]
    for at in reversed(order):
        if not _same_prompt(rows[after], rows[at]):
            other = after
        room = max_length - len(rows[at].prompt)
        result[at] = _with_mismatched(rows[at], rows[other], room)
        after = at
    return result


def _with_mismatched(row: RatedRow, other: RatedRow, room: int) -> RatedRow:
    """Give a row another one's response, cut to `room` tokens."""
    masks = None
    if row.masks is not None or other.masks is not None:
        masks = row.response_masks[0], other.response_masks[0][:room]
    return row._replace(mismatched_response=other.response[:room], masks=masks)


def _same_prompt(one: RatedRow, other: RatedRow) -> bool:
    """Return whether two prompts are the same; `fit_rows` may have cut the beginning of either."""
    length = min(len(one.prompt), len(other.prompt))
    return one.prompt[-length:] == other.prompt[-length:]


class Exchange(NamedTuple):
    """A prompt and the answer that a row teaches to it, as ids."""

    prompt: list[int]
    answer: list[int]


def first_exchanges(rows: Sequence[AnyRow], count: int) -> list[Exchange]:
    """Return the first `count` different prompts, each with the first answer to it.

    The prompt of a conversation is everything before its first supervised token, and the answer the
    supervised tokens that follow each other from there on; that of a pair is the chosen response.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for row in islice(rows, 16 * count):
        if isinstance(row, Row):
            start = row.mask.index(True)
            learned = takewhile(
                lambda one: one[1], zip(row.ids[start:], row.mask[start:], strict=True)
            )
            prompt, answer = row.ids[:start], [i for i, _ in learned]
        else:
            prompt, answer = row.prompt, list(row.responses[0])
        if prompt and len(found) < count:
            found.setdefault(tuple(prompt), answer)
    return [Exchange(list(prompt), answer) for prompt, answer in found.items()]


def first_prompts(rows: Sequence[AnyRow], count: int) -> list[list[int]]:
    """Return the ids of the first `count` different prompts."""
    return [one.prompt for one in first_exchanges(rows, count)]


def turn_ends(rows: Sequence[AnyRow]) -> set[int]:
    """Return the ids that end the learned turns of the first rows."""
    found: set[int] = set()
    for row in islice(rows, _ROWS_SEARCHED):
        if isinstance(row, Row):
            following = [*row.mask[1:], False]
            ends = (on and not more for on, more in zip(row.mask, following, strict=True))
            found.update(compress(row.ids, ends) if not row.is_text else ())
        else:
            found.update(response[-1] for response in row.responses[:1] if response)
    return found


def rows_sha256(rows: Iterable[AnyRow]) -> str:
    """Hash the rows without their origins.

    Runs store this hash and compare it when they resume, so it must not change between releases:
    rated rows are still hashed under the field names that they had in the first release.
    """
    digest = hashlib.sha256()
    for row in rows:
        fields = row._asdict()
        del fields["origin"]
        fields.pop("is_text", None)
        if fields.get("masks", ()) is None:
            del fields["masks"]
        if isinstance(row, RatedRow):
            chosen, rejected = fields.pop("response"), fields.pop("mismatched_response")
            fields = {"prompt": row.prompt, "chosen": chosen, "rejected": rejected, **fields}
        digest.update(json.dumps(fields).encode())
    return digest.hexdigest()
