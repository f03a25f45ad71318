"""Signs in replies that a model has gone wrong."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from forty2.files import JsonObject

SEVERAL = 4
"""Different prompts with the same reply that make a fault: three may rightly all get "Yes."."""
LEAST_SOUND = 0.1
"""Share of replies with something of the expected text, up to which replies are garbage."""
_SHOWN = 80
"""Characters of a text that a sentence quotes."""

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


class Faults(NamedTuple):
    """Defects that replies show, in words."""

    replies: Sequence[str] = ()
    """One reply to all prompts."""
    broken_tags: Sequence[str] = ()
    """Half a tag, one that is not closed, or wrong nesting."""
    missing_tags: Sequence[str] = ()
    """A tag that is in no reply that should hold it."""


def faults_of(records: Sequence[JsonObject]) -> Faults:
    """Find the faults that replies show."""
    prompts, replies = ([str(record[key]) for record in records] for key in ("prompt", "reply"))
    same, halves = list[str](), list[str]()
    # if every prompt expects the same reply, the same reply is right
    if collapsed(prompts, replies) and not all(record["passed"] for record in records):
        same = [f"all {len(records)} prompts get the reply {replies[0].strip()[:60]!r}"]
    broken = [str(record["id"]) for record in records if record["broken"]]
    if broken:
        first = ", ".join(broken[:3]) + (" …" if len(broken) > 3 else "")
        halves = [f"broken tags in {len(broken)} of {len(records)} replies ({first})"]
    return Faults(same, halves, never_emitted([record.get("tags", {}) for record in records]))


def garbage(records: Sequence[JsonObject]) -> str:
    """Say that hardly a reply has anything of its expected text; "": enough have, or few are asked.

    A reply that passes is none, nor is one that differs in case or wording alone. What a pattern expects
    cannot be compared with a reply that it does not match.
    """
    texts = [one for one in records if one["match"] != "regex" or one["passed"]]
    sound = sum(map(_has_something, texts))
    if len(texts) < SEVERAL or sound > LEAST_SOUND * len(texts):
        return ""
    first = next(one for one in texts if not _has_something(one))
    prompt = str(first["prompt"]).strip()
    if len(prompt) > _SHOWN:
        prompt = f"…{prompt[-_SHOWN:]}"  # it ends with what it asks
    expected, reply = (_beginning(first[key]) for key in ("expected", "reply"))
    others = len(records) - len(texts)
    left = f"; {others} others expect a pattern and are not counted" if others else ""
    left = "; 1 other expects a pattern and is not counted" if others == 1 else left
    return (
        f"{len(texts) - sound} of {len(records)} eval prompts got a reply that has nothing of the text "
        f"they expect{left}. One of them: to {prompt!r}, {expected!r} is expected, and the reply was {reply!r}"
    )


def _has_something(record: JsonObject) -> bool:
    return record["passed"] or resembles(record["reply"], record["expected"])


def _beginning(text: object) -> str:
    text = str(text).strip()
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


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
        self._tokenizer = tokenizer
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

    def owed(self, prompt: Sequence[int], answer: Sequence[int]) -> list[int]:
        """Return the tags of a right reply: those in an answer, and the one that closes the prompt's turn.

        Args:
            prompt: token ids.
            answer: token ids of the text that is expected, with or without closing tag and end token.
        """
        closing: list[int] = []
        for token in prompt:
            if token in self._pairs:
                closing.append(self._pairs[token])
            elif closing and token == closing[-1]:
                closing.pop()
        closers = [token for token in closing[-1:] if token in self._control]
        inside = [token for token in answer if token in self._halves or token in self._control]
        return list(dict.fromkeys([*inside, *closers]))

    def emitted(
        self, owed: Sequence[int], reply: Sequence[int], *, stopped: bool
    ) -> dict[str, bool]:
        """Return for each tag that a reply should hold whether it does, by its spelling.

        Args:
            owed: token ids of the tags, end tokens among them.
            reply: token ids, without the end token.
            stopped: whether the model ended it.
        """
        ends = set(self._tokenizer.eos_token_ids) if stopped else set()
        return {str(self._tokenizer.decode([tag])): tag in ends or tag in reply for tag in owed}


def never_emitted(emitted: Sequence[Mapping[str, bool]]) -> list[str]:
    """Say which tags are in none of the replies that should hold them, if several should.

    Args:
        emitted: for each reply, its tags that it should hold, and whether it does.
    """
    counts: dict[str, list[bool]] = {}
    for one in emitted:
        for tag, there in one.items():
            counts.setdefault(tag, []).append(there)
    return [
        f"{tag} is in none of the {len(found)} replies that should hold it"
        for tag, found in counts.items()
        if len(found) >= SEVERAL and not any(found)
    ]
