"""Recovery: three arms end to end, their rows, what a stop leaves, and what is refused."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.cli import forty2, refused
from support.recovery import (
    RECIPE,
    Loop,
    accept,
    accepted_row,
    make_loop,
    untouched_questions,
    write_accepted,
)

from forty2.benchmark.stages import read_stage
from forty2.errors import DataError, Forty2Error, RecipeError, RunError
from forty2.failures import find as find_module
from forty2.failures import recover as recover_module
from forty2.failures.arms_recipe import FailingModel, recipe_notes, recipe_of_arms
from forty2.failures.elsewhere import costs_elsewhere, measure_as_it_was
from forty2.failures.recover import RecoverSettings, recover_failures
from forty2.failures.recovery_record import format_recovery
from forty2.files import JsonObject
from forty2.recipe.reading import load_recipe

TWO = RecoverSettings(seeds=(1, 2))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A loop with accepted rows."""
    return make_loop(tmp_path_factory.mktemp("before") / "F")


@pytest.fixture
def loop(before: Loop, tmp_path: Path) -> Loop:
    """A copy to change."""
    folder = Path(shutil.copytree(before.folder, tmp_path / "F"))
    return Loop(folder, before.model, before.recipe)


@pytest.fixture(scope="module")
def done(before: Loop, tmp_path_factory: pytest.TempPathFactory) -> Loop:
    """A loop that has recovered with original data. Tests must not change it."""
    folder = Path(shutil.copytree(before.folder, tmp_path_factory.mktemp("done") / "F"))
    rows = [{"prompt": f"Old question {n}?", "completion": "easy"} for n in range(5)]
    rows.append({"prompt": untouched_questions(folder)[0], "completion": "stolen"})
    original = folder.with_name("original.jsonl")
    original.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with contextlib.chdir(folder.parent):
        settings = RecoverSettings(seeds=(1, 2), original=str(original))
        recover_failures(folder.name, before.recipe, settings=settings)
    return Loop(folder, before.model, before.recipe)


def record_of(folder: Path) -> JsonObject:
    return dict(json.loads((folder / "recover.json").read_text("utf-8")))


def texts(folder: Path, arm: str) -> list[str]:
    lines = (folder / "recover" / f"{arm}.jsonl").read_text("utf-8").splitlines()
    return [json.dumps(json.loads(line)) for line in lines]


def again(done: Loop, folder: Path, **changes: Any) -> JsonObject:
    settings = RecoverSettings(
        **{"seeds": (1, 2), "original": str(done.folder.with_name("original.jsonl")), **changes}
    )
    with contextlib.chdir(folder.parent):
        return recover_failures(folder.name, done.recipe, settings=settings)


# --- end to end -----------------------------------------------------------------------------------


def test_both_arms_learn_and_the_verdict_rests_on_the_untouched_half(done: Loop) -> None:
    record = record_of(done.folder)
    assert record["rates"]["none"] < 0.5 < record["rates"]["targeted"]
    assert record["verdict"] in ("helps like random", "does not help")  # both arms learn the same
    over = next(one for one in record["differences"] if one["than"] == "none")
    rates = record["rates"]
    assert over["difference"] == pytest.approx(rates["targeted"] - rates["none"])
    assert over["low"] < over["difference"] <= over["high"]
    assert record["items"] == 12 and record["unscored"] == 0
    half = {json.loads(line)["id"] for line in _lines(done.folder) if '"untouched"' in line}
    for label in ("none", "targeted-1", "random-2"):
        stored = json.loads((done.folder / "recover" / f"{label}.json").read_text("utf-8"))
        assert {item["id"] for item in stored["items"]} == half
    assert "Verdict: " in format_recovery(record) and record["sentence"] in format_recovery(record)


def _lines(folder: Path) -> list[str]:
    return (folder / "testset.jsonl").read_text("utf-8").splitlines()


def test_each_arm_and_seed_is_an_ordinary_run_of_its_own_rows(done: Loop) -> None:
    for arm in ("targeted", "random"):
        for seed in (1, 2):
            run = done.folder / "arms" / f"{arm}-{seed}"
            recipe = yaml.safe_load((run / "recipe.yaml").read_text("utf-8"))
            assert recipe["seed"] == seed
            data = (run / recipe["phases"]["sft"]["data"]).resolve()
            assert data == (done.folder / "recover" / f"{arm}.jsonl").resolve()
            assert (run / "report.html").exists()
    base = [run / "benchmarks" / "base.json" for run in (done.folder / "arms").iterdir()]
    assert len({file.read_bytes() for file in base}) == 1, "the base is measured once"


def test_arms_differ_in_their_new_rows_alone(done: Loop) -> None:
    rows = {arm: texts(done.folder, arm) for arm in ("targeted", "random")}
    old = [row for row in rows["targeted"] if "Old question" in row]
    assert old and old == [row for row in rows["random"] if "Old question" in row]
    for arm, own in rows.items():
        assert all(f"of {arm}." in row for row in own if row not in old)
        assert not any("stolen" in row for row in own), "it asks what the untouched half asks"
    record = record_of(done.folder)["rows"]
    tokens = [record["arms"][arm]["tokens"] for arm in rows]
    assert max(tokens) <= record["budget_tokens"]
    assert min(tokens) > 0.8 * max(tokens)
    for arm in rows:
        assert 0.05 < record["arms"][arm]["original_share"] < 0.15
    assert record["original"]["available"] == 6


def test_what_training_costs_elsewhere_is_measured(done: Loop) -> None:
    record = record_of(done.folder)
    for arm in ("targeted", "random"):
        assert "plain facts:" in {cost["name"] for cost in record["costs"][arm]}


def test_a_model_with_an_adapter_is_measured_as_it_was(
    done: Loop, before: Loop, tmp_path: Path
) -> None:
    run = done.folder / "arms" / "targeted-1"
    model = FailingModel(before.model, str(run))
    recipe = recipe_of_arms(
        done.recipe, ["benchmark.n=40"], model, str(done.folder / "accepted.jsonl")
    )
    found = measure_as_it_was(tmp_path, recipe, model, None)
    assert found is not None and found["perplexity"].adapter == str(run)
    same = measure_as_it_was(tmp_path, recipe, model, None)
    assert same is not None and same.to_json() == found.to_json(), "it is read back"
    bare = FailingModel(before.model, None)
    assert measure_as_it_was(tmp_path, recipe, bare, None) is None
    assert found["divergence"].figures["kl"] > 0, "it is not the base"
    costs = costs_elsewhere([found] * 2, [found] * 2, recipe)
    assert costs and {cost.answer for cost in costs} == {"none"}


@pytest.mark.slow
def test_what_an_adapter_had_cost_before_is_no_cost_of_the_arms(
    done: Loop, before: Loop, tmp_path: Path
) -> None:
    run = done.folder / "arms" / "targeted-1"
    loop = make_loop(tmp_path / "F", Path(before.model).parent, run=run)
    with contextlib.chdir(tmp_path):
        record = recover_failures("F", loop.recipe, settings=TWO, overrides=["benchmark.n=40"])
    base = read_stage(loop.folder / "arms" / "random-1" / "benchmarks" / "base.json")["perplexity"]
    as_it_was = read_stage(loop.folder / "recover" / "none-elsewhere.json")["perplexity"]
    assert base.adapter is None and as_it_was.adapter == str(run)
    assert base.figures["perplexity"] != as_it_was.figures["perplexity"]
    for arm in ("targeted", "random"):
        (cost,) = [one for one in record["costs"][arm] if "perplexity" in one["name"]]
        assert float(cost["before"]) == pytest.approx(as_it_was.figures["perplexity"], rel=0.01)


# --- stops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [
        ["recover.json"],
        ["recover.json", "recover/random-2.json"],
        ["recover.json", "recover/random-2.json", "recover/none.json", "arms/random-2"],
        ["recover.json", "recover/targeted.jsonl", "arms/random-2/phase1_sft/adapters.safetensors"],
    ],
)
def test_after_a_stop_the_same_command_ends_with_the_same_bytes(
    done: Loop, tmp_path: Path, lost: list[str]
) -> None:
    """What is lost is what a kill at that moment has not written yet."""
    folder = Path(shutil.copytree(done.folder, tmp_path / "F"))
    kept = {
        path.relative_to(folder): path.read_bytes()
        for path in [folder / "recover.json", *(folder / "recover").iterdir()]
    }
    for name in lost:
        path = folder / name
        if name.endswith(".safetensors"):  # killed while the phase was written
            shutil.rmtree(path.parent)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    again(done, folder)
    for file, content in kept.items():
        assert (folder / file).read_bytes() == content, file


def test_a_stop_within_the_re_test_changes_no_byte(
    done: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(done.folder, tmp_path / "F"))
    whole = (folder / "recover" / "none.json").read_bytes()
    for name in ("recover.json", "recover/none.json"):
        (folder / name).unlink()
    verify = find_module.answer_and_judge

    def stops(*args: Any, **settings: Any) -> Any:
        verify(*args, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(recover_module, "answer_and_judge", stops)
    with pytest.raises(KeyboardInterrupt):
        again(done, folder)
    part = folder / "recover" / "none.json.part"
    part.write_bytes(part.read_bytes()[:-9])  # a torn line
    monkeypatch.setattr(recover_module, "answer_and_judge", verify)
    again(done, folder)
    assert (folder / "recover" / "none.json").read_bytes() == whole


def test_a_finished_recovery_is_read_back_and_another_one_is_refused(done: Loop) -> None:
    assert again(done, done.folder) == record_of(done.folder)
    with pytest.raises(RunError, match="other seeds"):
        again(done, done.folder, seeds=(1, 3))
    with pytest.raises(RunError, match="other original data"):
        again(done, done.folder, original=None)
    with pytest.raises(RunError, match="other recipe"), contextlib.chdir(done.folder.parent):
        recover_failures(
            done.folder.name, done.recipe, settings=TWO, overrides=["phases.sft.lr=0.02"]
        )


def test_nothing_is_resumed_that_has_not_begun(loop: Loop) -> None:
    with pytest.raises(RunError, match="no recovery has begun"):
        recover_failures(loop.folder, loop.recipe, settings=TWO, resume=True)


def test_the_command_prints_the_arms_and_the_verdict(
    done: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(done.folder.parent)
    original = str(done.folder.with_name("original.jsonl"))
    command = ["failures", "recover", "F", "--recipe", str(done.recipe), "--original", original]
    result = forty2(*command, "--seeds", "1,2")
    assert result.exit_code == 0, result.output
    assert "Verdict: " in result.output and "targeted" in result.output
    printed = forty2(*command, "--seeds", "1,2", "--json")
    record = json.loads(printed.output.splitlines()[-1])
    assert record["schema"] == "forty2.failures.recover/1"
    assert record["sentence"] == record_of(done.folder)["sentence"]
    assert "other seeds" in refused(*command, "--seeds", "1,3")


# --- rows -----------------------------------------------------------------------------------------


class Stopped(Exception):
    """Ends a recovery before anything is trained."""


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stops before training; holds the warnings so far."""
    said: list[list[str]] = []
    notes = recover_module._row_notes

    def keep(*args: Any) -> list[str]:
        said.append(list(notes(*args)))
        return said[-1]

    def stop(*_: object) -> None:
        raise Stopped

    monkeypatch.setattr(recover_module, "_row_notes", keep)
    monkeypatch.setattr(recover_module, "_train", stop)
    return said


def rows_of(loop: Loop, **settings: Any) -> dict[str, list[str]]:
    with pytest.raises(Stopped):
        recover_failures(
            loop.folder, loop.recipe, settings=RecoverSettings(**{"seeds": (1, 2), **settings})
        )
    return {arm: texts(loop.folder, arm) for arm in ("targeted", "random")}


def test_the_smaller_arm_decides(loop: Loop, untrained: list[list[str]]) -> None:
    accept(loop.folder, 3, 9)
    rows = rows_of(loop)
    assert len(rows["targeted"]) == 3 and 3 <= len(rows["random"]) <= 4


def test_the_budget_is_of_tokens_not_of_rows(loop: Loop, untrained: list[list[str]]) -> None:
    long = [accepted_row("targeted", n, "easy " * 8) for n in range(6)]
    write_accepted(loop.folder, [*long, *(accepted_row("random", n) for n in range(6))])
    rows = rows_of(loop)
    assert len(rows["targeted"]) < len(rows["random"]) == 6


def test_missing_original_data_is_said(loop: Loop, untrained: list[list[str]]) -> None:
    rows_of(loop)
    assert "no original data" in untrained[0][0]


def test_too_little_original_data_is_said(loop: Loop, untrained: list[list[str]]) -> None:
    original = loop.folder.with_name("few.jsonl")
    original.write_text('{"prompt": "A?", "completion": "B"}\n')
    accept(loop.folder, 40, 40)
    rows_of(loop, original=str(original))
    assert "not the" in untrained[0][0] and "10% of each arm's" in untrained[0][0]


def test_pairs_are_no_original_conversations(loop: Loop, untrained: list[list[str]]) -> None:
    original = loop.folder.with_name("pairs.jsonl")
    original.write_text('{"prompt": "A?", "chosen": "B", "rejected": "C"}\n')
    rows = rows_of(loop, original=str(original))
    assert not any('"A?"' in row for row in rows["targeted"])


def test_rows_that_ask_what_the_untouched_half_asks_are_left_out(
    loop: Loop, untrained: list[list[str]]
) -> None:
    asked = [{"role": "user", "content": untouched_questions(loop.folder)[0]}]
    copied = accepted_row("random", 50, "copied", messages=asked)
    rows = [accepted_row(arm, n) for arm in ("targeted", "random") for n in range(5)]
    write_accepted(loop.folder, [*rows, copied])
    assert not any("copied" in row for row in rows_of(loop)["random"])


def test_rows_that_do_not_fit_are_left_out(loop: Loop, untrained: list[list[str]]) -> None:
    rows = [accepted_row(arm, n) for arm in ("targeted", "random") for n in range(5)]
    write_accepted(loop.folder, [*rows, accepted_row("targeted", 9, "long " * 100)])
    assert not any("long" in row for row in rows_of(loop)["targeted"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no accepted rows"),
        ([accepted_row("random", 1)], "no row of the arm targeted can be used"),
        ([accepted_row("both", 1)], "accepted.jsonl:1: arm must be targeted or random"),
        ([{**accepted_row("random", 1), "reply": None}], "needs messages and a reply"),
    ],
)
def test_unusable_accepted_rows_are_an_error(
    loop: Loop, rows: list[dict[str, object]], message: str
) -> None:
    write_accepted(loop.folder, rows)
    with pytest.raises(DataError, match=message):
        recover_failures(loop.folder, loop.recipe, settings=TWO)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("objective: sft", "objective: orpo, beta: 0.1", "should have objective: sft"),
        ("epochs: 8", "steps: 2", "give epochs in place of steps"),
        ("lint: false", "lint: false, replay: [{from: x.jsonl, share: 0.1}]", "replay"),
        (
            "phases:",
            "phases:\n  a: {objective: sft, data: x.jsonl, epochs: 1, lr: 0.1}",
            "one phase",
        ),
        ("name: arms", "name: arms\nmodel: smollm2", "the failures are those of"),
        ("epochs: 8", "epochs: 8, epoch: 3", "unknown key"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    loop: Loop, tmp_path: Path, old: str, new: str, message: str, starter_path: Path
) -> None:
    recipe = tmp_path / "other.yaml"
    recipe.write_text(RECIPE.replace(old, new), "utf-8")
    (tmp_path / "x.jsonl").write_text('{"prompt": "A?", "completion": "B"}\n')
    with pytest.raises(RecipeError, match=message):
        recover_failures(loop.folder, recipe, settings=TWO)


def test_what_the_arms_do_not_read_of_a_recipe_is_said(
    loop: Loop, untrained: list[list[str]]
) -> None:
    notes = recipe_notes(
        {**yaml.safe_load(RECIPE), "fuse": {}, "phases": {"sft": {"data": "mine.jsonl"}}},
        load_recipe(loop.recipe, ["model=smollm2", "phases.sft.data=builtin:spark-sft"]),
    )
    assert [note.partition(":")[0] for note in notes] == ["phases.sft.data", "fuse"]


def test_a_changed_file_of_the_chain_is_refused(loop: Loop) -> None:
    (loop.folder / "accepted.json").write_text('{"accepted_sha256": "0"}')
    with pytest.raises(RunError, match="is not the file that"):
        recover_failures(loop.folder, loop.recipe, settings=TWO)
    (loop.folder / "accepted.json").unlink()
    (loop.folder / "generated.json").write_text('{"testset_sha256": {"find": "0"}}')
    with pytest.raises(RunError, match="was made for another test set"):
        recover_failures(loop.folder, loop.recipe, settings=TWO)
    (loop.folder / "generated.json").unlink()
    lines = (loop.folder / "testset.jsonl").read_bytes().replace(b'"untouched"', b'"untouched" ')
    (loop.folder / "testset.jsonl").write_bytes(lines)
    with pytest.raises(RunError, match="is not the one that"):
        recover_failures(loop.folder, loop.recipe, settings=TWO)


@pytest.mark.parametrize("missing", ["find.json", "accepted.jsonl", "testset.json"])
def test_a_missing_step_is_named(loop: Loop, missing: str) -> None:
    (loop.folder / missing).unlink()
    with pytest.raises(Forty2Error, match="forty2 failures"):
        recover_failures(loop.folder, loop.recipe, settings=TWO)


def test_one_seed_is_refused(loop: Loop) -> None:
    with pytest.raises(RunError, match="give two or more"):
        recover_failures(loop.folder, loop.recipe, settings=RecoverSettings(seeds=(1,)))
