"""A recipe: one YAML file that says everything about a run, read into frozen dataclasses.

    version: 1
    name: my-run
    model: smollm2
    adapter: {rank: 8, scale: 10.0, layers: 8}
    phases:
      sft: {objective: sft, data: "builtin:spark-sft", steps: 50, lr: 5e-6}
      dpo: {objective: dpo, data: pairs.jsonl, steps: 200, lr: 1e-6, beta: 0.1, loss: sigmoid}

Every problem of a recipe is reported at once, with its line, before anything is loaded. A key that
is not a field is an error, never ignored.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from forty2.data.sources import BUILTIN, HUB
from forty2.errors import RecipeError, redact
from forty2.recipe.schema import Adapter, Benchmark, BenchmarkTask, Fuse, Recipe
from forty2.training.objectives import OBJECTIVES
from forty2.training.objectives.phase import Best, Goal, RedLines

_MAX_BYTES = 100_000
_DEEPEST = 10
"""Keys below keys: more than any field of a recipe has."""


_RECIPE = TypeAdapter(Recipe)
_KINDS = ", ".join(OBJECTIVES)
_SECTIONS = {
    "the recipe": Recipe,
    "adapter": Adapter,
    **OBJECTIVES,
    "fuse": Fuse,
    "benchmark": Benchmark,
    "tasks": BenchmarkTask,
    "best": Best,
    "until": Goal,
    "red_lines": RedLines,
}
_FIELDS = {name: [f.name for f in dataclasses.fields(kind)] for name, kind in _SECTIONS.items()}


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("forty2.recipe") / "packaged"
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The YAML of a packaged recipe, or of a file."""
    return _read(name)[0]


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a packaged recipe's name, or a YAML file.
        overrides: "dotted.key=value" each, as `--set` takes them; values are YAML.

    Raises:
        RecipeError: listing every problem found, one a line, with its place.
    """
    text, place = _read(str(source))
    tree, lines = _parse(text, place)
    phases = [at[1] for at in lines if len(at) == 2 and at[0] == "phases"]
    problems = [problem for override in overrides if (problem := _override(tree, lines, override))]
    problems += _unknown_phases(phases, tree, lines, place)
    recipe: Recipe | None = None
    try:
        # As JSON, in which strict typing still takes a mapping for a dataclass.
        recipe = _RECIPE.validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        problems += [_explain(item, tree, lines, place) for item in error.errors()]
    problems += _missing_files(tree, lines, place)
    problems += _secrets(tree, (), lines, place)
    if problems or recipe is None:
        raise RecipeError(_listed(sorted(problems, key=_line_of)))
    return recipe


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every default spelled out; `load_recipe` reads it back."""
    return yaml.safe_dump(_RECIPE.dump_python(recipe), sort_keys=False, allow_unicode=True)


def _read(source: str) -> tuple[str, str]:
    if source in packaged_recipes():
        return (resources.files("forty2.recipe") / "packaged" / f"{source}.yaml").read_text(
            "utf-8"
        ), source
    path = Path(source)
    if not os.path.isfile(path):  # where Path's own raises for a name that is too long
        names = packaged_recipes()
        close = difflib.get_close_matches(source, names, 1)
        hint = f"did you mean {close[0]}?" if close else f"packaged ones: {', '.join(names)}"
        raise RecipeError(f"{source}: no such recipe, neither file nor packaged; {hint}")
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise RecipeError(f"{path}: {len(data):,} bytes is no recipe (limit {_MAX_BYTES:,})")
        return data.decode("utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


# --- YAML with line numbers -----------------------------------------------------------------------

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 5e-6 is a number: YAML 1.1 wants a dot that nobody writes."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def _parse(text: str, place: str) -> tuple[dict[str, Any], dict[Key, int]]:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{place}: a recipe is a mapping of keys to values")
        lines: dict[Key, int] = {}
        problems: list[str] = []
        tree = _build(loader, node, (), lines, problems, place, set())
    except RecipeError:
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise RecipeError(f"{place}:{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{place}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise RecipeError(f"{place}: nested too deeply") from error
    if problems:
        raise RecipeError(_listed(problems))
    return tree, lines


def _build(
    loader: _Loader,
    node: yaml.Node,
    at: Key,
    lines: dict[Key, int],
    problems: list[str],
    place: str,
    seen: set[int],
) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if id(node) in seen and not isinstance(node, yaml.ScalarNode):
        problems.append(f"{place}:{line}: aliases (*name) are not taken in a recipe; write it out")
        return None
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            where = f"{place}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                problems.append(f"{where}: a key must be text")
                continue
            key = loader.construct_object(key_node)
            if not isinstance(key, str):
                problems.append(f"{where}: key {key!r} must be text")
                continue
            if key in mapping:
                problems.append(f"{where}: {_dotted((*at, key))} is given twice")
            lines[(*at, key)] = key_node.start_mark.line + 1
            mapping[key] = _build(loader, value_node, (*at, key), lines, problems, place, seen)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [
            _build(loader, item, (*at, i), lines, problems, place, seen)
            for i, item in enumerate(node.value)
        ]
    return loader.construct_object(node)


def _override(tree: dict[str, Any], lines: dict[Key, int], override: str) -> str | None:
    """Apply one `a.b=value` in place; return the problem if it cannot be."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys) or len(keys) > _DEEPEST:
        return f"--set {override[:200]}: write it as key.subkey=value"
    problems: list[str] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = _build(loader, node, (), {}, problems, "", set()) if node is not None else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return f"--set {override[:200]}: the value is not valid YAML"
    if problems:
        return f"--set {override[:200]}: {problems[0].lstrip(':0123456789 ')}"
    where = tree
    for key in keys[:-1]:
        if where.get(key) is None:
            where[key] = {}
        where = where[key]
        if not isinstance(where, dict):
            return f"--set {override[:200]}: {key} is a value, it has no keys below it"
    where[keys[-1]] = value
    for n in range(1, len(keys)):
        lines.setdefault(tuple(keys[:n]), 0)
    lines[tuple(keys)] = 0  # 0: the command line
    return None


_SYNONYMS = {"learning_rate": "lr", "iters": "steps", "max_iters": "steps", "num_layers": "layers"}

# --- messages -------------------------------------------------------------------------------------


def _listed(problems: Iterable[str]) -> str:
    """Problems, one a line, whatever a key or a value in them holds."""
    return "\n".join(
        "".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem) for problem in problems
    )


def _explain(item: Any, tree: dict[str, Any], lines: dict[Key, int], place: str) -> str:
    """A readable line for one of pydantic's errors."""
    at = _locate(item["loc"], tree)
    kind, message = item["type"], item["msg"]
    if kind == "unexpected_keyword_argument":
        named = [part for part in ("the recipe", *item["loc"][:-1]) if isinstance(part, str)]
        message = _unknown_key(str(at[-1]), named[-1])
    elif kind == "union_tag_invalid":
        at, message = (*at, "objective"), f"{item['ctx']['tag']!r} is none of {_KINDS}"
    elif kind == "union_tag_not_found":
        at, message = (*at, "objective"), f"missing: say one of {_KINDS}"
    elif kind in ("missing", "missing_argument"):
        message = "missing"
    elif kind == "value_error":
        key, _, message = str(item["ctx"]["error"]).partition(": ")
        at = (*at[:-1], key)
    else:
        message = f"{message[0].lower()}{message[1:]}".replace("input should", "should")
        if not isinstance(item["input"], dict | list):
            message += f", not {item['input']!r}"
        if isinstance(item["input"], str) and _quoted(item):
            message += "; remove the quotes"
    return _problem(at, message, lines, place)


def _unknown_key(key: str, section: str) -> str:
    """What to say of a key that is no field of its section (for a phase: its objective)."""
    known = _SYNONYMS.get(key, key)
    owners = [name for name, fields in _FIELDS.items() if known in fields]
    if owners and section not in owners:
        joined = " and ".join(", ".join(owners).rsplit(", ", 1))
        return f"is of {joined}, not of {section}; move it or take it out"
    close = [known] if owners else difflib.get_close_matches(key, _FIELDS[section], 1)
    return f"unknown key{f'; did you mean {close[0]}?' if close else ''}"


def _quoted(item: Any) -> bool:
    """Whether a text would be of the type asked for, had YAML not been told that it is text."""
    if item["type"] == "literal_error":
        return item["input"] in re.split(", | or ", item["ctx"]["expected"])
    resolve: Any = _Loader("").resolve  # untyped; and unlike reading the text it cannot fail
    tag = resolve(yaml.ScalarNode, item["input"].strip(), (True, False)).rpartition(":")[2]
    return item["type"] == f"{tag}_type" or (item["type"], tag) == ("float_type", "int")


def _unknown_phases(
    phases: Sequence[Any], tree: dict[str, Any], lines: dict[Key, int], place: str
) -> Iterator[str]:
    """Name the phases that overrides address but neither the file has nor they define; drop them."""
    held = tree.get("phases")
    if not phases or not isinstance(held, dict) or not lines["phases",]:
        return  # the file has none, or an override replaces them all
    for name in [name for name in held if name not in phases]:
        if not isinstance(held[name], dict) or "objective" not in held[name]:
            del held[name]
            close = difflib.get_close_matches(name, phases, 1)
            hint = f"did you mean {close[0]}?" if close else "a new one needs an objective"
            message = f"no such phase; the recipe has {', '.join(phases)}; {hint}"
            yield _problem(("phases", name), message, lines, place)


def _locate(loc: Sequence[Any], tree: Any) -> Key:
    """pydantic's location without the tags that it adds for unions."""
    at: list[Any] = []
    here = tree
    for i, key in enumerate(loc):
        if (isinstance(here, dict) and key in here) or (
            isinstance(here, list) and isinstance(key, int)
        ):
            here = here[key]
        elif i < len(loc) - 1 or not isinstance(here, dict) or key == "[key]" or key in OBJECTIVES:
            continue
        at.append(key)
    return tuple(at)


def _problem(at: Key, message: str, lines: dict[Key, int], place: str) -> str:
    line = next((lines[at[:n]] for n in range(len(at), -1, -1) if at[:n] in lines), 1)
    where = f"{place}:{line}" if line else "--set"
    return f"{where}: {_dotted(at) or 'recipe'}: {message}"


def _line_of(problem: str) -> int:
    found = re.match(r"[^:]*:(\d+): ", problem)
    return int(found[1]) if found else 0


def _dotted(at: Key) -> str:
    return ".".join(map(str, at))


def _secrets(value: Any, at: Key, lines: dict[Key, int], place: str) -> Iterator[str]:
    """A recipe is copied into its run and reported: what is secret must not be in it."""
    if isinstance(value, dict | list):
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _secrets(held, (*at, key), lines, place)
    elif isinstance(value, str) and redact(value) != value:
        message = "holds a password or token; take it out, and log in with `hf auth login`"
        yield _problem(at, message, lines, place)


def _missing_files(tree: dict[str, Any], lines: dict[Key, int], place: str) -> Iterator[str]:
    phases = tree.get("phases")
    for name, phase in phases.items() if isinstance(phases, dict) else ():
        for key in ("data", "valid", "eval_prompts"):
            value = phase.get(key) if isinstance(phase, dict) else None
            if isinstance(value, str) and not value.startswith((BUILTIN, HUB)):
                path = Path(os.path.expanduser(value))
                if not os.path.exists(path):
                    yield _problem(
                        ("phases", name, key), f"{value}: no such file or folder", lines, place
                    )
                elif path.is_dir() and not any(path.iterdir()):
                    yield _problem(("phases", name, key), f"{value}: holds no data", lines, place)
    benchmark = tree.get("benchmark")
    questions = benchmark.get("questions") if isinstance(benchmark, dict) else None
    if isinstance(questions, str) and questions != "probe" and not os.path.isfile(questions):
        yield _problem(("benchmark", "questions"), f"{questions}: no such file", lines, place)
