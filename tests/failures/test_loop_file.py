"""The file of a loop: every problem at once with its line, and paths relative to the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forty2.errors import RecipeError
from forty2.failures.loop_file import packaged_loops, read_loop
from forty2.recipe.reading import load_recipe

GOOD = """\
version: 1
name: mine
model: smollm2
testset: {from: [builtin], size: 100}
generate:
  size: 20
recover:
  recipe: arms.yaml
"""


def write(folder: Path, text: str = GOOD) -> str:
    path = folder / "loop.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        read_loop(write(folder, text), overrides)
    return [line.replace(f"{folder}/", "") for line in str(error.value).splitlines()]


def test_every_typo_is_refused_by_name_and_line(tmp_path: Path) -> None:
    text = GOOD.replace("size: 20", "sise: 20").replace("model:", "modell: x\nmodel:")
    text = text.replace("from: [builtin], size", "from: [builtin], sizes")
    assert problems(tmp_path, f"{text}fnid: {{max_tokens: 9}}\n") == [
        "loop.yaml:3: modell: unknown key; did you mean model?",
        "loop.yaml:5: testset.sizes: unknown key; did you mean size?",
        "loop.yaml:6: generate.size: missing",
        "loop.yaml:7: generate.sise: unknown key; did you mean size?",
        "loop.yaml:10: fnid: unknown key; did you mean find?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size: 20", "size: 0", "loop.yaml:6: generate.size: should be greater than 0"),
        ("version: 1", "version: 2", "loop.yaml:1: version: should be 1"),
        ("recipe: arms.yaml", "recipe: arms.yaml\n  seeds: [1]", "recover.seeds: "),
        ("recipe: arms.yaml", "seeds: [1, 2]", "recover.recipe: missing"),
        ("generate:", "cluster: {k: 1}\ngenerate:", "loop.yaml:5: cluster.k: "),
        ("generate:", "cluster: {k: some}\ngenerate:", "loop.yaml:5: cluster.k: "),
        (
            "generate:",
            "label: {by: teacher}\ngenerate:",
            "loop.yaml:5: label.by: the built-in generators",
        ),
        ("generate:", "judge: {name: http://a/v1, key: x}\ngenerate:", "judge.key: unknown key"),
        ("generate:", "teacher: {model: x}\ngenerate:", "teacher.name: missing"),
        ("generate:", "run_untrusted_code: 1\ngenerate:", "should be true or false"),
        ("name: mine", "name: mine\nname: yours", "name is given twice"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    said = "\n".join(problems(tmp_path, GOOD.replace(old, new)))
    assert message in said


def test_overrides_are_checked_like_the_file(tmp_path: Path) -> None:
    loop = read_loop(write(tmp_path), ["generate.size=7", "find.max_tokens=9"]).loop
    assert (loop.generate.size, loop.find.max_tokens) == (7, 9)
    assert "typo: unknown key" in problems(tmp_path, GOOD, "typo=1")[0]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "loops"
    folder.mkdir()
    for name in ("own.jsonl", "trained.jsonl", "old.jsonl", "arms.yaml"):
        (folder / name).write_text("{}")
    (folder / "model").mkdir()
    text = (
        GOOD.replace("[builtin]", "[builtin, gsm8k, 'hub:a/b', own.jsonl]")
        .replace("size: 100", "size: 100, disjoint_from: [trained.jsonl, my-run]")
        .replace("smollm2", "model")
        .replace("arms.yaml", "arms.yaml\n  original: old.jsonl")
        .replace("testset:", "out: F\nadapter: run\ntestset:")
    )
    monkeypatch.chdir(tmp_path)
    write(folder, text)
    loop = read_loop("loops/loop.yaml").loop
    assert loop.testset.sources == ["builtin", "gsm8k", "hub:a/b", "loops/own.jsonl"]
    assert loop.testset.disjoint_from == ["loops/trained.jsonl", "my-run"]
    assert (loop.model, loop.adapter, loop.out) == ("loops/model", "loops/run", "loops/F")
    assert (loop.recover.recipe, loop.recover.original) == ("loops/arms.yaml", "loops/old.jsonl")


def test_what_is_wrong_in_a_recipe_written_into_the_file_has_its_line(tmp_path: Path) -> None:
    text = GOOD.replace("recipe: arms.yaml", "recipe:\n    version: 1\n    nam: x")
    read = read_loop(write(tmp_path, text))
    assert isinstance(read.loop.recover.recipe, dict)
    with pytest.raises(RecipeError) as error:
        load_recipe(read.loop.recover.recipe)
    said = str(read.in_recipe(error.value)).replace(f"{tmp_path}/", "")
    assert "loop.yaml:10: recover.recipe.nam: unknown key; did you mean name?" in said


def test_an_unknown_loop_names_those_that_there_are(tmp_path: Path) -> None:
    for name in ("builtin-lop", "nothing"):
        with pytest.raises(RecipeError, match="builtin-loop"):
            read_loop(name)
    (tmp_path / "loop.yml").write_text(GOOD)
    with pytest.raises(RecipeError, match="did you mean"):
        read_loop(tmp_path / "loop.yaml")
    with pytest.raises(RecipeError, match="a loop is a mapping"):
        read_loop(write(tmp_path, "[]"))


@pytest.mark.parametrize("name", packaged_loops())
def test_packaged_loops_and_their_recipes_are_valid(name: str) -> None:
    loop = read_loop(name).loop
    assert loop.name == name and not loop.run_untrusted_code
    assert isinstance(loop.recover.recipe, dict)
    recipe = load_recipe(
        loop.recover.recipe, ["model=smollm2", "phases.sft.data=builtin:spark-sft"]
    )
    assert recipe.phases["sft"].epochs is not None
    assert sum(loop.testset.strata.values()) // 2 >= 400, "untouched items for the verdict"
    assert not os.path.isabs(loop.out or "")
