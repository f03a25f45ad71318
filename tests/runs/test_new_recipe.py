"""A folder from a user's files: what it holds runs, and nothing is half-written or written over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import mlx.core as mx
import pytest
from support.shop import CHATS, PAIRS, TABLES, THUMBS
from support.small_run import make_inputs

import forty2
from forty2 import machine
from forty2.benchmark.probing import probe
from forty2.data.checks.lint import lint
from forty2.data.columns import read_mapping
from forty2.data.formats import read_records
from forty2.errors import DataError, Forty2Error
from forty2.recipe.reading import load_recipe
from forty2.runs import inputs
from forty2.runs.folder import try_lock
from forty2.runs.new_recipe import Files, start
from forty2.runs.planning import plan

ALL = Files(chats=(CHATS,), pairs=(PAIRS,), thumbs=(THUMBS,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with two blocks."""
    mx.random.seed(0)
    return make_inputs(tmp_path_factory.mktemp("starting") / "inputs") / "model"


@pytest.fixture
def here(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the model in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    return tmp_path


def test_every_row_is_in_one_of_the_files_and_held_out_rows_are_apart(here: Path) -> None:
    started = start(Path("shop"), ALL, model="model")
    for kind, source in (("chats", CHATS), ("pairs", PAIRS), ("thumbs", THUMBS)):
        train, held = (f"shop/data/{kind}.{side}.jsonl" for side in ("train", "held_out"))
        rows = [
            [str(r.meta) + str(to_text(r)) for r in read_records(f)] for f in (train, held, source)
        ]
        assert sorted(rows[0] + rows[1]) == sorted(rows[2])
        assert not [f for f in lint(train, held) if f.check in ("overlap", "near", "row")]
    assert [one.held_out for one in started.materials] == [20, 20, 13]
    assert any("only 13 of 40 are held out" in note for note in started.notes)


def to_text(record: object) -> str:
    return str(
        {key: getattr(record, key, None) for key in ("messages", "prompt", "chosen", "rejected")}
    )


def test_the_folder_runs_and_its_run_can_be_repeated_elsewhere(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "probe", probe)  # its prompts expect replies of many tokens
    start(Path("shop"), ALL, model="model")
    assert plan(load_recipe("shop"), quick=True).warnings == ()
    short = [f"phases.{phase}.epochs=0.1" for phase in ("sft", "dpo", "kto")]
    short += ["benchmark={tasks: [], held_out: false}", "fuse=null", "phases.sft.eval_prompts=null"]
    first = forty2.run(load_recipe("shop", short))
    assert first.path == Path("adapters/shop")

    there = here / "colleague"
    there.mkdir()
    for name in ("shop", "adapters", "model"):
        shutil.move(here / name, there / name)
    monkeypatch.chdir(there)
    again = forty2.run(load_recipe("adapters/shop"), run_dir="again")
    weights = [path / "phase3_kto" / "adapters.safetensors" for path in (first.path, again.path)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert load_recipe("again") == load_recipe("adapters/shop")


def test_tables_with_other_columns_give_the_same_rows(here: Path) -> None:
    chats = ["Frage=prompt,Antwort=completion,Besser=chosen,Schlechter=rejected"]
    files = Files(chats=TABLES[:1], pairs=TABLES[1:2], mapping=read_mapping(chats))
    start(Path("shop"), files, model="model")
    rows = read_records("shop/data/chats.train.jsonl")
    assert len(rows) == 40 and all("Number" in row.meta for row in rows)


def test_a_mapped_column_that_no_file_has_is_refused(here: Path) -> None:
    with pytest.raises(DataError, match="`mapping` Fragen=prompt: no file has that column"):
        start(Path("shop"), Files(chats=(CHATS,), mapping={"Fragen": "prompt"}), model="model")
    assert not Path("shop").exists()


def test_what_is_there_is_not_written_over(here: Path) -> None:
    start(Path("shop"), Files(chats=(CHATS,)), model="model")
    with pytest.raises(DataError, match="give `replace=True`"):
        start(Path("shop"), ALL, model="model")
    start(Path("shop"), Files(pairs=(PAIRS,)), model="model", replace=True)
    assert not Path("shop/data/chats.train.jsonl").exists()
    Path("shop/mine.txt").write_text("x")
    with pytest.raises(DataError, match=r"mine\.txt in it was not written by forty2 init"):
        start(Path("shop"), ALL, model="model", replace=True)
    Path("shop/mine.txt").unlink()
    Path("shop/recipe.yaml").write_text("version: 1\n")
    with pytest.raises(DataError, match="was not written by forty2 init"):
        start(Path("shop"), ALL, model="model", replace=True)


def test_the_rows_of_a_run_under_way_are_not_replaced(here: Path) -> None:
    start(Path("shop"), ALL, model="model")
    run = here / "adapters" / "shop"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    lock = try_lock(run / "run.lock")
    assert lock is not None
    lock.write(f"process {os.getpid()} since now")
    lock.flush()
    with lock, pytest.raises(DataError, match="shop: its run adapters/shop is under way; wait"):
        start(Path("shop"), ALL, model="model", replace=True)
    start(Path("shop"), ALL, model="model", replace=True)


def test_the_plan_measures_a_pair_in_one_way(here: Path) -> None:
    start(Path("shop"), ALL, model="model")
    for phase in plan(load_recipe("shop"), quick=True).phases:
        assert phase.median_tokens <= phase.longest_tokens


def test_a_failure_leaves_nothing(here: Path) -> None:
    shutil.copytree(here / "model", here / "broken")
    (here / "broken" / "tokenizer.json").write_text("{")
    with pytest.raises(Forty2Error):
        start(Path("shop"), ALL, model="broken")
    assert {path.name for path in here.iterdir()} == {"model", "broken"}


def test_different_system_prompts_are_noticed_and_can_be_filled_in(here: Path) -> None:
    plain = here / "pairs.jsonl"
    rows = [json.loads(line) for line in Path(PAIRS).read_text("utf-8").splitlines()]
    plain.write_text("".join(json.dumps({**row, "system": ""}) + "\n" for row in rows), "utf-8")
    files = Files(chats=(CHATS,), pairs=(str(plain),))
    (note,) = [n for n in start(Path("a"), files, model="model").notes if "system" in n]
    assert "chats: 60 with “You answer questions" in note and "pairs: 60 with none" in note
    assert "`system=" in note
    system = json.loads(Path(CHATS).read_text("utf-8"))[0]["messages"][0]["content"]
    filled = Files(chats=(CHATS,), pairs=(str(plain),), system=system)
    assert not [n for n in start(Path("b"), filled, model="model").notes if "system" in n]


def test_repeated_rows_are_left_out_and_counted(here: Path) -> None:
    notes = start(Path("shop"), Files(chats=(CHATS, CHATS)), model="model").notes
    assert "chats: 60 of 120 rows repeat another and were left out." in notes


def test_faults_that_the_lint_finds_are_said_with_their_row(here: Path) -> None:
    bad = here / "bad.jsonl"
    rows = [{"prompt": f"What is {n * 104729}?", "completion": str(n)} for n in range(30)]
    rows[3]["completion"] = "<|im_end|> 3"
    bad.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    notes = start(Path("shop"), Files(chats=(str(bad),)), model="model").notes
    assert any("1 row: " in note and "bad.jsonl:4" in note for note in notes)


def test_a_model_that_does_not_fit_gets_checkpointing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: 1_000_000)
    start(Path("shop"), Files(chats=(CHATS,)), model="model")
    assert load_recipe("shop").phases["sft"].grad_checkpoint is True


def test_a_model_of_the_hub_is_not_fetched(here: Path) -> None:
    start(Path("shop"), Files(chats=(CHATS,)), model="nobody/nothing")
    recipe = load_recipe("shop")
    assert recipe.model == "nobody/nothing" and recipe.adapter.layers is None


def test_the_name_of_the_run_is_that_of_the_folder(here: Path) -> None:
    assert start(Path("my shop!"), Files(chats=(CHATS,)), model="model").name == "my-shop"
    assert load_recipe("my shop!").name == "my-shop"
