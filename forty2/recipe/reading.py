"""Reading of recipes: one YAML file says everything about a run, and becomes frozen dataclasses.

    version: 1
    name: my-run
    model: smollm2
    adapter: {rank: 8, scale: 10.0, layers: 8}
    phases:
      sft: {objective: sft, data: "builtin:spark-sft", steps: 50, lr: 5e-6}
      dpo: {objective: dpo, data: pairs.jsonl, steps: 200, lr: 1e-6, beta: 0.1, loss: sigmoid}

Every problem of a recipe is reported at once, with its line, before anything is loaded. A key that
is not a field is an error, never ignored. Paths are relative to the recipe's file; see `recipe.paths`.
"""

from __future__ import annotations

import difflib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from forty2.errors import RecipeError
from forty2.files import close_name
from forty2.recipe import mypt, phasegpt
from forty2.recipe.document import Document, Problem, listed, parse_document
from forty2.recipe.messages import explain_all, missing_files, secrets
from forty2.recipe.overrides import apply_flags, apply_overrides
from forty2.recipe.paths import RECIPE, STORED, rebase_paths, resolve_paths
from forty2.recipe.places import written_as
from forty2.recipe.saved_adapter import take_shape
from forty2.recipe.schema import Recipe
from forty2.recipe.translation import Folders, Translation

_MAX_BYTES = 100_000
_RECIPE = TypeAdapter(Recipe)
_PACKAGED = resources.files("forty2.recipe") / "packaged"
GRID = ".sweep.yaml"
"""End of the name of a grid, which is no recipe."""


def packaged_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    names = [path.name for path in _PACKAGED.iterdir()]
    recipes = [name for name in names if name.endswith(".yaml") and not name.endswith(GRID)]
    return sorted(name.removesuffix(".yaml") for name in recipes)


def packaged_grid_text(name: str) -> str | None:
    """Return the YAML of the grid that comes with a packaged recipe; None: there is none."""
    path = _PACKAGED / f"{name}{GRID}"
    return path.read_text("utf-8") if path.is_file() else None


def recipe_text(source: str) -> str:
    """Return the YAML of a packaged recipe, by its name, of a file, or of a folder's recipe.yaml.

    Raises:
        RecipeError: there is no such recipe, or it is not UTF-8, too long or unreadable.
    """
    names = packaged_recipes()
    if source in names:
        return (_PACKAGED / f"{source}.yaml").read_text("utf-8")
    path = recipe_file(source)
    if not os.path.isfile(path):  # Path.is_file raises for a name that is too long
        if os.path.isdir(source):
            raise RecipeError(f"{source}: no such recipe; the folder holds no {RECIPE}")
        close = difflib.get_close_matches(source, names, 1)
        beside = close_name(Path(source))
        made = f"forty2 init makes one from your files; packaged ones: {', '.join(names)}"
        hint = f"; did you mean {close[0]}?" if close else f"; {made}"
        raise RecipeError(f"{source}: no such recipe, neither file nor packaged{beside or hint}")
    return read_text(path, "recipe")


def read_text(path: Path, what: str) -> str:
    """Read a file of YAML.

    Args:
        what: the kind of file, for messages.

    Raises:
        RecipeError: it is not there, not UTF-8, too long or unreadable.
    """
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise RecipeError(
                f"{path}: {len(data):,} bytes is too long for a {what} (limit {_MAX_BYTES:,})"
            )
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such {what}") from error
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error


class ReadRecipe(NamedTuple):
    """A recipe, and what there is to say of the file that it comes from."""

    recipe: Recipe
    notes: list[str]
    """Sentences on values that are not those of the file."""
    folders: Folders | None
    """Where the run is written, if the file is in a schema that says it."""


def load_recipe(
    source: str | Path | Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    lr: float | None = None,
    kl_weight: float | None = None,
) -> Recipe:
    """Read and check a recipe, one in the schema of PhaseGPT v1.4 or of MyPT too.

    An override that shortens a phase lowers that phase's other step counts with it, and warns. The
    adapter of `init_from` gives its shape to the adapter section, where that leaves it out.

    Args:
        source: a packaged recipe's name, a YAML file, a folder that holds recipe.yaml, or the recipe
            itself as a mapping, whose paths lead from the working directory.
        overrides: "dotted.key=value" each, as `--set` takes them; values are YAML.
        lr: learning rate of the phase of preferences; None: the recipe's.
        kl_weight: weight of the term λ·KL; None: the recipe's.

    Raises:
        RecipeError: listing every problem found, one a line, with its place.
    """
    found = read_recipe(source, overrides, lr=lr, kl_weight=kl_weight)
    if found.notes:  # one warning: Python repeats the caller's line after each
        warnings.warn("\n".join(found.notes), stacklevel=2)
    return found.recipe


def read_recipe(
    source: str | Path | Mapping[str, object],
    overrides: Sequence[str] = (),
    *,
    lr: float | None = None,
    kl_weight: float | None = None,
) -> ReadRecipe:
    """Read and check a recipe as `load_recipe` does, which warns of its notes."""
    if isinstance(overrides, str):  # a text is a sequence of its letters
        raise RecipeError(f"`overrides`: should be a list: [{overrides!r}]")
    if isinstance(source, Mapping):
        text, file, folder = _as_yaml(source), Path("the mapping"), os.curdir
    else:
        text, file = recipe_text(str(source)), recipe_file(str(source))
        folder = _folder_of_paths(str(source), file, text)
    document = parse_document(text, str(file))
    document.has_lines = not isinstance(source, Mapping)
    notes: list[str] = []
    folders: Folders | None = None
    schema = _other_schema(document.tree)
    if schema is not None:
        theirs, overrides = schema.divide_overrides(overrides)
        translation = _translated(schema, document, theirs, lr, kl_weight)
        document, folder, folders = translation.document, os.curdir, translation.folders
        notes = [*translation.adapted, *_left_out(translation, str(source))]
        problems: list[Problem] = []
    else:
        problems = apply_flags(document, lr=lr, kl_weight=kl_weight)
    applied = apply_overrides(document, overrides)
    problems += applied.problems
    notes += applied.notes
    misplaced = list(resolve_paths(document, folder))
    problems += [*misplaced, *take_shape(document)]
    recipe: Recipe | None = None
    try:
        # From JSON, because in strict mode pydantic takes a mapping for a dataclass only there.
        recipe = _RECIPE.validate_json(json.dumps(document.tree, default=str))
    except ValidationError as error:
        problems += explain_all(error.errors(), document)
    problems += missing_files(document)
    problems += secrets(document)
    if recipe is not None:
        problems += _carried_nowhere(recipe, document)
    # What is only in the working directory is missing beside the recipe, too: said once.
    found = {_missing(problem): problem for problem in reversed(problems)}
    problems = [problem for problem in problems if found[_missing(problem)] is problem]
    if problems or recipe is None:
        raise RecipeError(listed(problems))
    return ReadRecipe(written_as(recipe, document), notes, folders)


def load_translation(
    source: str,
    overrides: Sequence[str] = (),
    *,
    lr: float | None = None,
    kl_weight: float | None = None,
) -> Translation | None:
    """Translate a recipe in another schema, without checking its values; None: it is one of ours.

    Raises:
        RecipeError: there is no such recipe, or listing every problem found.
    """
    document = parse_document(recipe_text(source), str(recipe_file(source)))
    schema = _other_schema(document.tree)
    if schema is None:
        return None
    theirs, ours = schema.divide_overrides(overrides)
    found = _translated(schema, document, theirs, lr, kl_weight)
    apply_overrides(found.document, ours)
    return found


class _Schema(NamedTuple):
    """Another schema of recipes."""

    recognizes: Callable[[Mapping[str, object]], bool]
    divide_overrides: Callable[[Iterable[str]], tuple[list[str], list[str]]]
    """Function that divides overrides into those of its keys and those of ours."""
    translate: Callable[..., Translation]


_OTHER_SCHEMAS = (
    _Schema(phasegpt.is_phasegpt, phasegpt.divide_overrides, phasegpt.translate),
    _Schema(mypt.is_mypt, mypt.divide_overrides, mypt.translate),
)


def _other_schema(tree: Mapping[str, object]) -> _Schema | None:
    """Return the schema in which a recipe is written; None: ours."""
    return next((schema for schema in _OTHER_SCHEMAS if schema.recognizes(tree)), None)


def _translated(
    schema: _Schema,
    document: Document,
    overrides: Sequence[str],
    lr: float | None,
    kl_weight: float | None,
) -> Translation:
    problems, _ = apply_overrides(document, overrides)
    if problems:
        raise RecipeError(listed(problems))
    return schema.translate(document, lr=lr, kl_weight=kl_weight)


def _left_out(found: Translation, source: str) -> list[str]:
    """Say how many keys have no counterpart."""
    count = len(found.left_out)
    if not count:
        return []
    keys = "1 key has" if count == 1 else f"{count} keys have"
    return [f"{source}: {keys} no counterpart; `forty2 recipe convert {source}` says why"]


def _as_yaml(recipe: Mapping[str, object]) -> str:
    """Write out a recipe that is given as a mapping; its lines are those of this text.

    Raises:
        RecipeError: it holds something that YAML has no type for.
    """

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True  # one object may be used in two places

    Dumper.add_multi_representer(Path, lambda dumper, path: dumper.represent_str(str(path)))
    try:
        return yaml.dump(dict(recipe), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"the mapping: is no recipe: {' '.join(str(error).split())}") from error


def to_yaml(recipe: Recipe, folder: Path | None = None) -> str:
    """Write out a recipe with every default; `load_recipe` reads it back.

    Args:
        folder: where it will be stored: its paths are written relative to there. None: they stay
            relative to the working directory.
    """
    tree = _RECIPE.dump_python(recipe, by_alias=True)
    if folder is not None:
        rebase_paths(tree, folder)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    return text if folder is None else STORED + text


def _carried_nowhere(recipe: Recipe, document: Document) -> list[Problem]:
    """Find a last phase that hands its optimizer on, which only a part of a recipe may end with."""
    name, phase = next(reversed(recipe.phases.items()))
    if not phase.carry_optimizer:
        return []
    at = ("phases", name, "carry_optimizer")
    return [document.problem(at, "no phase comes after it; remove carry_optimizer")]


def _missing(problem: Problem) -> str:
    """Return the beginning of a problem up to the file that is missing, or all of another problem."""
    return problem.text.partition(": no such ")[0]


def recipe_file(source: str) -> Path:
    """Return the file of a recipe: of a folder, its recipe.yaml."""
    inside = Path(source) / RECIPE
    return inside if os.path.isfile(inside) else Path(source)


def _folder_of_paths(source: str, file: Path, text: str) -> str:
    """Return the folder to which a recipe's paths are relative."""
    of_old_run = os.path.exists(file.parent / "run.json") and not text.startswith(STORED)
    if source in packaged_recipes() or of_old_run:
        return os.curdir
    inside = os.path.relpath(file.parent)
    return str(file.parent) if inside.startswith(os.pardir) else inside
