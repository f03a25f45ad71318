"""Ollama's Modelfile: the GGUF file, the chat template in Go's language, stop strings, a system message.

Ollama has no Jinja. So the model's chat template is rendered with a few conversations, the texts before
and after each turn are read off, and the same texts are written as a Go template. It must give back all
conversations that were tried; if not, TEMPLATE is left out, and Ollama looks for one by itself.

Format: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from forty2.errors import ModelError
from forty2.model.chat_template import reads_clock

Turn = tuple[str, str]
"""Role and content."""
_SYSTEM, _ASKED, _SAID, _AGAIN = "xsystemx", "xaskedx", "xsaidx", "xagainx"
TRIED: tuple[tuple[Turn, ...], ...] = (
    (("user", "Why?"),),
    (("system", "Be brief."), ("user", "Why?")),
    (("user", "Why?"), ("assistant", "So."), ("user", "And then?")),
    (
        *(("system", "Be kind."), ("user", "Why?"), ("assistant", "So."), ("user", "And?")),
        *(("assistant", "Then."), ("user", "Is that all?")),
    ),
)
"""Conversations with which a chat template is tried."""
_GO_SYSTEM = "{{ if .System }}BEFORE_SYSTEM{{ .System }}AFTER_SYSTEM{{ else }}OPENING{{ end }}"
_GO = (
    _GO_SYSTEM + "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
    '{{ if eq .Role "user" }}BEFORE_USER{{ .Content }}AFTER_USER'
    '{{ else if eq .Role "assistant" }}BEFORE_ANSWER{{ .Content }}'
    "{{ if not $last }}AFTER_ANSWER{{ end }}{{ end }}"
    '{{ if and $last (ne .Role "assistant") }}GENERATION{{ end }}{{ end }}'
)
"""Go template with words in place of the texts; Ollama gives it the system message in both ways."""
_GO_FOLDED = "{{ $first := true }}" + _GO.replace(
    "BEFORE_USER",
    "{{ if or (not $first) (not $.System) }}BEFORE_USER{{ end }}{{ $first = false }}",
)
"""The same where the system message is within the user's first turn."""


class Turns(NamedTuple):
    """The texts that a chat template writes around turns."""

    opening: str
    """Before the first turn if there is no system message; may hold a default one."""
    system: tuple[str, str] | None
    """Before and after a system message, at the beginning of the conversation; None: it is refused."""
    folded: bool
    """Whether the system message is within the first turn of the user, so that the text after it is the
    beginning of the user's message."""
    user: tuple[str, str]
    assistant: tuple[str, str]
    generation: str
    """After the last turn, before the reply."""

    def render(self, turns: Sequence[Turn]) -> str:
        """Render a conversation that ends with the user, as the Go template does."""
        system = next((text for role, text in turns if role == "system"), None)
        text, first = self.opening, self.user[0]
        if system is not None and self.system is not None:
            text, first = system.join(self.system), "" if self.folded else first
        for role, content in turns:
            if role == "user":
                text += first + content + self.user[1]
                first = self.user[0]
            elif role == "assistant":
                text += content.join(self.assistant)
        return text + self.generation

    def to_go(self) -> str:
        """Return the Go template."""
        before, after = self.system or ("", "")
        texts = {
            "OPENING": self.opening,
            "BEFORE_SYSTEM": before,
            "AFTER_SYSTEM": after,
            "BEFORE_USER": self.user[0],
            "AFTER_USER": self.user[1],
            "BEFORE_ANSWER": self.assistant[0],
            "AFTER_ANSWER": self.assistant[1],
            "GENERATION": self.generation,
        }
        template = _GO_FOLDED if self.folded else _GO
        if self.system is None:
            template = template.replace(_GO_SYSTEM, "OPENING")
        return re.sub("[A-Z]+_[A-Z]+|OPENING|GENERATION", lambda found: texts[found[0]], template)


class Modelfile(NamedTuple):
    """Ollama's file, which names the model, its template and its stops."""

    text: str
    templated: bool
    """Whether it has a TEMPLATE."""
    path: Path = Path()


def modelfile_of(
    tokenizer: Any, stops: Sequence[str], *, adds_bos: bool, gguf: str, system: str | None
) -> Modelfile:
    """Describe a GGUF file for Ollama.

    Args:
        tokenizer: the model's, with its chat template.
        stops: tokens that end a reply.
        adds_bos: whether Ollama itself writes the BOS token.
        gguf: name of the file; the Modelfile lies beside it.
        system: system message of every chat; None: none.

    Raises:
        ModelError: the chat template takes no system message, or the format none such as this.
    """
    turns = read_turns(tokenizer, tokenizer.bos_token if adds_bos else None)
    if system is not None and ('"""' in system or (turns is not None and turns.system is None)):
        reason = "a Modelfile" if '"""' in system else "the chat template"
        raise ModelError(f"`system`: {reason} cannot hold the system message {system[:40]!r}")
    lines = [f"FROM ./{gguf}"]
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.to_go()}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    if system is not None:
        lines.append(f'SYSTEM """{system}"""')
    return Modelfile("\n".join(lines) + "\n", turns is not None)


def read_turns(tokenizer: Any, bos: str | None) -> Turns | None:
    """Read off a chat template what it writes around turns.

    Args:
        bos: a token that is left out of the beginning, because it is written anyway.

    Returns:
        The texts; None: there is no template, or it does more than write texts around turns.
    """
    if tokenizer.chat_template is None or reads_clock(tokenizer.chat_template):
        return None

    def render(turns: Sequence[Turn], generation: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation
        )
        return text.removeprefix(bos) if bos else text

    try:
        turns = _read(render)
        tried = [t for t in TRIED if turns.system is not None or t[0][0] != "system"]
        fits = all(turns.render(t) == render(t) for t in tried)
    except Exception:  # a template may raise errors of any type
        return None
    return turns if fits and not any(m in str(turns) for m in ("{{", "}}", '"""')) else None


def _read(render: Callable[..., str]) -> Turns:
    """Read off the texts by turns with known contents.

    Where a text divides between the turns around it is a guess; the whole is right with any.

    Raises:
        Exception: the template refuses the turns, or writes them in another order.
    """
    asked, said, again = ("user", _ASKED), ("assistant", _SAID), ("user", _AGAIN)
    before, between, rest = _cut(render([asked, said, again]), _ASKED, _SAID, _AGAIN)[:3]
    ending = _cut(render([asked]), _ASKED)[1]
    after = render([asked], False).split(_ASKED)[1]
    if not (between.startswith(after) and ending.startswith(after)):
        after = _common(between, ending)
    end = render([asked, said], False).split(_SAID)[1]
    if not rest.startswith(end) or not before.endswith(rest.removeprefix(end)):
        end = rest.removesuffix(_common(rest[::-1], before[::-1])[::-1])
    user = rest.removeprefix(end)
    system, folded = None, False
    try:
        opened, joint = _cut(render([("system", _SYSTEM), asked]), _SYSTEM, _ASKED)[:2]
    except Exception:  # refused: an error of any type
        pass
    else:
        folded = not joint.endswith(user)
        system = opened, joint if folded else joint.removesuffix(user)
    return Turns(
        before.removesuffix(user),
        system,
        folded,
        (user, after),
        (between.removeprefix(after), end),
        ending.removeprefix(after),
    )


def _cut(text: str, *contents: str) -> list[str]:
    """Return the texts before, between and after contents.

    Raises:
        ValueError: a content is not there once, or they are in another order.
    """
    found = []
    for content in contents:
        if text.count(content) != 1:
            raise ValueError(content)
        before, _, text = text.partition(content)
        found.append(before)
    return [*found, text]


def _common(one: str, other: str) -> str:
    """Return the longest text that both begin with."""
    pairs = zip(one, other, strict=False)
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
