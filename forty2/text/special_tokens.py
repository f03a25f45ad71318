"""Control tokens of a tokenizer, and encoding of rendered templates that spell them.

A rendered chat template spells its control tokens, and so can a user's text. The template's become
tokens; the user's stay text, or they would end the turn. While a template is rendered, a placeholder
stands for each spelling in a user's text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from forty2.data.records import Message
from forty2.data.thoughts import closing_of, is_thought
from forty2.files import JsonObject
from forty2.text.tokenizer import Tokenizer
from forty2.text.word_cache import WordCache

_PLACEHOLDER = "\ue0f0{}\ue0f1"
_PLACEHOLDER_PATTERN = re.compile("\ue0f0(\\d+)\ue0f1")
"""Placeholder, while the chat template is rendered, for text that spells a control token."""
_NONE_OPENED: Mapping[int, str] = {}
_STAND_IN = "\ue0f2{}\ue0f3"
"""Spelling, for the copy of a tokenizer that takes control tokens for text, of the template's own."""

T = TypeVar("T")


class SpecialTokens:
    """Control tokens by spelling, and encoding of texts that contain them.

    Args:
        markers: control tokens that users write into answers on purpose, because the chat template
            looks for them there (`</think>`); they stay tokens in an assistant's content. So do the
            two around a thought with which it begins, and the one that closes a thought that its
            prompt has opened.
    """

    def __init__(self, tokenizer: Tokenizer, markers: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.ids = {str(token.content): i for i, token in added.items() if token.special}
        """Id by spelling."""
        for i in tokenizer.eos_token_ids:
            if (spelling := tokenizer.convert_ids_to_tokens(i)) is not None:
                self.ids.setdefault(spelling, i)
        self.pattern = _any_of(self.ids)
        """Matches the spelling of any of them."""
        ends = {spelling for spelling, i in self.ids.items() if i in tokenizer.eos_token_ids}
        # A text that looks like a placeholder is replaced by one itself.
        self._replaced = _any_of(self.ids, _PLACEHOLDER_PATTERN.pattern)
        self._replaced_in_answers = _any_of(
            set(self.ids).difference(set(markers) - ends), _PLACEHOLDER_PATTERN.pattern
        )
        self._thoughts = [
            (tag, closing_of(tag))
            for tag in self.ids
            if is_thought(tag) and closing_of(tag) in self.ids and not ends & {tag, closing_of(tag)}
        ]
        self._backend = _backend_of(tokenizer, self.ids)
        self._word_cache = None if self._backend is None else WordCache(self._backend)
        self._literal_backend: Backend | None = None

    @property
    def closings(self) -> set[str]:
        """Control tokens that close a thought."""
        return {closing for _, closing in self._thoughts}

    def replace(
        self,
        messages: Sequence[Message],
        tools: Sequence[JsonObject] = (),
        opened: Mapping[int, str] = _NONE_OPENED,
    ) -> tuple[list[Message], list[JsonObject], list[str]]:
        """Replace text that spells a control token, wherever a user could have written it.

        Args:
            opened: tags of thoughts that the prompts of some messages have opened, by index.

        Returns:
            The messages and tools with placeholders, and the texts that these stand for.
        """
        literals: list[str] = []

        def placeholder(match: re.Match[str]) -> str:
            literals.append(match[0])
            return _PLACEHOLDER.format(len(literals) - 1)

        def protected(i: int, message: Message) -> Message:
            answer = message["role"] == "assistant"
            pattern = self._replaced_in_answers if answer else self._replaced

            def content(text: str) -> str:
                kept = self._tags_of_thought(text, opened.get(i, ""))
                return pattern.sub(lambda m: m[0] if m.start() in kept else placeholder(m), text)

            changes = {"content": content} if answer else {}
            change = _replacing(pattern, placeholder)
            return {
                key: value if key == "role" else map_texts(changes.get(key, change), value)
                for key, value in message.items()
            }

        replaced = [protected(i, message) for i, message in enumerate(messages)]
        described = [map_texts(_replacing(self._replaced, placeholder), tool) for tool in tools]
        return replaced, described, literals

    def _tags_of_thought(self, answer: str, opened: str) -> Collection[int]:
        """Return where the tags stand around a thought with which an answer begins, if it does.

        Args:
            opened: tag of a thought that its prompt has opened; empty: none.
        """
        start = len(answer) - len(answer.lstrip())
        for opening, closing in self._thoughts:
            if closing in answer and answer.startswith(opening, start):
                return start, answer.index(closing)
            if closing in answer and opened == opening:
                return (answer.index(closing),)
        return ()

    def encode(self, text: str, literals: Sequence[str] = ()) -> list[int]:
        """Encode a rendered text in which placeholders stand for `literals`."""
        if not literals:
            return self.encode_batch([text])[0]
        if self._backend is None:
            return self._encode_pieces(text, literals)
        spelled = self.pattern.sub(lambda m: _STAND_IN.format(self.ids[m[0]]), text)
        spelled = _restored(spelled, literals)
        backend = self._taking_control_tokens_for_text()
        ids = backend.encode(spelled, add_special_tokens=False).ids
        return [self._original.get(i, i) for i in ids]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode rendered texts without placeholders."""
        if self._word_cache is None:
            encode = self._tokenizer.encode
            return [list(encode(text, add_special_tokens=False, verbose=False)) for text in texts]
        return self._word_cache.encode_batch(texts)

    def _taking_control_tokens_for_text(self) -> Backend:
        """Return a copy of the tokenizer in which each control token has another spelling.

        The whole text is encoded at once, because a tokenizer may treat the beginning of a text
        differently from what follows a control token.
        """
        if self._literal_backend is None:
            assert self._backend is not None
            copy = Backend.from_str(self._backend.to_str())
            copy.no_truncation()
            copy.no_padding()
            added = copy.get_added_tokens_decoder()
            stand_ins = [(i, _STAND_IN.format(i), added.get(i)) for i in self.ids.values()]
            copy.add_tokens(
                [
                    AddedToken(
                        spelling,
                        normalized=False,
                        lstrip=token is not None and token.lstrip,
                        rstrip=token is not None and token.rstrip,
                    )
                    for _, spelling, token in stand_ins
                ]
            )
            copy.encode_special_tokens = True
            self._original = {copy.token_to_id(spelling): i for i, spelling, _ in stand_ins}
            self._literal_backend = copy
        return self._literal_backend

    def _encode_pieces(self, text: str, literals: Sequence[str]) -> list[int]:
        """Encode what stands between control tokens piece by piece: for tokenizers in Python."""
        ids: list[int] = []
        position = 0
        for match in [*self.pattern.finditer(text), None]:
            between = text[position : match.start() if match else len(text)]
            ids += self._tokenizer.encode(
                _restored(between, literals),
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,
            )
            if match:
                ids.append(self.ids[match[0]])
                position = match.end()
        return ids


def map_texts(change: Callable[[str], str], value: T) -> T:
    """Return a JSON value with every text in it changed; the keys of its objects are kept."""
    changed: object = value
    if isinstance(value, str):
        changed = change(value)
    elif isinstance(value, Mapping):
        changed = {key: map_texts(change, each) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        changed = [map_texts(change, each) for each in value]
    return changed  # type: ignore[return-value]


def _backend_of(tokenizer: Tokenizer, specials: Collection[str]) -> Backend | None:
    """Return the compiled tokenizer, if texts are all that the Python one passes on to it."""
    backend: Backend | None = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    control = next(iter(specials), "")
    text = f"{control}One line,\n\tand  another: é, 好.{control} x"
    wrapped = list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
    return backend if WordCache(backend).encode_batch([text])[0] == wrapped else None


def _any_of(spellings: Collection[str], *more: str) -> re.Pattern[str]:
    # Of two that begin alike, the longer one comes first.
    ordered = sorted(spellings, reverse=True)
    return re.compile("|".join([*map(re.escape, ordered), *more]) or r"(?!)")


def _replacing(
    pattern: re.Pattern[str], placeholder: Callable[[re.Match[str]], str]
) -> Callable[[str], str]:
    return lambda text: pattern.sub(placeholder, text)


def _restored(text: str, literals: Sequence[str]) -> str:
    return _PLACEHOLDER_PATTERN.sub(lambda match: literals[int(match[1])], text)
