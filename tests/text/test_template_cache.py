"""Filling in a template's skeleton gives what rendering gives, whatever the texts hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.templates import BRACKETS, FORGETS, with_template

from forty2.data.records import Chat, Message, Text
from forty2.errors import DataError
from forty2.model.loading import LoadedModel
from forty2.text.encoder import Encoder
from forty2.text.rows import Row

TRIMS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] | trim }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
TEMPLATES = {"own": None, "brackets": BRACKETS, "forgets": FORGETS, "trims": TRIMS}
PARTS = st.sampled_from(
    [
        "Hello",
        " ",
        "\n",
        "\n\n",
        "a",
        "é",
        "日本",
        "<|im_end|>",
        "</think>",
        "1234",
        ".",
        "  ",
        "🙂",
        "assistant",
        "{{ x }}",
        "\t",
        "don't",
    ]
)
CONTENT = st.lists(PARTS, min_size=1, max_size=6).map("".join).filter(str.strip)
ROLES = st.sampled_from(["ua", "sua", "uaua", "suaua", "uau", "au", "uaa"])
CHAT = ROLES.flatmap(
    lambda roles: st.tuples(
        *(
            st.builds(lambda content, role=role: {"role": role, "content": content}, CONTENT)
            for role in ({"u": "user", "a": "assistant", "s": "system"}[r] for r in roles)
        )
    )
)


@pytest.fixture(scope="module")
def encoders(starter: LoadedModel) -> dict[str, Encoder]:
    return {
        name: Encoder(starter.tokenizer if template is None else with_template(starter, template))
        for name, template in TEMPLATES.items()
    }


def rendered(encoder: Encoder, chat: Chat) -> Row | None:
    try:
        return encoder.chat(chat)
    except DataError:
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_filled_in_is_what_rendered_is(name: str, encoders: dict[str, Encoder], data: Any) -> None:
    encoder = encoders[name]
    messages: tuple[Message, ...] = data.draw(CHAT)
    chat = Chat(messages=messages, origin="f:1")
    wanted = rendered(encoder, chat)
    if wanted is None:
        with pytest.raises(DataError):
            encoder.encode_sft([chat])
    else:
        assert encoder.encode_sft([chat]) == [wanted]


def test_it_is_used_where_it_can_be(encoders: dict[str, Encoder]) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for name in ("own", "forgets"):
        assert encoders[name]._templates.encode([turns])[0] is not None, name
    # Two newlines before the content are one token to generation and two in the whole text.
    assert encoders["trims"]._templates.encode([turns]) == [None]
    odd = [turns[0], {"role": "assistant", "content": " a"}]
    assert encoders["own"]._templates.encode([odd]) == [None]


def test_order_and_kinds_are_kept(encoders: dict[str, Encoder]) -> None:
    encoder = encoders["own"]
    turns = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})
    odd = (turns[0], {"role": "assistant", "content": "\na"})
    records: list[Chat | Text] = [
        Chat(messages=turns),
        Text(text="prose"),
        Chat(messages=odd),
        Chat(messages=turns),
    ]
    assert encoder.encode_sft(records) == [encoder.encode_sft_record(record) for record in records]
