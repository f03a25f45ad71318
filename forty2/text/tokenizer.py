"""The part of a Hugging Face tokenizer, as mlx-lm wraps it, that text is encoded with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from forty2.files import JsonObject


class AddedToken(Protocol):
    """A token beside the learned vocabulary."""

    @property
    def content(self) -> str:
        """Its spelling."""

    @property
    def special(self) -> bool:
        """True for a control token, which is no text."""


class Tokenizer(Protocol):
    """A tokenizer with a chat template, e.g. mlx-lm's `TokenizerWrapper`."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def chat_template(self) -> object:
        """A Jinja template, or several by name."""

    @property
    def eos_token_id(self) -> int:
        """The token that ends a text."""

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Every token at which generation stops."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str: ...

    def encode(
        self, text: str, *, add_special_tokens: bool = True, split_special_tokens: bool = False
    ) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def apply_chat_template(
        self, messages: Sequence[JsonObject], *, tokenize: bool, add_generation_prompt: bool
    ) -> str | list[int]: ...


LoadTokenizer = Callable[[str], Tokenizer]
"""Loads the tokenizer of the model with this name. Can be pickled, to be called in a worker."""
