"""Encoding of records: through the chat template to token ids and a mask of supervised tokens.

Only this module decides which tokens are supervised: the content of every assistant turn and the
token that ends the turn, never a prompt token or padding.

The prompt is tokenized as generation will see it. If tokenizing prompt and response together would
merge a token across their border (a response that begins with whitespace), the response is tokenized
on its own, so that its ids still spell exactly the response.
"""

from __future__ import annotations

from collections.abc import Sequence

from forty2.data.record_texts import last_answer
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.errors import DataError, ModelError, first_line
from forty2.text.rows import AnyRow, PairRow, RatedRow, Row, fit_rows
from forty2.text.special_tokens import SpecialTokens
from forty2.text.template_cache import TemplateCache
from forty2.text.tokenizer import Tokenizer


class Encoder:
    """Turns records into token ids with one tokenizer and its chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.has_chat_template:
            raise ModelError(
                "the tokenizer has no chat template: use an instruct model, or put a "
                "chat_template into its tokenizer_config.json"
            )
        self.tokenizer = tokenizer
        self._specials = SpecialTokens(tokenizer)
        self._special_ids = set(self._specials.ids.values())
        self._templates = TemplateCache(
            tokenizer, self._specials, lambda messages, prompt: self._render(messages, prompt, "")
        )

    @property
    def specials(self) -> list[str]:
        """Spellings of the tokenizer's control tokens."""
        return list(self._specials.ids)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Encode `messages` as generation sees them, up to the beginning of the answer."""
        messages, literals = self._specials.replace(messages)
        return self._specials.encode(self._render(messages, True, ""), literals)

    def chat(self, record: Chat) -> Row:
        """Encode a conversation up to its last assistant turn."""
        ids, mask = self._turns(record.messages, record.origin)
        return Row(ids, mask, record.origin, weight=_weight(record))

    def encode_sft(self, records: Sequence[Chat | Text]) -> list[Row]:
        """Encode records as `encode_sft_record` does, many times faster where only their texts differ."""
        chats = [record for record in records if isinstance(record, Chat)]
        rows: list[Row] = []
        filled = iter(self._templates.encode([_up_to_answer(chat.messages) for chat in chats]))
        for record in records:
            encoded = next(filled) if isinstance(record, Chat) else None
            if encoded is None:
                rows.append(self.encode_sft_record(record))
            else:
                rows.append(Row(*encoded, record.origin, weight=_weight(record)))
        return rows

    def text(self, record: Text) -> Row:
        """Encode a text and the token that ends it; all tokens but the first are supervised."""
        ids = [*self.tokenizer.encode(record.text), self.tokenizer.eos_token_id]
        mask = [i > 0 for i in range(len(ids))]
        return Row(ids, mask, record.origin, weight=_weight(record))

    def encode_sft_record(self, record: Chat | Text) -> Row:
        """Encode one record for supervised fine-tuning."""
        return self.text(record) if isinstance(record, Text) else self.chat(record)

    def encode_pair(self, record: Pair) -> PairRow:
        """Encode a prompt and both responses, each with its end-of-turn token.

        Raises:
            DataError: the chat template changes the prompt with the response.
        """
        (prompt, chosen), (prompt_again, rejected) = (
            self.response(record.prompt, _text_of(side, record.origin), record.origin)
            for side in (record.chosen, record.rejected)
        )
        if prompt != prompt_again:
            raise DataError(
                f"{record.origin}: the chat template changes the prompt with the response"
            )
        return PairRow(prompt, chosen, rejected, record.origin, _weight(record))

    def encode_rated(self, record: Rated) -> RatedRow:
        """Encode a prompt and its response; `add_mismatched_responses` adds the other response."""
        text = _text_of(record.response, record.origin)
        prompt, response = self.response(record.prompt, text, record.origin)
        return RatedRow(prompt, response, [], record.desirable, record.origin, _weight(record))

    def response(
        self, prompt: Sequence[Message], text: str, origin: str = ""
    ) -> tuple[list[int], list[int]]:
        """Return the ids of a prompt, and of one response to it with its end-of-turn token."""
        messages = (*prompt, {"role": "assistant", "content": text})
        ids, mask = self._turns(messages, origin, first=len(prompt))
        start = mask.index(True)
        return ids[:start], [i for i, on in zip(ids[start:], mask[start:], strict=True) if on]

    def measure(self, record: Record) -> tuple[int, int]:
        """Count the tokens of a record, its prompt once, and the supervised ones among them."""
        row = self.encode(record)
        match row:
            case Row():
                return len(row.ids), sum(row.mask)
            case PairRow() | RatedRow():
                supervised = sum(map(len, row.responses))
                return len(row.prompt) + supervised, supervised

    def encode(self, record: Record) -> AnyRow:
        """Encode a record of any kind."""
        match record:
            case Chat() | Text():
                return self.encode_sft_record(record)
            case Pair():
                return self.encode_pair(record)
            case Rated():
                return self.encode_rated(record)

    def _turns(
        self, messages: Sequence[Message], origin: str, first: int = 0
    ) -> tuple[list[int], list[bool]]:
        """Return the ids and mask of `messages`; assistant turns from index `first` on are supervised."""
        messages, literals = self._specials.replace(messages)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= first]
        text = self._render(messages[: turns[0]], True, origin)
        ids = self._specials.encode(text, literals)
        mask = [False] * len(ids)
        for n, turn in enumerate(turns):
            last = n == len(turns) - 1
            end = turn + 1 if last else turns[n + 1]
            longer = self._render(messages[:end], not last, origin)
            if not longer.startswith(text) or longer == text:
                raise DataError(
                    f"{origin}: messages[{turn}]: the chat template rewrites what came before this "
                    "turn, so its supervised tokens cannot be found; use a template that only appends"
                )
            tail = self._continue(ids, text, longer, literals)
            content = str(messages[turn].get("content") or "")
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
                # What a template writes after the last turn is not part of the answer.
                tail = tail[: stop + 1]
            ids += tail
            mask += [i <= stop for i in range(len(tail))]
            text = longer
        return ids, mask

    def _end_of_turn(self, tail: list[int], text: str, content: str, where: str) -> int | None:
        """Return the index in `tail` of the token that ends the turn; None: there is none.

        It is the first special token after the content.
        """
        start = text.find(content.strip())
        if start < 0:
            raise DataError(
                f"{where}: the chat template alters the content, so this row cannot be trained on; "
                "use a template that leaves contents as they are"
            )
        before = len(self._specials.pattern.findall(text[:start]))
        specials = [i for i, token in enumerate(tail) if token in self._special_ids]
        return specials[before] if len(specials) > before else None

    def _continue(
        self, ids: list[int], text: str, longer: str, literals: Sequence[str]
    ) -> list[int]:
        """Encode what follows `text`, whose ids are `ids`, in `longer`."""
        together = self._specials.encode(longer, literals)
        if together[: len(ids)] == ids:
            return together[len(ids) :]
        return self._specials.encode(longer[len(text) :], literals)

    def _render(self, messages: Sequence[Message], generation_prompt: bool, origin: str) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tokenize=False,
                    add_generation_prompt=generation_prompt,
                )
            )
        except Exception as error:  # templates raise errors of many types
            raise DataError(
                f"{origin}: the chat template refuses these messages: {first_line(error)}"
            ) from error


def problem_of_length(encoder: Encoder, record: Record, max_length: int) -> str | None:
    """Say what `fit_rows` would do to a record; None: nothing."""
    fitted = fit_rows([encoder.encode(record)], max_length)
    if fitted.dropped:
        return f"its response does not fit into {max_length} tokens"
    return f"its prompt does not fit into {max_length} tokens" if fitted.shortened else None


def _up_to_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages up to and with the last assistant turn."""
    return messages[: last_answer(messages) + 1]


def _text_of(side: Sequence[Message], origin: str) -> str:
    """Return the content of a response of one turn in text."""
    if len(side) > 1 or side[0].get("tool_calls"):
        raise DataError(f"{origin}: only responses of one turn in text are compared")
    return str(side[0]["content"])


def _weight(record: Record) -> float:
    weight = record.meta.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 100:
        raise DataError(f"{record.origin}: weight must be a number above 0, at most 100")
    return float(weight)
