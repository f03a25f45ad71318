"""A proposed recipe is valid, explains itself, and follows the data and the machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forty2.recipe.proposal import Material, Situation, propose
from forty2.recipe.reading import load_recipe
from forty2.recipe.schema import Recipe
from forty2.training.schedule import longer, plan_phase, shared_steps


def material(kind: str, rows: int = 40, median: int = 60, longest: int = 90) -> Material:
    return Material(kind=kind, training=rows, held_out=20, median=median, longest=longest)


def proposed(folder: Path, *materials: Material, **changes: object) -> tuple[Recipe, str]:
    """The recipe that is proposed, read again, and its text."""
    for one in materials:
        for side in ("train", "held_out"):
            (folder / "data").mkdir(exist_ok=True)
            (folder / "data" / f"{one.kind}.{side}.jsonl").write_text("{}")
    (folder / "eval_prompts.json").write_text("{}")
    facts: dict[str, object] = {
        "name": "shop",
        "model": "smollm2",
        "sources": ["a.json"],
        "materials": materials,
        "counted": True,
        "blocks": 30,
        "memory_bytes": 24_000_000_000,
        "eval_prompts": 5,
    }
    text = propose(Situation(**{**facts, **changes}))  # type: ignore[arg-type]
    (folder / "recipe.yaml").write_text(text, "utf-8")
    return load_recipe(folder), text


@pytest.mark.parametrize(
    ("kinds", "phases"),
    [
        (("chats",), ["sft"]),
        (("pairs",), ["dpo"]),
        (("thumbs",), ["kto"]),
        (("chats", "pairs", "thumbs"), ["sft", "dpo", "kto"]),
    ],
)
def test_each_kind_gets_its_phase_in_order(
    kinds: tuple[str, ...], phases: list[str], tmp_path: Path
) -> None:
    recipe, text = proposed(tmp_path, *map(material, kinds))
    assert [phase.objective for phase in recipe.phases.values()] == phases
    choices = re.findall(r"^ *\w+: \d.*$", text.partition("version: 1\n")[2], re.MULTILINE)
    assert choices and all("  # " in line for line in choices)


@pytest.mark.parametrize("rows", [27, 40, 300])
def test_a_proposed_phase_can_go_on_to_more_steps(rows: int, tmp_path: Path) -> None:
    recipe, _ = proposed(tmp_path, *(material(kind, rows) for kind in ("chats", "pairs", "thumbs")))
    for phase in recipe.phases.values():
        plan = plan_phase(phase, [60] * rows, [1.0] * rows, seed=1)
        assert shared_steps(plan, longer(plan)) >= plan.steps - 1


def test_more_rows_get_fewer_passes_and_more_parameters(tmp_path: Path) -> None:
    few, _ = proposed(tmp_path, material("chats", 40))
    many, _ = proposed(tmp_path, material("chats", 20_000))
    assert (few.phases["sft"].epochs, many.phases["sft"].epochs) == (10, 1)
    assert (few.phases["sft"].batch_size, many.phases["sft"].batch_size) == (4, 8)
    assert few.adapter.rank < many.adapter.rank


@pytest.mark.parametrize(("longest", "limit"), [(9, 128), (129, 192), (640, 640), (9000, 2048)])
def test_the_longest_row_fits_within_bounds(longest: int, limit: int, tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, material("chats", longest=longest))
    assert recipe.max_length == limit
    assert ("are dropped" in text) == (longest > limit)


def test_long_rows_on_a_small_machine_get_small_batches(tmp_path: Path) -> None:
    small, _ = proposed(tmp_path, material("chats", 900, 400), memory_bytes=8_000_000_000)
    large, _ = proposed(tmp_path, material("chats", 900, 400))
    assert small.phases["sft"].batch_size < large.phases["sft"].batch_size


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, material("chats"), blocks=None, eval_prompts=0, counted=False)
    assert recipe.adapter.layers is None and recipe.phases["sft"].eval_prompts is None
    assert "estimated from characters" in text


def test_a_small_model_is_adapted_whole(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, material("chats"), blocks=4)
    assert recipe.adapter.layers == 4 and "all blocks" in text


@pytest.mark.parametrize("name", ["/odd: #name", "null", "2024", "1e5", "owner/name-0.5B", "~/x"])
def test_a_name_that_yaml_would_read_as_something_else_is_quoted(name: str, tmp_path: Path) -> None:
    slug = name if name.isalnum() else "x"
    recipe, _ = proposed(tmp_path, material("chats"), model=name, name=slug)
    assert (recipe.model, recipe.name) == (name, slug)


def test_a_file_name_cannot_end_its_comment(tmp_path: Path) -> None:
    recipe, _ = proposed(tmp_path, material("chats"), sources=["a\nseed: 7\n.json"])
    assert recipe.seed == 42


def test_saving_memory_is_explained(tmp_path: Path) -> None:
    recipe, text = proposed(tmp_path, material("chats"), checkpoint_reason="about 9 of 8 GB")
    assert recipe.phases["sft"].grad_checkpoint is True and "# about 9 of 8 GB" in text
