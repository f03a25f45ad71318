"""Contexts of the benchmarks that follow lm-evaluation-harness 0.4.13, as text and as token ids.

They are composed and tokenized as in the harness, with and without a chat template.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from forty2.errors import BenchmarkError

if TYPE_CHECKING:  # a result is read without mlx
    from forty2.model.loading import LoadedModel

DEFAULT_CONTEXT = 2048
"""Context length in tokens of a model that states none, as in the harness."""


def pick(total: int, *, n: int | None, limit: int | None, seed: int) -> list[int]:
    """Choose which questions to ask; return their places in the file's order.

    Args:
        n: questions to draw, seeded; None: all.
        limit: draw from this many first questions, as with the harness's `--limit`.

    Raises:
        BenchmarkError: fewer than two (no standard error), or more than there are.
    """
    total = min(total, limit) if limit is not None else total
    n = n if n is not None else total
    if not 2 <= n <= total:
        raise BenchmarkError(f"cannot ask {n} of {total} questions; it must be 2 to {total}")
    return sorted(random.Random(seed).sample(range(total), n))


class Shot(NamedTuple):
    """An example with its answer, placed before the question."""

    text: str
    answer: str


class Row(NamedTuple):
    """A context and a continuation of it, as token ids."""

    given: list[int]
    scored: list[int]


class Prompts:
    """Contexts as text and as token ids, for one model.

    Args:
        chat: use the chat template: a description becomes the system turn, and a continuation
            follows the assistant's header without a space.
        multiturn: examples become turns of their own, as by default in the harness; False: they
            are part of the one user turn.

    Raises:
        BenchmarkError: there is no chat template.
    """

    def __init__(self, loaded: LoadedModel, *, chat: bool = False, multiturn: bool = True) -> None:
        self._tokenizer = loaded.tokenizer
        self._chat = chat
        self._multiturn = multiturn
        self._leading = leading_ids(loaded.tokenizer)
        self.length = context_length(loaded)
        if chat and not loaded.tokenizer.has_chat_template:
            raise BenchmarkError(f"{loaded.name}: the tokenizer has no chat template; run without")

    def context(
        self, text: str, shots: Sequence[Shot] = (), *, description: str = "", begun: str = ""
    ) -> str:
        """Compose the text before the tokens that are generated or scored.

        Args:
            text: the question.
            shots: examples before it.
            description: placed before everything.
            begun: the answer's beginning, which the model continues.
        """
        examples = "".join(f"{shot.text} {shot.answer}\n\n" for shot in shots)
        if not self._chat:
            space = begun and not (text[-1:].isspace() or begun[0].isspace())
            return f"{description}{examples}{text}{' ' if space else ''}{begun}"
        turns = [_turn("user", examples + text)]
        if self._multiturn:
            pairs = [(_turn("user", s.text), _turn("assistant", s.answer)) for s in shots]
            turns = [*(turn for pair in pairs for turn in pair), _turn("user", text)]
        if begun:
            turns.append(_turn("assistant", begun))
        system = [_turn("system", description)] if description else []
        try:
            return self._templated([*system, *turns], bool(begun))
        except jinja2.TemplateError:
            pass  # perhaps it has no system turn
        try:
            return self._templated(turns, bool(begun))
        except jinja2.TemplateError as error:
            raise BenchmarkError(f"the chat template refuses the prompt: {error}") from error

    def ids(self, text: str) -> list[int]:
        """Tokenize a text, as `ids_of` does."""
        return ids_of(self._tokenizer, self._leading, text)

    def prompt(self, context: str, max_tokens: int) -> list[int]:
        """Tokenize a prompt; cut its left end if the answer would not fit otherwise."""
        room = self.length - max_tokens
        if room < 1:
            raise BenchmarkError(
                f"{max_tokens} tokens of answer do not fit into a context of {self.length}"
            )
        return self.ids(context)[-room:]

    def rows(self, context: str, continuations: Sequence[str]) -> list[Row]:
        """Tokenize continuations: the ids after those of the context alone are scored."""
        # white space that ends a context belongs to the continuation: only a template has any
        border = len(self.ids(context.rstrip()))
        rows = []
        for continuation in continuations:
            whole = self.ids(f"{context}{'' if self._chat else ' '}{continuation}")
            if not 0 < border < len(whole):
                raise BenchmarkError(f"the tokenizer leaves no token to score for {continuation!r}")
            rows.append(Row(whole[:border], whole[border:]))
        return rows

    def _templated(self, turns: list[dict[str, str]], begun: bool) -> str:
        templated = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
        )
        return str(templated)


def examples_sha256(shots: Iterable[Sequence[Shot]]) -> str | None:
    """Hash the examples before each question; None where there are none."""
    examples = [list(each) for each in shots]
    return hashlib.sha256(json.dumps(examples).encode()).hexdigest() if any(examples) else None


def context_length(loaded: LoadedModel) -> int:
    """Return the model's context length in tokens, from its configuration or else its tokenizer.

    A key missing from the configuration has transformers' default, as in the harness.
    """
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    from forty2.model.configuration import named_context

    named = named_context(loaded.config)
    if named is None:
        length = getattr(loaded.tokenizer, "model_max_length", None)
        if length is None or length >= VERY_LARGE_INTEGER:
            return DEFAULT_CONTEXT
        named = int(length)
    return min(named, loaded.row_limit.tokens)


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def ids_of(tokenizer: Any, leading: Sequence[int], text: str) -> list[int]:
    """Tokenize a text, with the tokenizer's leading special tokens unless the text has a BOS.

    Args:
        leading: from `leading_ids`.
    """
    has_bos = tokenizer.bos_token and text.startswith(tokenizer.bos_token)
    return [*([] if has_bos else leading), *tokenizer.encode(text, add_special_tokens=False)]


def leading_ids(tokenizer: Any) -> list[int]:
    """Return the special tokens that the tokenizer puts in front of a text by default."""
    full = list(tokenizer.encode("1"))
    bare = list(tokenizer.encode("1", add_special_tokens=False))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    raise BenchmarkError("the tokenizer splits text in another way when it adds special tokens")
