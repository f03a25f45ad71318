"""What replies tell of a model that has gone wrong, whatever they should have said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

SEVERAL = 4
"""Different prompts that a model has to answer alike: three questions may well all have a "Yes."."""


def collapsed(prompts: Sequence[str], replies: Sequence[str]) -> bool:
    """Whether all of several different prompts got the same reply, and not an empty one.

    Prompts that differ in case only count as one: not to tell them apart is no collapse.
    """
    different = {prompt.strip().casefold() for prompt in prompts}
    said = {reply.strip() for reply in replies}
    return len(different) >= SEVERAL and len(said) == 1 and said != {""}


class Turn(NamedTuple):
    """A reply's part of a conversation."""

    length: int
    """Ids of its text: all but the tag that closes a turn whose opening tag the prompt holds."""
    broken: bool
    """A control token is in it that has no business there, or a tag without its other half."""


class Tags:
    """A tokenizer's control tokens, and which of its added tokens are the halves of a pair.

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
            prompt: token ids. A tag that they leave open is one for the reply to close.
            reply: token ids, without the end token.
            stopped: whether the model ended it; what was cut at a limit may leave tags open.
        """
        wanted: list[int] = []  # tags that close what is open
        for token in prompt:
            if token in self._pairs:
                wanted.append(self._pairs[token])
            elif wanted and token == wanted[-1]:
                wanted.pop()
        given = len(wanted)
        for n, token in enumerate(reply):
            if token in self._pairs:
                wanted.append(self._pairs[token])
            elif wanted and token == wanted[-1]:
                wanted.pop()
                if given and not wanted and token in self._control:  # the turn is over
                    last = n == len(reply) - 1
                    return Turn(n if last else len(reply), not last)
            elif token in self._halves or token in self._control:
                return Turn(len(reply), True)
        return Turn(len(reply), stopped and len(wanted) > given)
