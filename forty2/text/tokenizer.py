"""The part of a Hugging Face tokenizer, as mlx-lm wraps it, that encoding uses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from forty2.files import JsonObject


class AddedToken(Protocol):
    """A token added to the learned vocabulary."""

    @property
    def content(self) -> str:
        """Spelling of the token."""

    @property
    def special(self) -> bool:
        """Whether it is a control token, not text."""


class Tokenizer(Protocol):
    """A tokenizer with a chat template, e.g. mlx-lm's `TokenizerWrapper`."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def chat_template(self) -> object:
        """Jinja template, or several by name."""

    @property
    def eos_token_id(self) -> int:
        """Id of the token that ends a text."""

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Ids of all tokens at which generation stops."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]: ...

    def get_vocab(self) -> Mapping[str, int]: ...

    def convert_ids_to_tokens(self, ids: int) -> str | None:
        """Return the spelling of a token; None: there is none of this id."""

    def encode(
        self,
        text: str,
        *,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        verbose: bool = True,
    ) -> list[int]:
        """Return the ids of a text; `verbose`: warn of one above the tokenizer's own length limit."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def apply_chat_template(
        self, messages: Sequence[JsonObject], *, tokenize: bool, add_generation_prompt: bool
    ) -> str | list[int]: ...


LoadTokenizer = Callable[[str], Tokenizer]
"""Function that loads the tokenizer of the model with a name; worker processes get it pickled."""
