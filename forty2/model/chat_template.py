"""Settings of a chat template, written into the template itself.

Training, benchmarks and generation must all see the same template. So every setting becomes part of
its source: options are set at its beginning, a system turn is merged there, and the clock that some
templates read is stopped at one date. Whatever renders the template then needs to know of nothing,
and a fused model carries the settings with it (all but the date).
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jinja2
import yaml
from jinja2 import meta

from forty2.errors import ModelError, RecipeError
from forty2.files import JsonObject
from forty2.recipe.schema import Recipe
from forty2.recipe.templates import packaged_templates

_CLOCK = "strftime_now"
"""Function of a template that formats the time of rendering."""
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""Names that rendering gives to a template, so that no option can."""
_NAME = re.compile(r"[A-Za-z_]\w*")
_FOLD = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' and "
    "messages[1]['role'] == 'user' %}{% set messages = [dict(messages[1], "
    "content=(messages[0]['content'] + '\\n\\n' + messages[1]['content']) "
    "if messages[0]['content'] else messages[1]['content'])] + messages[2:] %}{% endif %}\n"
)
"""Merges a system turn into the user turn after it."""
_DATE_CODE = re.compile(r"%([-_0^]?)([A-Za-z])")
"""A part of a date in a format of strftime, with a flag of the C library's."""


@dataclass(frozen=True, kw_only=True)
class TemplateSettings:
    """Choices about a model's chat template."""

    source: str | None = None
    """Template in place of the model's own, as Jinja; None: the model's own."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Values of variables that the template reads, e.g. enable_thinking."""
    system_turn: Literal["keep", "fold"] | None = None
    """Whether a system turn stays a turn, or is merged into the user turn after it; None: it stays."""
    date: str | None = None
    """Day that the template takes for today, as YYYY-MM-DD; None: the day of rendering."""

    def to_json(self) -> JsonObject:
        return {**dataclasses.asdict(self), "options": dict(self.options)}

    @classmethod
    def from_json(cls, record: JsonObject) -> TemplateSettings:
        return cls(**record)

    def over(self, recorded: TemplateSettings) -> TemplateSettings:
        """Return these settings, with a run's where they say nothing."""
        return TemplateSettings(
            source=self.source if self.source is not None else recorded.source,
            options={**recorded.options, **self.options},
            system_turn=self.system_turn or recorded.system_turn,
            date=self.date or recorded.date,
        )

    @property
    def today(self) -> datetime.date:
        """The day that the template takes for today."""
        if self.date is None:
            return datetime.date.today()
        return datetime.date.fromisoformat(self.date)


def settings_of(recipe: Recipe, date: str | None = None) -> TemplateSettings:
    """Return a recipe's settings of the chat template.

    Args:
        date: the day that the run records; None: today.

    Raises:
        RecipeError: its file cannot be read.
    """
    source = None
    if recipe.chat_template is not None:
        source = read_template(Path(recipe.chat_template), "chat_template")
    return TemplateSettings(
        source=source,
        options=recipe.template_options,
        system_turn=recipe.system_turn,
        date=date or datetime.date.today().isoformat(),
    )


def read_template(file: Path, where: str) -> str:
    """Read a chat template from a file, or take one of the package by its name.

    Args:
        file: path, or the name of a packaged template, which comes first.
        where: the key or option that names the file.

    Raises:
        RecipeError: it cannot be read, or is no template.
    """
    if (packaged := packaged_templates().get(str(file))) is not None:
        return packaged
    try:
        source = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{where}: {file}: cannot be read: {error}") from error
    if _is_json(source):
        raise RecipeError(
            f"{where}: {file}: holds JSON, not a template; save the text of its chat_template as a file "
            "of its own"
        )
    try:
        _parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"{where}: {file}:{error.lineno}: {error.message}") from error
    if not source.strip():
        raise RecipeError(f"{where}: {file}: is empty")
    return source


def _is_json(source: str) -> bool:
    try:
        return isinstance(json.loads(source), dict)
    except ValueError:
        return False


def reads_clock(template: object) -> bool:
    """Return whether a template, or one of several by name, writes today's date."""
    return _CLOCK in str(template)


def apply_settings(template: object, settings: TemplateSettings, where: str) -> object:
    """Write settings into a chat template, or into each of several by name; all but the date.

    Each is a line of its own, which rendering removes whole (transformers trims blocks): white space
    with which the template begins stays as it was.

    Args:
        template: the model's own; None: it has none.
        where: name of the model, for messages.

    Raises:
        ModelError: the template does not read one of the options.
    """
    template = template if settings.source is None else settings.source
    if isinstance(template, Mapping):
        return {name: apply_settings(each, settings, where) for name, each in template.items()}
    if not isinstance(template, str):
        return template
    read = _variables(template)
    lines = []
    for name, value in settings.options.items():
        if name not in read or name in _GIVEN:
            there = ", ".join(sorted(read - {*_GIVEN, _CLOCK})) or "none"
            raise ModelError(
                f"template_options: the chat template of {where} does not read {name!r}; it reads "
                f"{there}"
            )
        if isinstance(value, str) and _is_quoted(value) and not _spells(template, value):
            raise ModelError(
                f"template_options: {name} is the text {value!r}, which counts as true in a template "
                "whatever it says; remove the quotes"
            )
        lines.append(f"{{% set {name} = {_literal(value)} %}}\n")
    fold = _FOLD if settings.system_turn == "fold" else ""
    return "".join(lines) + fold + template


def _is_quoted(text: str) -> bool:
    """Return whether YAML would read a text as a boolean or as null, had it no quotes."""
    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return bool(text) and str(tag).endswith((":bool", ":null"))


def _spells(template: str, text: str) -> bool:
    """Return whether a template compares with a text: some take "on" and "off"."""
    return f"'{text}'" in template or f'"{text}"' in template


def stop_clock(template: object, today: datetime.date) -> object:
    """Return a template, or each of several by name, for which it is always the same day."""
    if isinstance(template, Mapping):
        return {name: stop_clock(each, today) for name, each in template.items()}
    if not isinstance(template, str) or not reads_clock(template):
        return template
    found = {code[0]: _formatted(today, *code.groups()) for code in _DATE_CODE.finditer(template)}
    # A doubled percent sign is one of the text, whatever letter follows it.
    replaced = {"%%": "\0", **found, "\0": "%"}
    written = "".join(f".replace({code!r}, {text!r})" for code, text in replaced.items())
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{written} }}}}{{% endmacro %}}\n{template}"


def _formatted(today: datetime.date, flag: str, letter: str) -> str:
    """Format noon of a day by one code; flags are those of the C library, for any platform."""
    noon = datetime.datetime.combine(today, datetime.time(12), datetime.UTC)
    if letter == "s":  # platforms that know it take the day for one of their own time zone
        return str(int(noon.timestamp()))
    text = noon.replace(tzinfo=None).strftime(f"%{letter}")
    if flag == "^":
        return text.upper()
    if not flag or not text.strip().isdigit():
        return text
    bare = text.lstrip(" 0") or "0"
    return {"-": bare, "_": bare.rjust(len(text)), "0": bare.zfill(len(text))}[flag]


def _variables(template: str) -> set[str]:
    """Return the names that a template reads and does not set first."""
    try:
        return meta.find_undeclared_variables(_parse(template))
    except jinja2.TemplateError:
        return set(_NAME.findall(template))  # tags of transformers' own


def _parse(template: str) -> jinja2.nodes.Template:
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    # transformers' own tag, which marks what an assistant writes.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    return environment.parse(plain)


def _literal(value: object) -> str:
    """Write a JSON value as Jinja."""
    if isinstance(value, Mapping):
        items = (f"{json.dumps(str(k))}: {_literal(v)}" for k, v in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
