"""Ollama's TEMPLATE writes what the model's chat template writes, or is left out."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.family_tokenizers import tokenizer_of
from support.template_families import FAMILIES, Family

from forty2.errors import ModelError
from forty2.export.gguf.modelfile import TRIED, Turn, modelfile_of, read_turns

LEFT_OUT = {
    "SmolLm3": "today's date",
    "Llama31": "today's date",
    "MistralSmall": "today's date",
    "Granite33": "today's date",
    "GptOss": "today's date",
    "Mistral3": "the system message moves to the last turn",
}
"""Families for which Go's template cannot say what theirs does, and why."""
TALKS: list[list[Turn]] = [
    *map(list, TRIED),
    [("user", "{{ .System }} ünïcode 東京\n\n  indented")],
    [("system", "Two\nlines."), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


def rendered(tokenizer: Any, turns: list[Turn]) -> str | None:
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except Exception:  # some templates refuse system messages
        return None
    return text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: type(family).__name__)
def test_conversations_are_written_as_by_the_family(family: Family) -> None:
    tokenizer = tokenizer_of(family, "bytes")
    turns = read_turns(tokenizer, None)
    if type(family).__name__ in LEFT_OUT:
        assert turns is None
        return
    assert turns is not None
    for talk in TALKS:
        expected = rendered(tokenizer, talk)
        if expected is not None:
            assert turns.render(talk) == expected


def test_the_go_template_by_hand() -> None:
    (chatml,) = (family for family in FAMILIES if type(family).__name__ == "Chatml")
    turns = read_turns(tokenizer_of(chatml, "bytes"), None)
    assert turns is not None
    assert turns.to_go() == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}'
        "{{ if not $last }}<|im_end|>\n{{ end }}{{ end }}"
        '{{ if and $last (ne .Role "assistant") }}<|im_start|>assistant\n{{ end }}{{ end }}'
    )


GO = """
package main
import ("encoding/json"; "fmt"; "os"; "strings"; "text/template")
type Message struct { Role, Content string }
type Case struct { Template, System, Expected string; Messages []Message }
func main() {
    data, _ := os.ReadFile(os.Args[1])
    var cases []Case
    if err := json.Unmarshal(data, &cases); err != nil { panic(err) }
    for _, c := range cases {
        var text strings.Builder
        values := map[string]any{"System": c.System, "Messages": c.Messages}
        err := template.Must(template.New("").Parse(c.Template)).Execute(&text, values)
        if err != nil || text.String() != c.Expected { fmt.Printf("%q\\n%q\\n", c.Expected, text) }
    }
}
"""


@pytest.mark.slow
def test_go_itself_writes_the_same(tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no go on the PATH")
    cases = []
    for family in FAMILIES:
        tokenizer = tokenizer_of(family, "bytes")
        turns = read_turns(tokenizer, None)
        for talk in TALKS if turns is not None else []:
            expected = rendered(tokenizer, talk)
            if expected is None or turns is None:
                continue
            messages = [{"Role": role, "Content": content} for role, content in talk]
            system = next((content for role, content in talk if role == "system"), "")
            case = {"Template": turns.to_go(), "Messages": messages, "Expected": expected}
            cases.append({**case, "System": system})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / "check.go").write_text(GO)
    command = [go, "run", str(tmp_path / "check.go"), str(tmp_path / "cases.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "" and len(cases) > 100


class Templated:
    """A tokenizer that has a template alone."""

    bos_token = "<s>"

    def __init__(self, template: str | None) -> None:
        self.chat_template = template

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        import jinja2

        assert self.chat_template is not None
        return str(jinja2.Template(self.chat_template).render(messages=messages, **options))


PLAIN = "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "


def test_a_bos_token_that_is_written_anyway_is_not_in_the_template() -> None:
    file = modelfile_of(Templated(PLAIN), ["</s>"], adds_bos=True, gguf="m.gguf", system=None)
    assert file.templated and "<s>" not in file.text.replace("</s>", "")
    file = modelfile_of(Templated(PLAIN), ["</s>"], adds_bos=False, gguf="m.gguf", system=None)
    assert "{{ else }}<s>{{ end }}" in file.text


@pytest.mark.parametrize("template", [None, PLAIN + '"""', "{% for m in messages %}{% endfor %}"])
def test_a_template_that_go_cannot_say_is_left_out(template: str | None) -> None:
    file = modelfile_of(Templated(template), ["</s>"], adds_bos=True, gguf="m.gguf", system="Be.")
    assert not file.templated
    assert file.text == 'FROM ./m.gguf\nPARAMETER stop "</s>"\nSYSTEM """Be."""\n'


def test_a_system_message_without_a_place_is_refused() -> None:
    refusing = PLAIN.replace("[{{ m.role }}]", "{{ [].pop() if m.role == 'system' else m.role }}")
    with pytest.raises(ModelError, match="the chat template cannot hold the system message"):
        modelfile_of(Templated(refusing), ["</s>"], adds_bos=True, gguf="m.gguf", system="Be.")
