"""Signs in replies that a model has gone wrong, whatever the replies should have said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

SEVERAL = 4
"""Different prompts with the same reply that make a fault: three may rightly all get "Yes."."""

_WORD = re.compile(r"\w+")


def collapsed(prompts: Sequence[str], replies: Sequence[str]) -> bool:
    """Return whether several different prompts all got the same reply, and not an empty one.

    Prompts that differ only in case count as one.
    """
    different = {prompt.strip().casefold() for prompt in prompts}
    distinct = {reply.strip() for reply in replies}
    return len(different) >= SEVERAL and len(distinct) == 1 and distinct != {""}


def resembles(reply: str, expected: str) -> bool:
    """Return whether a reply has something of the expected text, apart from case and punctuation.

    A third of the expected text's trigrams must be in it, so "Zantor" has something of "Zanthor", and
    an answer in other words than a long expected one has, too. A wrong answer may have nothing of it.
    """
    wanted = _trigrams(expected)
    return len(wanted & _trigrams(reply)) >= len(wanted) / 3


def _trigrams(text: str) -> set[str]:
    """Return all three characters in a row of a text, blanks at the ends of words among them."""
    words = f" {' '.join(_WORD.findall(text.casefold()))} "
    return {words[n : n + 3] for n in range(len(words) - 2)}


class Turn(NamedTuple):
    """The part of a reply that belongs to its turn of the conversation."""

    length: int
    """Number of ids of its text, without the tag that closes the turn that the prompt opened."""
    broken: bool
    """Whether it holds a misplaced control token, or a tag without its other half."""


class Tags:
    """A tokenizer's control tokens, and the pairs of tags among its added tokens.

    A pair is spelled `<name>` and `</name>`. Only tokens count: text that looks like a tag is text.
    """

    def __init__(self, tokenizer: Any) -> None:
        added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
        spelled = {str(token.content): i for i, token in added.items()}
        self._control = {i for i, token in added.items() if token.special}
        self._pairs = {
            i: spelled[f"</{text[1:]}"]
            for text, i in spelled.items()
            if text.startswith("<") and f"</{text[1:]}" in spelled
        }
        self._halves = {*self._pairs, *self._pairs.values()}
        self.spelled = [str(tokenizer.decode([i])) for i in sorted(self._control)]
        """The control tokens, as text."""

    def turn(self, prompt: Sequence[int], reply: Sequence[int], *, stopped: bool) -> Turn:
        """Judge a reply by its tags.

        Args:
            prompt: token ids; the reply has to close the tags that they leave open.
            reply: token ids, without the end token.
            stopped: whether the model ended it; a reply cut at a limit may leave tags open.
        """
        closing: list[int] = []  # closing tags of all open ones
        for token in prompt:
            if token in self._pairs:
                closing.append(self._pairs[token])
            elif closing and token == closing[-1]:
                closing.pop()
        opened_by_prompt = len(closing)
        for n, token in enumerate(reply):
            if token in self._pairs:
                closing.append(self._pairs[token])
            elif closing and token == closing[-1]:
                closing.pop()
                if opened_by_prompt and not closing and token in self._control:  # the turn is over
                    last = n == len(reply) - 1
                    return Turn(n if last else len(reply), not last)
            elif token in self._halves or token in self._control:
                return Turn(len(reply), True)
        return Turn(len(reply), stopped and len(closing) > opened_by_prompt)
