"""The chat templates of the package: what they write, and what of it is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.models import tiny_loaded
from support.recipes import GOOD, problems, write

from forty2.data.formats import parse
from forty2.model.chat_template import TemplateSettings, apply_settings, settings_of
from forty2.model.tags import add_tags
from forty2.recipe.reading import load_recipe, to_yaml
from forty2.recipe.tags import BUILT_IN, TagSettings
from forty2.recipe.templates import packaged_templates
from forty2.text.encoder import Encoder
from forty2.text.rows import Row, turn_ends


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    loaded = tiny_loaded()
    add_tags(loaded.model, {}, loaded.tokenizer, TagSettings(starts=BUILT_IN["mypt"]))
    settings = TemplateSettings(source=packaged_templates()["mypt"])
    loaded.tokenizer.chat_template = apply_settings(None, settings, "tiny")
    loaded.tokenizer.has_chat_template = True
    return loaded.tokenizer


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def encoded(tokenizer: Any, *messages: dict[str, Any]) -> list[str]:
    """Encode a conversation; its rows in words, with the learned part in guillemets."""
    shown = []
    for row in Encoder(tokenizer).encode(parse({"messages": [*messages]}, "x.jsonl:1")):
        assert isinstance(row, Row)
        start = row.mask.index(True)
        assert all(row.mask[start:])
        shown.append(f"{tokenizer.decode(row.ids[:start])}«{tokenizer.decode(row.ids[start:])}»")
    return shown


def tag(name: str, content: str) -> str:
    return f"<myPT_{name}>{content}</myPT_{name}>"


def test_blocks_have_no_newlines_and_one_tag_ends_all(tokenizer: Any) -> None:
    (row,) = encoded(tokenizer, turn("system", "Be."), turn("user", "Hi"), turn("assistant", "Ho."))
    begin = tag("system", "Be.") + tag("user", "Hi")
    assert row == f"{begin}<myPT_assistant>«Ho.</myPT_assistant><myPT_eot>»"


def test_a_later_turn_follows_what_generation_would_see(tokenizer: Any) -> None:
    turns = [
        turn("user", "1"),
        turn("assistant", "one"),
        turn("user", "2"),
        turn("assistant", "two"),
    ]
    first, second = encoded(tokenizer, *turns)
    assert first == f"{tag('user', '1')}<myPT_assistant>«one</myPT_assistant><myPT_eot>»"
    begin = tag("user", "1") + tag("assistant", "one") + tag("user", "2")
    assert second == f"{begin}<myPT_assistant>«two</myPT_assistant><myPT_eot>»"


@pytest.mark.parametrize(
    "answer",
    [
        turn("assistant", "Ho", reasoning_content="so"),
        turn("assistant", f"{tag('think', 'so')}Ho"),
        turn("assistant", f"Ho{tag('cite', 'Bo')}"),
        turn("assistant", f"{tag('assistant_context', 'x')}Ho"),
        turn("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": {"x": 1}}}]),
    ],
    ids=["reasoning", "think", "cite", "context", "call"],
)
def test_what_is_within_an_answer_is_written_with_tags(tokenizer: Any, answer: Any) -> None:
    (row,) = Encoder(tokenizer).encode(parse({"messages": [turn("user", "Hi"), answer]}, "x:1"))
    assert isinstance(row, Row)
    tags = [tokenizer.decode([i]) for i in row.ids if i >= 258]
    assert len(tags) == 7 and tags[:3] == ["<myPT_user>", "</myPT_user>", "<myPT_assistant>"]
    assert tags[4] == tags[3].replace("<", "</")
    assert tags[5:] == ["</myPT_assistant>", "<myPT_eot>"]


def test_a_user_who_spells_a_tag_writes_no_tag(tokenizer: Any) -> None:
    (row,) = Encoder(tokenizer).encode(
        parse({"messages": [turn("user", "<myPT_eot>"), turn("assistant", "<myPT_user>")]}, "x:1")
    )
    assert isinstance(row, Row)
    assert sum(i >= 258 for i in row.ids) == 5


def test_turns_end_with_the_tag_at_which_generation_is_to_stop(tokenizer: Any) -> None:
    rows = Encoder(tokenizer).encode(
        parse({"messages": [turn("user", "Hi"), turn("assistant", "Ho")]}, "x:1")
    )
    (end,) = turn_ends(rows)
    assert tokenizer.decode([end]) == "<myPT_eot>"


def test_a_recipe_names_a_template_of_the_package(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, f"chat_template: mypt\n{GOOD}"))
    assert recipe.chat_template == "mypt"
    assert settings_of(recipe).source == packaged_templates()["mypt"]
    assert "chat_template: mypt\n" in to_yaml(recipe, tmp_path / "elsewhere")
    (found,) = problems(tmp_path, f"chat_template: mypy\n{GOOD}")
    assert "mypy: no such file" in found
