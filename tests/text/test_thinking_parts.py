"""Thoughts become parts of a content for the templates that read them there, and for no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
import pytest

from forty2.data.messages import REASONING
from forty2.errors import DataError
from forty2.text.thinking_parts import reads_parts, with_thinking_parts

PARTS = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST]' + m.content }}"
    "{% elif m.role != 'assistant' %}{{ no_such_role }}{% elif m.content is string %}{{ m.content }}{% else %}"
    "{{ m.content[1].text and '' }}{% for p in m.content %}"
    "{% if p.type == 'thinking' %}{{ '[THINK]' + p.thinking + '[/THINK]' }}"
    "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
"""Takes users and assistants, and writes thoughts that are parts before a text."""
KEY = PARTS.replace("{% elif m.content", "{% elif m.thinking %}{{ m.thinking }}{% elif m.content")
QUOTED = "{% for m in messages %}{{ m.content }}{% endfor %}"


def render(template: str) -> Any:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined)

    def rendered(messages: Sequence[dict[str, Any]]) -> str:
        try:
            return environment.from_string(template).render(messages=messages)
        except (jinja2.TemplateError, TypeError) as error:
            raise DataError(str(error)) from error

    return rendered


@pytest.mark.parametrize(("template", "by_parts"), [(PARTS, True), (KEY, False), (QUOTED, False)])
def test_parts_are_for_templates_that_read_no_key(template: str, by_parts: bool) -> None:
    assert reads_parts(render(template)) == by_parts


@pytest.mark.parametrize("key", REASONING)
def test_a_thought_is_a_part_before_the_text(key: str) -> None:
    asked = {"role": "user", "content": "q"}
    thought = {"type": "thinking", "thinking": "t"}
    for content, parts in (("a", [thought, {"type": "text", "text": "a"}]), ("", [thought])):
        answer = {"role": "assistant", "content": content, key: "t"}
        wanted = [asked, {"role": "assistant", "content": parts}]
        assert with_thinking_parts([asked, answer]) == wanted


def test_without_a_thought_a_message_stays_as_it_is() -> None:
    answer = {"role": "assistant", "content": "a", REASONING[0]: ""}
    assert with_thinking_parts([answer]) == [answer]
