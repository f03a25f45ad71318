"""Settings of a chat template hold for whatever renders it, and unread ones are refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, Self

import jinja2
import pytest
from click.testing import CliRunner
from support.runs import short_checks
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import ModelError, RecipeError
from forty2.model.chat_template import (
    TemplateSettings,
    apply_settings,
    read_template,
    settings_of,
    stop_clock,
)
from forty2.model.loading import load, load_tokenizer, save_model
from forty2.recipe.reading import load_recipe
from forty2.text.encoder import Encoder
from forty2.text.prepared import tokenizer_key

DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%-d %B %Y') %}{% endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
ASK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    file = tmp_path / "dated.jinja"
    file.write_text(DATED)
    return file


def prompt(path: Path, settings: TemplateSettings, messages: Any = ASK) -> str:
    tokenizer = load_tokenizer(str(path), settings)
    return str(tokenizer.decode(Encoder(tokenizer).prompt(messages)))


def test_a_file_options_and_a_folded_system_turn_reach_the_prompt(
    starter_path: Path, dated: Path
) -> None:
    settings = TemplateSettings(
        source=read_template(dated, "chat_template"),
        options={"enable_thinking": False},
        system_turn="fold",
        date="2026-03-04",
    )
    assert prompt(starter_path, settings) == (
        "<|im_start|>system\nToday: 4 March 2026<|im_end|>\n"
        "<|im_start|>user\nBe brief.\n\nHi<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize(
    ("messages", "folded"),
    [
        (ASK[1:], "user: Hi|"),
        ([{"role": "system", "content": ""}, ASK[1]], "user: Hi|"),
        ([*ASK, {"role": "system", "content": "Now"}], "user: Be brief.\n\nHi|system: Now|"),
    ],
)
def test_a_system_turn_is_folded_into_the_user_turn_after_it(
    starter_path: Path, messages: Any, folded: str
) -> None:
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    settings = TemplateSettings(source=source, system_turn="fold")
    assert prompt(starter_path, settings, messages) == folded


def rendered(template: object, **values: object) -> str:
    """Render a template as transformers does."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(str(template)).render(**values)


@pytest.mark.parametrize("day", [datetime.date(2026, 3, 4), datetime.date(2026, 11, 26)])
def test_the_clock_stands_still_at_any_format(day: datetime.date) -> None:
    """At noon, in each code that the platform knows, as the platform writes it."""
    letters = "aAbBcCdDeFgGhHIjklmMnprRSTuUVwWxXyYzZ"
    codes = [f"%{flag}{letter}" for letter in letters for flag in ("", "-", "_", "0", "^")]
    noon = datetime.datetime.combine(day, datetime.time(12))
    for format in (*codes, "%%d is %d", "%%%d", "100%", "Today: %-d %B %Y, %T (%Z)"):
        source = f"{{{{ strftime_now('{format}') }}}}"
        assert rendered(stop_clock(source, day)) == noon.strftime(format), format
    assert rendered(stop_clock("{{ strftime_now('%s') }}", datetime.date(1970, 1, 2))) == "129600"


def test_the_clock_of_each_named_template_stands_still() -> None:
    day = datetime.date(2026, 3, 4)
    source = "{% set format = '%d' %}{{ strftime_now(format) }}"
    assert stop_clock("no clock", day) == "no clock"
    stopped = stop_clock({"default": source}, day)
    assert isinstance(stopped, dict)
    assert rendered(stopped["default"]) == "04"


@pytest.mark.parametrize(
    "begins", ["", "\n", "\n\n", "  ", " \n ", "  {% set x = 1 %}\n", "\t{{ 1 }}"]
)
@pytest.mark.parametrize(
    "settings",
    [
        TemplateSettings(options={"thinking": True}),
        TemplateSettings(options={"thinking": True, "style": "short"}),
        TemplateSettings(system_turn="fold"),
    ],
)
def test_settings_leave_the_beginning_of_a_template_as_it_was(
    begins: str, settings: TemplateSettings
) -> None:
    source = (
        begins
        + "{{ strftime_now('%Y') }}{{ thinking }}{{ style }}{% for m in messages %}{% endfor %}"
    )
    set_to = {"thinking": True, "style": "short", "messages": [], **settings.options}
    expected = rendered(source, strftime_now=lambda _: "2026", **set_to)
    written = stop_clock(apply_settings(source, settings, "model"), datetime.date(2026, 3, 4))
    assert rendered(written, **set_to) == expected


def test_an_option_that_the_template_does_not_read_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not read 'enable_thinkin'; it reads .*enable_th"):
        apply_settings(DATED, TemplateSettings(options={"enable_thinkin": False}), "model")
    with pytest.raises(ModelError, match="does not read 'messages'"):
        apply_settings(DATED, TemplateSettings(options={"messages": []}), "model")


@pytest.mark.parametrize("text", ["false", "True", "no", "Off", "yes", "null", "~"])
def test_a_boolean_in_quotes_is_refused_unless_the_template_compares_with_it(text: str) -> None:
    settings = TemplateSettings(options={"enable_thinking": text})
    with pytest.raises(ModelError, match=f"is the text '{text}', which counts as true"):
        apply_settings(DATED, settings, "model")
    for quote in "'\"":
        compares = f"{{% if enable_thinking == {quote}{text}{quote} %}}{{% endif %}}"
        assert str(apply_settings(compares, settings, "model")).endswith(compares)


@pytest.mark.parametrize("text", ["none", "low", "0", "2024", "", "a: b: c", "# a"])
def test_another_text_is_an_option_as_it_is(text: str) -> None:
    written = apply_settings("{{ style }}", TemplateSettings(options={"style": text}), "model")
    assert rendered(str(written)) == text


@pytest.mark.parametrize("value", [True, False, None, 3, 0.5, 'a "b"\n', ["x", None], {"k": True}])
def test_options_of_every_json_type(value: Any) -> None:
    source = apply_settings(
        "{{ option | tojson }}", TemplateSettings(options={"option": value}), ""
    )
    assert json.loads(rendered(source)) == value


def test_a_bad_file_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.jinja"
    file.write_text("line\n{% if %}")
    with pytest.raises(RecipeError, match=r"chat_template: .*bad.jinja:2: "):
        read_template(file, "chat_template")
    with pytest.raises(RecipeError, match="cannot be read"):
        read_template(tmp_path / "none.jinja", "chat_template")
    file.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    with pytest.raises(RecipeError, match="holds JSON, not a template"):
        read_template(file, "chat_template")


def test_a_byte_order_mark_is_no_part_of_a_template(tmp_path: Path) -> None:
    file = tmp_path / "windows.jinja"
    file.write_text("{{ messages }}", "utf-8-sig")
    assert read_template(file, "chat_template") == "{{ messages }}"


def test_a_saved_model_carries_the_settings_but_reads_the_clock(
    starter_path: Path, dated: Path, tmp_path: Path
) -> None:
    settings = TemplateSettings(
        source=read_template(dated, "chat_template"),
        options={"enable_thinking": False},
        date="2020-02-02",
    )
    loaded = load(str(starter_path), template=settings, lazy=True)
    save_model(loaded, tmp_path / "saved")
    assert "2 February 2020" in prompt(tmp_path / "saved", TemplateSettings(date="2020-02-02"))
    later = prompt(tmp_path / "saved", TemplateSettings(date="2021-02-03"))
    assert "3 February 2021" in later and later.endswith("<think>\n\n</think>\n\n")
    keys = {tokenizer_key(load_tokenizer(str(tmp_path / "saved"), s)) for s in (None, settings)}
    assert len(keys) == 1  # the same template, from the file and from the saved model
    days = [TemplateSettings(date=f"2020-02-0{n}") for n in (1, 2)]
    assert len({tokenizer_key(load_tokenizer(str(tmp_path / "saved"), s)) for s in days}) == 1


def test_what_a_command_gives_goes_before_what_the_run_records() -> None:
    recorded = TemplateSettings(
        source="x", options={"a": 1, "b": 2}, system_turn="fold", date="2026-01-01"
    )
    assert TemplateSettings().over(recorded) == recorded
    given = TemplateSettings(options={"b": 3}, system_turn="keep")
    assert given.over(recorded) == TemplateSettings(
        source="x", options={"a": 1, "b": 3}, system_turn="keep", date="2026-01-01"
    )
    assert TemplateSettings(date="2027-02-02").over(recorded).options == recorded.options


def test_a_measured_run_with_template_options_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused model's template has the options in it already."""
    folder = make_inputs(tmp_path / "inputs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    (folder / "dated.jinja").write_text(DATED)
    arguments = ["run", "measured.yaml", "--run-dir", "run", "--set", "chat_template=dated.jinja"]
    arguments += ["--set", "template_options={enable_thinking: false}"]
    with short_checks():
        result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "run" / "benchmarks" / "fused.json").exists()


def test_a_run_goes_on_with_the_day_of_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_inputs(tmp_path / "inputs")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    (folder / "dated.jinja").write_text(DATED)
    recipe = next(folder.glob("*.yaml")).name
    arguments = ["run", recipe, "--run-dir", "run", "--set", "chat_template=dated.jinja"]
    with short_checks():
        first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    record = json.loads((folder / "run" / "template.json").read_text())
    started = json.loads((folder / "run" / "run.json").read_text())["started"][:10]
    assert record["date"] == started and record["source"] == DATED
    hashes = (folder / "run" / "data.json").read_bytes()

    class Tomorrow(datetime.date):
        @classmethod
        def today(cls) -> Self:
            return cls(2099, 1, 1)

    monkeypatch.setattr(datetime, "date", Tomorrow)
    again = CliRunner().invoke(main, [*arguments, "--resume"])
    assert again.exit_code == 0, again.output
    assert (folder / "run" / "data.json").read_bytes() == hashes
    (folder / "dated.jinja").write_text(DATED + " ")
    changed = CliRunner().invoke(main, [*arguments, "--resume"])
    assert changed.exit_code == 2 and "dated.jinja: has changed" in changed.output


def test_settings_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.jsonl").touch()
    (tmp_path / "r.yaml").write_text(
        "version: 1\nname: r\nmodel: smollm2\nsystem_turn: fold\n"
        "template_options: {enable_thinking: false, effort: high}\n"
        "phases:\n  sft: {objective: sft, data: d.jsonl, steps: 1, lr: 1e-4}\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = settings_of(load_recipe("r.yaml", ()), "2026-01-02")
    assert settings.options == {"enable_thinking": False, "effort": "high"}
    assert settings.system_turn == "fold" and settings.today == datetime.date(2026, 1, 2)
    assert TemplateSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
