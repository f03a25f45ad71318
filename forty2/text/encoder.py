"""From records to token ids and a mask of what is supervised, through the chat template.

What is supervised is decided here, once, as data: every assistant turn's content and the token
that ends the turn. Never a prompt token, never padding.

The prompt is tokenised as generation will see it. Where tokenising prompt and response together
would merge a token across their border (a response that begins with whitespace), the response is
tokenised on its own: its ids then still spell exactly the response.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np

from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.errors import DataError, ModelError
from forty2.text.template_cache import TemplateCache

_HELD = "\ue0f0{}\ue0f1"
_HELD_PATTERN = re.compile("\ue0f0(\\d+)\ue0f1")


class Row(NamedTuple):
    """A tokenised conversation."""

    ids: list[int]
    mask: list[bool]
    """True where the token is supervised; as long as `ids`."""
    origin: str
    segments: list[int] | None = None
    """Which of the rows packed into this one a token belongs to; None: there is one."""
    weight: float = 1.0
    """How often an epoch has the row, on average."""


class PairRow(NamedTuple):
    """A tokenised preference pair: every id of both responses is supervised."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    origin: str
    weight: float = 1.0
    """How often an epoch has the pair, on average."""


class RatedRow(NamedTuple):
    """A tokenised response with its verdict, and one to another prompt, to measure drift on.

    Batched, stored and scored as a pair is.
    """

    prompt: list[int]
    chosen: list[int]
    """The response, whatever its verdict."""
    rejected: list[int]
    """The response to another prompt."""
    desirable: bool
    origin: str
    weight: float = 1.0
    """How often an epoch has the response, on average."""


AnyPair = PairRow | RatedRow


class FittedRows(NamedTuple):
    """Rows that fit the length, and what became of the others."""

    rows: Sequence[Any]
    shortened: list[str]
    """Origins of rows whose prompt lost its left end."""
    dropped: list[str]
    """Origins of rows whose response would not fit whole."""


class Encoder:
    """Turns records into ids with one tokenizer and its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.has_chat_template:
            raise ModelError(
                "the tokenizer has no chat template: use an instruct model, or put a "
                "chat_template into its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._specials = {str(token.content): i for i, token in added.items() if token.special}
        for i in tokenizer.eos_token_ids:
            self._specials.setdefault(str(tokenizer.convert_ids_to_tokens(i)), i)
        self._special_ids = set(self._specials.values())
        longest_first = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        # What looks like a held text is held itself.
        self._to_hold = re.compile(f"{self._special_pattern.pattern}|{_HELD_PATTERN.pattern}")

        self._skeletons = TemplateCache(
            tokenizer,
            self._specials,
            lambda messages, prompt: self._render(messages, prompt, ""),
            lambda text: self._encode(text, ()),
        )

    @property
    def specials(self) -> list[str]:
        """How the tokenizer's control tokens are spelled."""
        return list(self._specials)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The ids that a model is given to answer `messages`."""
        held, literals = self._hold(messages)
        return self._encode(self._render(held, True, ""), literals)

    def chat(self, record: Chat) -> Row:
        """Ids and mask of a conversation, up to its last assistant turn."""
        ids, mask = self._turns(record.messages, record.origin)
        return Row(ids, mask, record.origin, weight=_weight(record))

    def encode_sft(self, records: Sequence[Chat | Text]) -> list[Row]:
        """`imitated` of each record, many times faster where only their texts differ."""
        chats = [record for record in records if isinstance(record, Chat)]
        rows: list[Row] = []
        filled = iter(self._skeletons.encode([_answered(chat.messages) for chat in chats]))
        for record in records:
            done = next(filled) if isinstance(record, Chat) else None
            if done is None:
                rows.append(self.encode_sft_record(record))
            else:
                rows.append(Row(*done, record.origin, weight=_weight(record)))
        return rows

    def text(self, record: Text) -> Row:
        """Ids of a text and the token that ends it, all supervised but the first."""
        ids = [*self.tokenizer.encode(record.text), self.tokenizer.eos_token_id]
        mask = [i > 0 for i in range(len(ids))]
        return Row(ids, mask, record.origin, weight=_weight(record))

    def encode_sft_record(self, record: Chat | Text) -> Row:
        """What a record of supervised fine-tuning is trained on."""
        return self.text(record) if isinstance(record, Text) else self.chat(record)

    def encode_pair(self, record: Pair) -> PairRow:
        """Ids of a prompt and of both responses, each with its end-of-turn token."""
        (prompt, chosen), (prompt_again, rejected) = (
            self.response(record.prompt, text, record.origin)
            for text in (record.chosen, record.rejected)
        )
        if prompt != prompt_again:
            raise DataError(
                f"{record.origin}: the chat template changes the prompt with the response"
            )
        return PairRow(prompt, chosen, rejected, record.origin, _weight(record))

    def encode_rated(self, record: Rated) -> RatedRow:
        """Ids of a prompt and its response, still without one to another prompt."""
        prompt, response = self.response(record.prompt, record.response, record.origin)
        return RatedRow(prompt, response, [], record.desirable, record.origin, _weight(record))

    def response(
        self, prompt: Sequence[Message], text: str, origin: str = ""
    ) -> tuple[list[int], list[int]]:
        """Ids of a prompt and of one response to it, with its end-of-turn token."""
        messages = (*prompt, {"role": "assistant", "content": text})
        ids, mask = self._turns(messages, origin, first=len(prompt))
        start = mask.index(True)
        return ids[:start], [i for i, on in zip(ids[start:], mask[start:], strict=True) if on]

    def measure(self, record: Record) -> tuple[int, int]:
        """Tokens of a record as a batch holds them (its prompt once), and supervised ones."""
        match record:
            case Chat() | Text():
                row = self.encode_sft_record(record)
                return len(row.ids), sum(row.mask)
            case Pair():
                pair = self.encode_pair(record)
                learned = len(pair.chosen) + len(pair.rejected)
                return len(pair.prompt) + learned, learned
            case Rated():
                rated = self.encode_rated(record)
                return len(rated.prompt) + len(rated.chosen), len(rated.chosen)

    # --- how ---

    def _turns(
        self, messages: Sequence[Message], origin: str, first: int = 0
    ) -> tuple[list[int], list[bool]]:
        """Ids and mask of `messages`, supervising the assistant turns from index `first` on."""
        held, literals = self._hold(messages)
        turns = [i for i, m in enumerate(held) if m["role"] == "assistant" and i >= first]
        text = self._render(held[: turns[0]], True, origin)
        ids = self._encode(text, literals)
        mask = [False] * len(ids)
        for n, turn in enumerate(turns):
            last = n == len(turns) - 1
            end = turn + 1 if last else turns[n + 1]
            longer = self._render(held[:end], not last, origin)
            if not longer.startswith(text) or longer == text:
                raise DataError(
                    f"{origin}: messages[{turn}]: the chat template rewrites what came before this "
                    "turn, so what it supervises cannot be told; use a template that only appends"
                )
            tail = self._continue(ids, text, longer, literals)
            content = str(held[turn].get("content") or "")
            stop = self._end_of_turn(
                tail, longer[len(text) :], content, f"{origin}: messages[{turn}]"
            )
            if stop is None and not last:
                raise DataError(
                    f"{origin}: the chat template does not mark where messages[{turn}] ends"
                )
            if stop is None:
                tail, stop = [*tail, self.tokenizer.eos_token_id], len(tail)
            if last:
                tail = tail[
                    : stop + 1
                ]  # what a template writes after the last turn teaches nothing
            ids += tail
            mask += [i <= stop for i in range(len(tail))]
            text = longer
        return ids, mask

    def _end_of_turn(self, tail: list[int], text: str, content: str, where: str) -> int | None:
        """Index in `tail` of the token that ends the turn: the first special after the content."""
        found = content.strip()
        start = text.find(found)
        if start < 0:
            raise DataError(
                f"{where}: the chat template alters the content, so it cannot be trained on as is"
            )
        before = len(self._special_pattern.findall(text[:start]))
        specials = [i for i, token in enumerate(tail) if token in self._special_ids]
        return specials[before] if len(specials) > before else None

    def _continue(
        self, ids: list[int], text: str, longer: str, literals: Sequence[str]
    ) -> list[int]:
        """The ids that follow `ids` when `text` grows to `longer`."""
        together = self._encode(longer, literals)
        if together[: len(ids)] == ids:
            return together[len(ids) :]
        return self._encode(longer[len(text) :], literals)

    def _render(self, messages: Sequence[Message], generation_prompt: bool, origin: str) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except Exception as error:  # a template raises what it likes
            reason = (
                str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            )
            raise DataError(
                f"{origin}: the chat template refuses these messages: {reason}"
            ) from error

    def _encode(self, text: str, literals: Sequence[str]) -> list[int]:
        if not literals:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        ids: list[int] = []
        position = 0
        for match in [*self._special_pattern.finditer(text), None]:
            between = text[position : match.start() if match else len(text)]
            plain = _HELD_PATTERN.sub(lambda m: literals[int(m[1])], between)
            ids += self.tokenizer.encode(plain, add_special_tokens=False, split_special_tokens=True)
            if match:
                ids.append(self._specials[match[0]])
                position = match.end()
        return ids

    def _hold(self, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
        """Replace text in contents that spells a special token, so that it stays text.

        Tokenised as it stands it would become the control token itself, and end the turn.
        """
        literals: list[str] = []

        def hold(match: re.Match[str]) -> str:
            literals.append(match[0])
            return _HELD.format(len(literals) - 1)

        held = [
            {**m, "content": self._to_hold.sub(hold, m["content"])}
            if isinstance(m.get("content"), str)
            else m
            for m in messages
        ]
        return held, literals


def _answered(messages: Sequence[Message]) -> Sequence[Message]:
    """Up to the last assistant turn."""
    last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
    return messages[: last + 1]


def _weight(record: Record) -> float:
    weight = record.meta.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
        raise DataError(f"{record.origin}: weight must be a number above 0, at most 100")
    return float(weight)


T = TypeVar("T", Row, PairRow, RatedRow)


def fit_rows(rows: Iterable[T], max_length: int) -> FittedRows:
    """Shorten prompts from the left until a row fits; drop rows whose response alone does not."""
    kept: list[T] = []
    shortened: list[str] = []
    dropped: list[str] = []
    for row in rows:
        fitted: Any = (
            _cut_row(row, max_length) if isinstance(row, Row) else _cut_pair(row, max_length)
        )
        if fitted is None:
            dropped.append(row.origin)
        else:
            kept.append(fitted)
            if fitted is not row:
                shortened.append(row.origin)
    return FittedRows(kept, shortened, dropped)


def add_mismatched_responses(rows: Sequence[RatedRow], max_length: int) -> list[RatedRow]:
    """Beside each response one to another prompt: the next such row's, in an order drawn at random.

    It is measured, not learned, so it is cut where it does not fit.

    Raises:
        DataError: all prompts are the same.
    """
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    other = next((i for i in order if not _same_prompt(rows[i], rows[order[-1]])), None)
    if other is None:
        raise DataError(
            f"{rows[0].origin}: all rows that fit have this one prompt, and kto needs two at least: "
            "it measures drift by responses to other prompts"
        )
    result = list(rows)
    after = order[-1]
    for at in reversed(order):
        if not _same_prompt(rows[after], rows[at]):
            other = after
        room = max_length - len(rows[at].prompt)
        result[at] = rows[at]._replace(rejected=rows[other].chosen[:room])
        after = at
    return result


def _same_prompt(one: RatedRow, other: RatedRow) -> bool:
    """Whether two rows answer one prompt, which `fit` may have cut differently, on its left."""
    length = min(len(one.prompt), len(other.prompt))
    return one.prompt[-length:] == other.prompt[-length:]


def first_prompts(rows: Sequence[Row | AnyPair], count: int) -> list[list[int]]:
    """Ids of the first different prompts: of a conversation, all before its first supervised token."""
    found: dict[tuple[int, ...], None] = {}
    for row in islice(rows, 16 * count):
        prompt = row.prompt if isinstance(row, AnyPair) else row.ids[: list(row.mask).index(True)]
        if len(prompt) and len(found) < count:
            found[tuple(map(int, prompt))] = None
    return [list(prompt) for prompt in found]


def problem_of_length(encoder: Encoder, record: Record, max_length: int) -> str | None:
    """What `fit` would do to a record, if anything."""
    row: Any
    match record:
        case Pair():
            row = encoder.encode_pair(record)
        case Rated():
            row = encoder.encode_rated(record)
        case _:
            row = encoder.encode_sft_record(record)
    fitted = fit_rows([row], max_length)
    if fitted.dropped:
        return f"its response does not fit into {max_length} tokens"
    return f"its prompt does not fit into {max_length} tokens" if fitted.shortened else None


def _cut_row(row: Row, max_length: int) -> Row | None:
    excess = len(row.ids) - max_length
    if excess <= 0:
        return row
    # One prompt token stays, for something must predict the first supervised one.
    if excess >= row.mask.index(True):
        return None
    return row._replace(ids=row.ids[excess:], mask=row.mask[excess:])


def _cut_pair(row: AnyPair, max_length: int) -> AnyPair | None:
    excess = len(row.prompt) + max(len(row.chosen), len(row.rejected)) - max_length
    if excess <= 0:
        return row
    return None if excess >= len(row.prompt) else row._replace(prompt=row.prompt[excess:])
