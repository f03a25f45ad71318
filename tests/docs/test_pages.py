"""The README and the pages of docs/ say what is true of the package."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from test_import_rules import GROUND, MAY_IMPORT, MLX, MLX_LM

import forty2
from forty2.cli import main
from forty2.failures.loop_file import read_loop
from forty2.recipe.reading import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def fenced(page: str, language: str) -> Iterator[str]:
    """Texts of a page's fenced blocks in one language; "" for blocks without one."""
    for found in FENCE.finditer((ROOT / page).read_text("utf-8")):
        if found[2] == language:
            yield found[3]


def rows(page: str) -> list[list[str]]:
    """Cells of the lines of a page's tables, without heads' rulers."""
    lines = (ROOT / page).read_text("utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line.strip("|")) for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in cells if set(row[0].strip()) != {"-"}]


def code(text: str) -> list[str]:
    """What a text has in code spans."""
    return re.findall(r"`([^`]+)`", text)


def commands() -> list[tuple[str, str]]:
    """Page and text of every command line: in fenced blocks without a language, and in a manual's sentences."""
    lines = [
        (page, line)
        for page in NAMES
        for block in fenced(page, "")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [
        (page, " ".join(span.replace("\\|", "|").split()))
        for page in NAMES
        if page.startswith("docs/")
        for span in code(FENCE.sub("", (ROOT / page).read_text("utf-8")))
    ]
    return [
        (page, line)
        for page, line in lines
        if line.startswith("forty2 ") and not line.startswith("forty2 COMMAND")
    ]


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 900


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_to_files(page: str) -> None:
    targets = [link.split("#")[0] for link in LINK.findall((ROOT / page).read_text("utf-8"))]
    inside = [target for target in targets if target and "://" not in target]
    missing = [target for target in inside if not ((ROOT / page).parent / target).exists()]
    assert not missing


@pytest.mark.parametrize(("start", "least"), [("version:", 2), ("phases:", 4)])
def test_recipes_and_phases_on_the_pages_are_valid(
    start: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = [b for page in NAMES for b in fenced(page, "yaml") if b.startswith(start)]
    assert len(blocks) >= least
    for text in blocks:
        recipe = {"version": 1, "name": "x", "model": "smollm2", **yaml.safe_load(text)}
        if "recover" in recipe:
            Path("loop.yaml").write_text(text, "utf-8")
            read_loop("loop.yaml")
            continue
        for phase in recipe["phases"].values():
            phase.setdefault("data", "builtin:spark-sft")  # the arms of a recovery have their own
            for name in (phase["data"], phase.get("eval_prompts", "builtin:")):
                if "." in name:
                    Path(name).touch()
                elif ":" not in name:
                    Path(name).mkdir(parents=True, exist_ok=True)
                    (Path(name) / "train.jsonl").touch()
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
        load_recipe("recipe.yaml")


@pytest.mark.parametrize(("page", "line"), commands())
def test_commands_on_the_pages_exist_with_their_options(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        named = command.get_command(context, words[0])
        assert named is not None, f"{page}: no command {words[0]}"
        command, words = named, words[1:]
    known = {"--help", "--version"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("page", [name for name in NAMES if "/project/" not in name])
def test_what_only_the_built_pages_have_is_said_where_it_is_missing(page: str) -> None:
    """A reader of the checkout sees a placeholder: the page says so, and what prints the same."""
    text = (ROOT / page).read_text("utf-8")
    examples = re.findall(r'^--8<-- "docs/([^"]+)"$', text, re.MULTILINE)
    made = re.findall(r"^(?:::: |<!-- generated: )(.*)$", text, re.MULTILINE)
    assert not (examples or made) or "`make docs`" in text
    assert all(f"]({name})" in text for name in examples)
    if made and page.startswith("docs/reference/"):
        assert "in a terminal, " in text.split("\n## ")[0].lower()


def test_every_promise_names_tests_that_exist() -> None:
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    for page in ("docs/promises.md", "SECURITY.md"):
        tests = [name for row in rows(page)[1:] if row[-1] != "test" for name in code(row[-1])]
        assert len(tests) >= 8
        for name in tests:
            made = name.startswith("make ") and name.removeprefix("make ") in targets
            assert made or any(ROOT.glob(name)), f"{page} names {name}"


def test_the_file_map_is_what_the_import_rules_say() -> None:
    named = {cells[0].strip("`"): cells for cells in rows("docs/reference/files.md")}
    assert {f"{name}.py" for name in GROUND} <= named.keys()
    slashed = {wing: wing.replace(".", "/") + "/" for wing in MAY_IMPORT}
    assert set(slashed.values()) <= named.keys()
    for wing, folder in slashed.items():
        allowed = named[folder][2]
        open_to = {name for name in MAY_IMPORT if slashed[name] in code(allowed)}
        if allowed.startswith("all"):
            open_to = MAY_IMPORT.keys() - open_to - {wing}
        assert open_to == MAY_IMPORT[wing], wing
    text = " ".join((ROOT / "docs/reference/files.md").read_text("utf-8").split())
    for allowed_to, says in ((MLX_LM, "Only {} import mlx-lm"), (MLX, "{} import no mlx")):
        before, after = says.split("{}")
        found = re.search(rf"{before}([^.]*){after}\.", text)
        assert found
        wings = allowed_to if before else MAY_IMPORT.keys() - allowed_to
        assert set(code(found[1])) == {slashed[wing] for wing in wings}


def test_the_file_map_has_every_folder_and_module_of_the_package() -> None:
    package = Path(forty2.__file__).parent
    named = {cells[0].strip("`") for cells in rows("docs/reference/files.md")}
    for path in package.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            assert f"{path.name}/" in named
        elif path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in named


def test_the_python_page_has_every_public_name_and_no_other() -> None:
    text = (ROOT / "docs/reference/python.md").read_text("utf-8")
    named = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert {f"forty2.{name}" for name in forty2.__all__} <= set(named)
    for name in named:
        pkgutil.resolve_name(name)


def test_every_page_is_in_the_navigation() -> None:
    listed = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in ROOT.glob("docs/**/*.md"):
        assert f" {page.relative_to(ROOT / 'docs')}\n" in listed


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert project["version"] == citation["version"] == importlib.metadata.version("forty2")
    assert [{"name": a["name"]} for a in project["authors"]] == citation["authors"]
    assert project["license"] == citation["license"]
