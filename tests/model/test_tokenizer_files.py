"""Tokenizers and chat templates are found in every place that they are kept in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import save_tiny
from transformers import AutoTokenizer

from forty2.errors import ModelError
from forty2.model.loading import load_tokenizer

TEMPLATE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"
CHAT = [{"role": "user", "content": "ab"}]


def settings(folder: Path, **changes: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n  ", "\n  {% set x = 1 %}\n"])
@pytest.mark.parametrize("start", ["", "\n", "{% macro f(x) %}{{ x }}{% endmacro %}\n  "])
@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "f"}}]])
def test_of_several_templates_the_one_that_transformers_takes_is_used(
    tools: list[dict[str, object]] | None, start: str, end: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "m")
    both = {"default": start + TEMPLATE + end, "tool_use": f"{start}{{{{ tools }}}}{TEMPLATE}{end}"}
    settings(folder, chat_template=[{"name": n, "template": t} for n, t in both.items()])
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        CHAT, tools=tools, tokenize=False
    )
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.apply_chat_template(CHAT, tools=tools, tokenize=False) == expected
    assert "ab</s>" in expected and ("function" in expected) == (tools is not None)


def test_a_single_template_is_used_whatever_its_name(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    settings(folder, chat_template=[{"name": "chat", "template": TEMPLATE}])
    assert load_tokenizer(str(folder)).chat_template == TEMPLATE


def test_several_templates_without_a_default_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    settings(folder, chat_template=[{"name": n, "template": TEMPLATE} for n in ("rag", "tools")])
    with pytest.raises(ModelError, match=r"2 chat templates \(rag, tools\), and none is named"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json"])
def test_a_template_in_a_file_of_its_own_is_read(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    text = TEMPLATE if name.endswith("jinja") else json.dumps({"chat_template": TEMPLATE})
    (folder / name).write_text(text)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.has_chat_template and tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("empty", ["", "\n "])
def test_an_empty_template_counts_as_none(empty: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(empty)
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.chat_template is None and not tokenizer.has_chat_template


def test_an_end_token_that_config_json_alone_names_is_the_tokenizers(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    settings(folder, eos_token=None)
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 99_999}))
    with pytest.raises(
        ModelError, match=r"config.json's eos_token_id is no token of the tokenizer"
    ):
        load_tokenizer(str(folder))


@pytest.mark.parametrize(
    "name", ["tokenizer.model", "qwen.tiktoken", "tiktoken.model", "tekken.json"]
)
def test_a_tokenizer_without_tokenizer_json_says_what_it_is(name: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(b"\n\x0e\n\x05<unk>")
    with pytest.raises(ModelError, match=f"no tokenizer.json, only {name}"):
        load_tokenizer(str(folder))
