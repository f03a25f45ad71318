"""The file of a whole failure loop: what each step is done with, as frozen dataclasses.

    version: 1
    name: my-loop
    model: smollm2
    testset: {from: [builtin], size: 2000}
    generate: {size: 800}
    recover: {recipe: recipe.yaml, seeds: [42, 43, 44]}

Every problem is reported at once, with its line. A key that is not a field is an error, never ignored.
Paths are relative to the file; those given by `--set` are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from forty2.errors import RecipeError
from forty2.failures.sources import BENCHMARKS, BUILTIN
from forty2.failures.testset import STRATA
from forty2.files import JsonObject, close_name
from forty2.recipe.document import COMMAND_LINE, Document, Location, Problem, listed, parse_document
from forty2.recipe.messages import explain, secrets
from forty2.recipe.overrides import apply_overrides
from forty2.recipe.paths import NO_FILES, moved, resolve_paths
from forty2.recipe.reading import read_text
from forty2.recipe.schema import Slug, keys_of
from forty2.training.objectives.phase import STRICT, Positive

_PACKAGED = resources.files("forty2.failures") / "packaged"
_PLACE = re.compile(r"the mapping: ([\w.-]+): (.*)", re.DOTALL)
"""A problem of a recipe that was given as a mapping: its key, and the message."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Server:
    """A chat model that is asked."""

    name: str
    """Address of an OpenAI-compatible server, http://HOST/v1, or local:MODEL."""
    model: str = "default"
    """Model on the server."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LimitsPart:
    """How fast servers are asked, and what each step may cost."""

    at_once: Positive = 4
    """Most requests under way at a time."""
    per_minute: Annotated[float, Field(gt=0)] | None = None
    """Most requests begun in a minute."""
    tokens: Positive | None = None
    """Most tokens of a step, prompts and replies."""
    cost: Annotated[float, Field(gt=0)] | None = None
    """Most money of a step; needs both prices."""
    price_in: Annotated[float, Field(ge=0)] | None = None
    """Price of a million tokens of prompts."""
    price_out: Annotated[float, Field(ge=0)] | None = None
    """Price of a million tokens of replies."""
    timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds without a byte after which a request is sent again."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TestsetPart:
    """The test set."""

    __test__ = False  # it is no test, whatever pytest makes of its name
    sources: Annotated[list[str], Field(alias="from", min_length=1)] = Field(
        default_factory=lambda: [BUILTIN], alias="from"
    )
    """Sources of questions, as `failures testset --from` takes them."""
    size: Annotated[int, Field(ge=2)] | None = None
    """Items in all; null: the sum of the strata."""
    strata: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=lambda: dict(STRATA))
    """Items of each stratum, or their proportions if there is a size."""
    disjoint_from: list[str] = Field(default_factory=list)
    """Training data and runs whose questions are left out."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FindPart:
    """Replies and verdicts; used for the re-test, too."""

    max_tokens: Positive = 256
    """Longest reply."""
    batch_size: Positive = 16
    """Replies generated at a time."""
    at_least: Annotated[float, Field(ge=1, le=10)] = 7.0
    """Smallest mean score of the judge that passes."""
    repeats: Positive = 2
    """Times that the judge scores each reply."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusterPart:
    """Clusters of the scored items."""

    k: Annotated[int, Field(ge=2)] | Literal["auto"] = 10
    """Number of clusters."""
    model: str = "all-MiniLM-L6-v2"
    """Embedding model."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LabelPart:
    """Names of the clusters."""

    by: Literal["terms", "teacher"] = "terms"
    """What makes them: distinctive terms, or the teacher."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GeneratePart:
    """New rows."""

    size: Positive
    """Rows of each arm."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Sampling temperature of the teacher."""
    max_tokens: Positive = 1024
    """Longest reply of the teacher, with question and answer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScorePart:
    """Acceptance of new rows."""

    at_least: Annotated[float, Field(ge=1, le=10)] = 8.0
    """Smallest mean score of the judge that is accepted."""
    repeats: Positive = 2
    """Times that the judge scores each row."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RecoverPart:
    """The arms."""

    recipe: str | dict[str, Any]
    """Recipe of one SFT phase without data: a file, a packaged recipe's name, or the recipe itself."""
    seeds: Annotated[list[int], Field(min_length=2)] = Field(default_factory=lambda: [42, 43, 44])
    """Seeds; each arm is trained once with each."""
    original: str | None = None
    """Data that the model was trained on before."""


def _server(value: object) -> object:
    """Turn a server given by its address alone into a mapping."""
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoopFile:
    """A whole failure loop. Paths are relative to the file."""

    version: Literal[1]
    """Version of the format."""
    name: Slug
    """Name of the loop; its folder is failures/NAME unless another is named."""
    model: str
    """Model, or run, whose failures are found."""
    adapter: str | None = None
    """Adapter on the model."""
    out: str | None = None
    """Folder to write; null: failures/NAME."""
    seed: int = 42
    """Seed of the test set, the clusters, the new rows and the requests."""
    run_untrusted_code: bool = False
    """Permission to run the programs that models write, in the sandbox."""
    teacher: Annotated[Server, BeforeValidator(_server)] = Server(name=BUILTIN)
    """Who makes new rows: builtin, http://HOST/v1, local:MODEL, or {name, model, api_key_env}."""
    judge: Annotated[Server | None, BeforeValidator(_server)] = None
    """Who scores what no verifier can check: http://HOST/v1, local:MODEL, or {name, model, api_key_env}."""
    limits: LimitsPart = Field(default_factory=LimitsPart)
    testset: TestsetPart = Field(default_factory=TestsetPart)
    find: FindPart = Field(default_factory=FindPart)
    cluster: ClusterPart = Field(default_factory=ClusterPart)
    label: LabelPart = Field(default_factory=LabelPart)
    generate: GeneratePart
    score: ScorePart = Field(default_factory=ScorePart)
    recover: RecoverPart


_LOOP = TypeAdapter(LoopFile)
_SECTIONS: Mapping[str, type] = {
    "teacher": Server,
    "judge": Server,
    "limits": LimitsPart,
    "testset": TestsetPart,
    "find": FindPart,
    "cluster": ClusterPart,
    "label": LabelPart,
    "generate": GeneratePart,
    "score": ScorePart,
    "recover": RecoverPart,
}


@dataclasses.dataclass(frozen=True)
class ReadLoop:
    """A loop's file, read and checked."""

    loop: LoopFile
    """Its paths lead from the working directory."""
    document: Document
    """Where its keys stand, for messages."""

    def in_recipe(self, error: RecipeError) -> RecipeError:
        """Give the problems of a recipe that is written into the file the lines of the file."""
        problems = []
        for line in str(error).splitlines():
            found = _PLACE.fullmatch(line)
            if found is None:
                problems.append(Problem(self.document.line_of(("recover", "recipe")), line))
                continue
            at: Location = ("recover", "recipe", *found[1].split("."))
            problems.append(self.document.problem(at, found[2]))
        return RecipeError(listed(problems))


def packaged_loops() -> list[str]:
    """Return the names of the loops that come with the package."""
    names = [path.name for path in _PACKAGED.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_loop(source: str | Path, overrides: Sequence[str] = ()) -> ReadLoop:
    """Read and check the file of a loop.

    Args:
        source: a file, or the name of a packaged loop.
        overrides: "dotted.key=value" each, as `--set` takes them; values are YAML.

    Raises:
        RecipeError: listing every problem found, one a line, with its place.
    """
    text, folder = _text(str(source))
    document = parse_document(text, str(source), "loop")
    problems = [*apply_overrides(document, overrides).problems]
    _resolve_paths(document, folder)
    tree = document.tree.get("recover")
    recipe = tree.get("recipe") if isinstance(tree, dict) else None
    if isinstance(recipe, dict):
        inner = Document(document.place, recipe, _lines_below(document, ("recover", "recipe")))
        problems += resolve_paths(inner, folder)
    loop: LoopFile | None = None
    try:
        loop = _LOOP.validate_json(json.dumps(document.tree, default=str))
    except ValidationError as error:
        problems += [_explained(item, document) for item in error.errors()]
    problems += secrets(document)
    if loop is not None and loop.label.by == "teacher" and loop.teacher.name == BUILTIN:
        message = "the built-in generators name nothing; give a teacher, or by: terms"
        problems.append(document.problem(("label", "by"), message))
    if problems or loop is None:
        raise RecipeError(listed(dict.fromkeys(problems)))
    return ReadLoop(loop, document)


def _text(source: str) -> tuple[str, str]:
    """Return the text of a loop, and the folder that its paths are relative to."""
    if source in packaged_loops():
        return (_PACKAGED / f"{source}.yaml").read_text("utf-8"), os.curdir
    path = Path(source)
    if not os.path.isfile(path):
        close = difflib.get_close_matches(source, packaged_loops(), 1)
        hint = f"did you mean {close[0]}?" if close else f"packaged: {', '.join(packaged_loops())}"
        raise RecipeError(
            f"{source}: no such loop, neither file nor packaged{close_name(path) or f'; {hint}'}"
        )
    return read_text(path, "loop"), str(path.parent)


def _explained(error: Any, document: Document) -> Problem:
    """Say what one of pydantic's errors means; keys of other kinds of files are not suggested."""
    if error["type"] != "unexpected_keyword_argument":
        return explain(error, document)
    at = tuple(error["loc"])
    section = next((_SECTIONS[str(key)] for key in at[:-1] if key in _SECTIONS), LoopFile)
    close = difflib.get_close_matches(str(at[-1]), keys_of(section).values(), 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return document.problem(at, f"unknown key{hint}")


def _lines_below(document: Document, above: Location) -> dict[Location, int]:
    return {
        at[len(above) :]: line for at, line in document.lines.items() if at[: len(above)] == above
    }


# --- paths ----------------------------------------------------------------------------------------


def _resolve_paths(document: Document, folder: str) -> None:
    """Make the paths of a loop lead from the working directory, in place."""
    for holder, key, at in _paths(document.tree):
        value = holder[key]
        if document.line_of(at) != COMMAND_LINE and _is_path(value, at):
            resolved = moved(value, folder, os.curdir)
            is_optional = at[-1] in ("model", "recipe", "original") or "disjoint_from" in at
            if not is_optional or os.path.exists(resolved):
                holder[key] = resolved


def _paths(tree: JsonObject) -> Iterator[tuple[Any, Any, Location]]:
    """Yield the holder, key and location of every value that may be a path."""
    for key in ("model", "adapter", "out"):
        if isinstance(tree.get(key), str):
            yield tree, key, (key,)
    sections = {name: tree.get(name) for name in ("testset", "cluster", "recover")}
    for name, keys in (("cluster", ("model",)), ("recover", ("recipe", "original"))):
        section = sections[name]
        for key in keys if isinstance(section, dict) else ():
            if isinstance(section, dict) and isinstance(section.get(key), str):
                yield section, key, (name, key)
    section = sections["testset"]
    for key in ("from", "disjoint_from") if isinstance(section, dict) else ():
        values = section.get(key) if isinstance(section, dict) else None
        for number, value in enumerate(values if isinstance(values, list) else ()):
            if isinstance(value, str):
                yield values, number, ("testset", key, number)


def _is_path(value: str, at: Location) -> bool:
    """Return whether a value is a relative path, not a name of something built in or on the hub."""
    if os.path.isabs(value) or value.startswith(("~", *NO_FILES)):
        return False
    is_source = at[:2] == ("testset", "from")
    return not (is_source and value.partition(":")[0] in (BUILTIN, *BENCHMARKS))
