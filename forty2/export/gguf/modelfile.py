"""Ollama's Modelfile: the GGUF file, the chat template in Go's language, stop strings, a system message.

Ollama has no Jinja. So the model's chat template is rendered with a few conversations, the texts before
and after each turn are read off, and the same texts are written as a Go template. It must give back all
conversations that were tried; if not, TEMPLATE is left out, and Ollama looks for one by itself.

Format: https://docs.ollama.com/modelfile
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
_GO = (
    "{{ if .System }}BEFORE_SYSTEM{{ .System }}AFTER_SYSTEM{{ else }}OPENING{{ end }}"
    "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
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
    system: tuple[str, str]
    """Before and after a system message, at the beginning of the conversation."""
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
        if system is None:
            text, first = self.opening, self.user[0]
        else:
            text = system.join(self.system)
            first = "" if self.folded else self.user[0]
        for role, content in turns:
            if role == "user":
                text += first + content + self.user[1]
                first = self.user[0]
            elif role == "assistant":
                text += content.join(self.assistant)
        return text + self.generation

    def to_go(self) -> str:
        """Return the Go template."""
        texts = {
            "OPENING": self.opening,
            "BEFORE_SYSTEM": self.system[0],
            "AFTER_SYSTEM": self.system[1],
            "BEFORE_USER": self.user[0],
            "AFTER_USER": self.user[1],
            "BEFORE_ANSWER": self.assistant[0],
            "AFTER_ANSWER": self.assistant[1],
            "GENERATION": self.generation,
        }
        template = _GO_FOLDED if self.folded else _GO
        return re.sub("[A-Z]+_[A-Z]+|OPENING|GENERATION", lambda found: texts[found[0]], template)


class Modelfile(NamedTuple):
    """What to write for Ollama."""

    text: str
    templated: bool
    """Whether it has a TEMPLATE."""
    path: Path = Path()


def modelfile_of(
    tokenizer: Any, stops: Sequence[str], adds_bos: bool, gguf: Path, system: str | None
) -> Modelfile:
    """Describe a GGUF file for Ollama.

    Args:
        tokenizer: the model's, with its chat template.
        stops: tokens that end a reply.
        adds_bos: whether Ollama itself writes the BOS token.
        gguf: the file; the Modelfile lies beside it.
        system: system message of every chat; None: none.
    """
    turns = read_turns(tokenizer, tokenizer.bos_token if adds_bos else None)
    lines = [f"FROM ./{gguf.name}"]
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
        fits = turns is not None and all(turns.render(t) == render(t) for t in TRIED)
    except Exception:  # a template may raise errors of any type
        return None
    return turns if fits and not any(m in str(turns) for m in ("{{", "}}", '"""')) else None


def _read(render: Any) -> Turns | None:
    asked, again = ("user", _ASKED), ("user", _AGAIN)
    before, after = render([asked], False).split(_ASKED)
    generation = render([asked]).split(_ASKED)[1].removeprefix(after)
    said = render([asked, ("assistant", _SAID), again], False)
    between, rest = said.split(_ASKED)[1].split(_SAID)
    answer = between.removeprefix(after)
    end = render([asked, ("assistant", _SAID)], False).split(_SAID)[1]
    if not rest.startswith(end) or not between.startswith(after):
        # a template may end the last answer otherwise than the others
        end = ""
    user = rest.split(_AGAIN)[0].removeprefix(end)
    opening = before.removesuffix(user)
    if not before.endswith(user):
        return None
    with_system = render([("system", _SYSTEM), asked], False)
    system, joint = with_system.split(_ASKED)[0].split(_SYSTEM)
    folded = not joint.endswith(user)
    if not folded:
        joint = joint.removesuffix(user)
    return Turns(opening, (system, joint), folded, (user, after), (answer, end), generation)
