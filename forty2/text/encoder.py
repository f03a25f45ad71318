"""Encoding of records: through the chat template to token ids and a mask of supervised tokens.

Only this module decides which tokens are supervised: all that the model must write in an assistant
turn, to the token at which generation stops; never a prompt token or padding. `turns` finds where
that begins and ends.

A prompt is tokenized as generation will see it. If tokenizing prompt and response together would
merge a token across their border (a response that begins with white space), the response is tokenized
on its own, so that its ids still spell exactly the response.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Sequence
from itertools import chain
from typing import Literal, NamedTuple, cast

from forty2.data.messages import REASONING
from forty2.data.record_texts import last_answer
from forty2.data.records import Chat, Message, Pair, Rated, Record, Text
from forty2.data.row_keys import WEIGHT
from forty2.data.thoughts import is_thought, tag_at_end
from forty2.errors import DataError, ModelError, first_line
from forty2.files import JsonObject
from forty2.text.rows import AnyRow, Masks, PairRow, RatedRow, Row, fit_rows
from forty2.text.special_tokens import SpecialTokens
from forty2.text.template_text import inspected_texts
from forty2.text.thinking_parts import reads_parts, with_thinking_parts
from forty2.text.tokenizer import Tokenizer
from forty2.text.tool_arguments import reads_text, with_text_arguments
from forty2.text.turns import Example, Turns, merging

TrainOn = Literal["all", "last"]
"""Which assistant turns of a conversation are learned, of those that its row does not exclude."""
_ANY_TOOL: JsonObject = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
_ANCHORS = ("\n", ".", "a")
"""Texts behind which a continuation is tokenized where a tokenizer treats beginnings differently."""
_LONGEST_LEAD = 200
"""Most characters between a control token and a turn whose tokens are remembered."""


class _Task(NamedTuple):
    """A rendered example, and the texts that its placeholders stand for."""

    example: Example
    literals: list[str]


class Encoder:
    """Turns records into token ids with one tokenizer and its chat template.

    Raises:
        ModelError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.has_chat_template:
            raise ModelError(
                "the tokenizer has no chat template: use an instruct model, or give a template "
                "(chat_template: FILE in a recipe, else `template`)"
            )
        self.tokenizer = tokenizer
        self.train_on: TrainOn = "all"
        template = str(tokenizer.chat_template)
        self._specials = SpecialTokens(tokenizer, inspected_texts(template))
        self._special_ids = frozenset(self._specials.ids.values())
        stops = {s for s, i in self._specials.ids.items() if i in set(tokenizer.eos_token_ids)}
        self._turns = Turns(self._render, self._specials.pattern, stops, template)
        self._spellings = {i: spelling for spelling, i in self._specials.ids.items()}
        self._leads: dict[tuple[int | str, ...], list[int]] = {}
        self._reads_text: bool | None = None
        self._reads_parts: bool | None = None

    def training_on(self, train_on: TrainOn) -> Encoder:
        """Return an encoder for conversations of which all turns, or the last alone, are learned."""
        other = copy.copy(self)
        other.train_on = train_on
        return other

    @property
    def specials(self) -> list[str]:
        """Spellings of the control tokens that no text of a row should hold.

        The tags around thoughts are not among them: answers may hold them.
        """
        return [spelling for spelling in self._specials.ids if not is_thought(spelling)]

    def prompt(self, messages: Sequence[Message], tools: Sequence[JsonObject] = ()) -> list[int]:
        """Encode `messages` as generation sees them, up to the beginning of the answer."""
        shown, described, literals = self._held(messages, tools)
        return self._specials.encode(self._render(shown, True, described), literals)

    # --- rows ---

    def encode(self, record: Record) -> list[AnyRow]:
        """Encode a record of any kind; a conversation may give several rows."""
        match record:
            case Chat() | Text():
                return [*self.encode_sft_record(record)]
            case Pair():
                return [self.encode_pair(record)]
            case Rated():
                return [self.encode_rated(record)]

    def encode_sft(self, records: Sequence[Chat | Text]) -> list[Row]:
        """Encode records for supervised fine-tuning, their rows one after another."""
        return list(chain.from_iterable(self.encode_sft_records(records)))

    def encode_sft_record(self, record: Chat | Text) -> list[Row]:
        """Encode one record for supervised fine-tuning.

        A conversation is one row; where the chat template rewrites earlier turns, it is a row for
        each learned turn, behind the prompt that generation would see.
        """
        return self.encode_sft_records([record])[0]

    def encode_sft_records(self, records: Sequence[Chat | Text]) -> list[list[Row]]:
        """Encode records as `encode_sft_record` does, tokenizing them together."""
        tasks = [self._tasks(r) if isinstance(r, Chat) else [] for r in records]
        encoded = iter(self._encode_all([task for each in tasks for task in each]))
        rows: list[list[Row]] = []
        for record, each in zip(records, tasks, strict=True):
            if isinstance(record, Text):
                rows.append([self._text(record)])
            else:
                weight = _weight(record)
                rows.append([Row(*next(encoded), record.origin, weight=weight) for _ in each])
        return rows

    def encode_pair(self, record: Pair) -> PairRow:
        """Encode a prompt and both responses, each with its end-of-turn token.

        Raises:
            DataError: the chat template changes the prompt with the response, or both responses are
                the same to the model.
        """
        sides = [
            self.response(record.prompt, side, record.tools, record.origin)
            for side in (record.chosen, record.rejected)
        ]
        (prompt, chosen, chosen_mask), (prompt_again, rejected, rejected_mask) = sides
        if prompt != prompt_again:
            raise DataError(
                f"{record.origin}: the chat template changes the prompt with the response"
            )
        if chosen == rejected:
            raise DataError(
                f"{record.origin}: chosen and rejected are equal to the model, since the chat "
                "template writes them alike; drop the row"
            )
        masks = (chosen_mask, rejected_mask)
        return PairRow(
            prompt,
            chosen,
            rejected,
            record.origin,
            _weight(record),
            None if all(map(all, masks)) else masks,
        )

    def encode_rated(self, record: Rated) -> RatedRow:
        """Encode a prompt and its response; `add_mismatched_responses` adds the other response."""
        prompt, response, mask = self.response(
            record.prompt, record.response, record.tools, record.origin
        )
        weight = _weight(record)
        masks: Masks | None = None if all(mask) else (mask, [])
        return RatedRow(prompt, response, [], record.desirable, record.origin, weight, masks)

    def response(
        self,
        prompt: Sequence[Message],
        turns: Sequence[Message],
        tools: Sequence[JsonObject] = (),
        origin: str = "",
    ) -> tuple[list[int], list[int], list[bool]]:
        """Encode a prompt, and a response to it with its end-of-turn token.

        Args:
            turns: the response: an assistant turn, or several turns that begin and end with one.

        Returns:
            Ids of the prompt, and ids and mask of the response.
        """
        messages = (*prompt, *turns)
        written = [i for i, m in enumerate(turns, len(prompt)) if m["role"] == "assistant"]
        learned = [i for i in written if i in _answers(messages)]
        ids, mask = self._encode_whole(messages, learned, tools, origin)
        start = mask.index(True)
        if written[0] < learned[0]:  # the response begins with a turn that is not learned
            whole, written_mask = self._encode_whole(messages, written, tools, origin)
            start = written_mask.index(True)
            if whole[:start] != ids[:start]:
                raise DataError(f"{origin}: the chat template changes the prompt with the response")
        return ids[:start], ids[start:], mask[start:]

    def _encode_whole(
        self,
        messages: Sequence[Message],
        learned: Sequence[int],
        tools: Sequence[JsonObject],
        origin: str,
    ) -> tuple[list[int], list[bool]]:
        """Encode a conversation as one example.

        Raises:
            DataError: the chat template rewrites earlier turns.
        """
        tasks = self._examples(messages, learned, tools, origin)
        if len(tasks) > 1:
            raise DataError(
                f"{origin}: the chat template rewrites earlier turns, so a response of several turns "
                "cannot be compared; use responses of one turn"
            )
        return self._encode_all(tasks)[0]

    def measure(self, record: Record) -> tuple[int, int]:
        """Count the tokens of a record, its prompt once, and the supervised ones among them."""
        tokens = supervised = 0
        for row in self.encode(record):
            if isinstance(row, Row):
                parts, masks = [row.ids], [row.mask]
            else:
                parts, masks = [row.prompt, *row.responses], [*row.response_masks]
            tokens += sum(map(len, parts))
            supervised += sum(map(sum, masks))
        return tokens, supervised

    # --- conversations ---

    def _tasks(self, record: Chat) -> list[_Task]:
        learned = _answers(record.messages)
        if self.train_on == "last":
            last = last_answer(record.messages)
            learned = [i for i in learned if i == last]
        if not learned:
            raise DataError(f"{record.origin}: no turn is to be learned; drop the row")
        return self._examples(record.messages, learned, record.tools, record.origin)

    def _examples(
        self,
        messages: Sequence[Message],
        learned: Sequence[int],
        tools: Sequence[JsonObject],
        origin: str,
    ) -> list[_Task]:
        """Render what is learned of a conversation."""
        shown, described, literals = self._held(messages, tools)
        try:
            examples = self._turns.examples(shown, learned, described)
        except DataError as error:
            raise DataError(f"{origin}: {error}") from error
        return [_Task(example, literals) for example in examples]

    def _held(
        self, messages: Sequence[Message], tools: Sequence[JsonObject]
    ) -> tuple[list[Message], list[JsonObject], list[str]]:
        """Return messages and tools for the template, with the control tokens that users spelled held.

        A token that closes the thought that an answer's prompt has opened is one: it is not held.
        """
        shown = self._shown(messages)
        held = self._specials.replace(shown, tools)
        if self._specials.closings.isdisjoint(held[2]):
            return held
        opened = {
            i: self._opened(held[0][:i], held[1])
            for i, message in enumerate(shown)
            if message["role"] == "assistant" and not any(map(message.get, REASONING))
        }
        return self._specials.replace(shown, tools, opened)

    def _opened(self, messages: Sequence[Message], tools: Sequence[JsonObject]) -> str:
        """Return the tag with which a prompt opens a thought; empty: there is none."""
        try:
            return tag_at_end(self._render(messages, True, tools))
        except DataError:
            return ""

    def _shown(self, messages: Sequence[Message]) -> list[Message]:
        """Return messages as the template gets them: without nulls, empty calls and `train`."""
        shown: list[Message] = [
            {"content": "", **{k: v for k, v in m.items() if _is_shown(k, v)}} for m in messages
        ]
        if any(m.get(key) for m in messages for key in REASONING):
            if self._reads_parts is None:
                self._reads_parts = reads_parts(lambda trial: self._render(trial, False, ()))
            shown = with_thinking_parts(shown) if self._reads_parts else shown
        if not any(m.get("tool_calls") for m in messages):
            return [*shown]
        if self._reads_text is None:
            self._reads_text = reads_text(lambda trial: self._render(trial, False, ()))
        return with_text_arguments(shown) if self._reads_text else [*shown]

    def _text(self, record: Text) -> Row:
        """Encode a text and the token that ends it; all tokens but the first are supervised.

        A text that spells its own beginning and end, as rendered conversations do, has each once;
        blanks behind such an end are left off.
        """
        spelled = self._specials.pattern.match(record.text)
        ends = set(self.tokenizer.eos_token_ids)
        bare = record.text.rstrip()
        ended = bare.endswith(tuple(s for s, i in self._specials.ids.items() if i in ends))
        # It is divided if it is too long.
        ids = list(self.tokenizer.encode(bare if ended else record.text, verbose=False))
        if spelled and ids[:2] == [self._specials.ids[spelled[0]]] * 2:
            del ids[0]
        while len(ids) > 1 and ends.issuperset(ids[-2:]):
            ids.pop()
        if not ends.intersection(ids[-1:]):
            ids.append(self.tokenizer.eos_token_id)
        mask = [i > 0 for i in range(len(ids))]
        return Row(ids, mask, record.origin, weight=_weight(record), is_text=True)

    def _render(
        self, messages: Sequence[Message], prompt: bool, tools: Sequence[JsonObject]
    ) -> str:
        try:
            return self._apply(messages, prompt, tools)
        except Exception as error:  # templates raise errors of many types
            raise DataError(
                f"the chat template refuses these messages: {first_line(error)}"
                f"{self._advice(messages, prompt, tools)}"
            ) from error

    def _apply(self, messages: Sequence[Message], prompt: bool, tools: Sequence[JsonObject]) -> str:
        given = {"tools": [dict(tool) for tool in tools]} if tools else {}
        return str(
            self.tokenizer.apply_chat_template(
                [dict(m) for m in messages],
                tokenize=False,
                add_generation_prompt=prompt,
                **given,
            )
        )

    def _advice(
        self, messages: Sequence[Message], prompt: bool, tools: Sequence[JsonObject]
    ) -> str:
        """Say what to do about messages that the template refuses, where it is clear."""
        if not tools and self._takes(messages, prompt, [_ANY_TOOL]):
            return (
                "; it needs tools, and there are none: give the row tools, or use another template"
            )
        rest = [m for m in messages if m["role"] != "system"]
        if not rest or len(rest) == len(messages):
            return ""
        if not self._takes(rest, prompt, tools):  # it refuses something else, too
            return ""
        return f"; it takes no system turn: {merging(messages)}"

    def _takes(
        self, messages: Sequence[Message], prompt: bool, tools: Sequence[JsonObject]
    ) -> bool:
        """Return whether the template renders messages."""
        try:
            self._apply(messages, prompt, tools)
        except Exception:  # templates raise errors of many types
            return False
        return True

    # --- tokens ---

    def _encode_all(self, tasks: Sequence[_Task]) -> list[tuple[list[int], list[bool]]]:
        """Tokenize examples and mask the turns that are learned."""
        plain = [task.example.text for task in tasks if not task.literals]
        together = iter(self._specials.encode_batch(plain)) if plain else iter(())
        encoded = []
        for example, literals in tasks:
            text = example.text
            ids = self._specials.encode(text, literals) if literals else next(together)
            found = self._masked(ids, example, literals)
            if found is None:
                found = self._piecewise(example, literals)
            if example.needs_end:
                found = ([*found[0], self.tokenizer.eos_token_id], [*found[1], True])
            encoded.append(found)
        return encoded

    def _masked(
        self, ids: list[int], example: Example, literals: list[str]
    ) -> tuple[list[int], list[bool]] | None:
        """Mask the learned turns of a text tokenized as a whole; None: a token crosses a border."""
        controls = list(self._specials.pattern.finditer(example.text))
        places = [i for i, token in enumerate(ids) if token in self._special_ids]
        if len(controls) != len(places):
            return None
        whole = _Tokenized(example.text, ids, [m.end() for m in controls], places)
        mask = [False] * len(ids)
        for span in example.spans:
            start, end = (self._border(whole, character, literals) for character in span)
            if start is None or end is None:
                return None
            mask[start:end] = [True] * (end - start)
        return ids, mask

    def _border(self, whole: _Tokenized, character: int, literals: list[str]) -> int | None:
        """Return the token that begins at a character of a text; None: none does.

        What stands between the control token before it and the character must be the same tokens
        as in a prompt that ends there.
        """
        if character == len(whole.text):
            return len(whole.ids)
        begin, token, control = 0, 0, []
        if before := bisect_right(whole.control_ends, character):
            begin, place = whole.control_ends[before - 1], whole.control_places[before - 1]
            token, control = place + 1, [whole.ids[place]]
        lead = whole.text[begin:character]
        if not lead:
            return token
        expected = self._lead_ids(control, lead, literals)
        end = token + len(expected)
        return end if whole.ids[token:end] == expected else None

    def _lead_ids(self, control: list[int], lead: str, literals: list[str]) -> list[int]:
        """Tokenize what follows a control token up to a border; [] for the beginning of a text."""
        key: tuple[int | str, ...] = (*control, lead)
        if key not in self._leads or literals:
            spelled = "".join(self._spellings[i] for i in control)
            ids = self._specials.encode(spelled + lead, literals)[len(control) :]
            if literals or len(lead) > _LONGEST_LEAD:
                return ids
            self._leads[key] = ids
        return self._leads[key]

    def _piecewise(self, example: Example, literals: list[str]) -> tuple[list[int], list[bool]]:
        """Tokenize prompts as generation sees them, and responses so that they follow their prompt."""
        ids: list[int] = []
        mask: list[bool] = []
        at = 0
        for span in example.spans:
            for end, learned in zip(span, (False, True), strict=True):
                more = self._following(ids, example.text[:at], example.text[:end], literals)
                ids = [*ids, *more]
                mask += [learned] * len(more)
                at = end
        return ids, mask

    def _following(self, ids: list[int], text: str, longer: str, literals: list[str]) -> list[int]:
        """Tokenize what follows `text`, whose ids are `ids`, in `longer`."""
        together = self._specials.encode(longer, literals)
        if together[: len(ids)] == ids:
            return together[len(ids) :]
        rest = longer[len(text) :]
        wanted = self.tokenizer.decode(together)
        found: list[list[int]] = [self._specials.encode(rest, literals)]
        for anchor in _ANCHORS:  # some tokenizers add a space at a beginning
            start = self._specials.encode(anchor)
            behind = self._specials.encode(anchor + rest, literals)
            if behind[: len(start)] == start:
                found.append(behind[len(start) :])
        spelled = (more for more in found if self.tokenizer.decode([*ids, *more]) == wanted)
        return next(spelled, found[0])


class _Tokenized(NamedTuple):
    """A text with its ids, and the control tokens in both."""

    text: str
    ids: list[int]
    control_ends: list[int]
    """For each control token, the character after it."""
    control_places: list[int]
    """For each control token, its place among the ids."""


def _answers(messages: Sequence[Message]) -> list[int]:
    """Return the assistant turns to learn: those that their row does not exclude."""
    return [
        i
        for i, m in enumerate(messages)
        if m["role"] == "assistant" and m.get("train") is not False
    ]


def _is_shown(key: str, value: object) -> bool:
    """Return whether a template gets a message's key: many take an empty list of calls for a call."""
    return value is not None and key != "train" and (key != "tool_calls" or bool(value))


def problem_of_length(encoder: Encoder, record: Record, max_length: int) -> str | None:
    """Say what `fit_rows` would do to a record; None: nothing."""
    fitted = fit_rows(encoder.encode(record), max_length)
    if fitted.dropped:
        return f"its response does not fit into {max_length} tokens"
    return f"its prompt does not fit into {max_length} tokens" if fitted.shortened else None


def _weight(record: Record) -> float:
    """Return the average uses of a row per epoch, checked when the row was read."""
    return float(cast(float, record.meta.get(WEIGHT, 1.0)))
