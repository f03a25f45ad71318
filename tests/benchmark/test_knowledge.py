"""Scores of real and invented names: planted ones, and those of a tiny random model."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from support.bad_input import write_tiny
from support.cli import forty2, refused

from forty2.benchmark import knowledge
from forty2.benchmark.knowledge import (
    CONTROL,
    SCORES,
    Knowledge,
    agreement,
    choose_point,
    format_knowledge,
    measure,
    record_of,
    score_names,
    verdict_of,
)
from forty2.data.build import knowledge as names_and_pairs
from forty2.data.build.knowledge import Halves, Thing, halves, is_held_out, twins
from forty2.data.formats import read_pairs
from forty2.errors import BenchmarkError
from forty2.files import read_json
from forty2.model.loading import load

ROW = {"id": "x"}


def planted(**of: tuple[float, float]) -> Knowledge:
    """Measure forty names of each kind in each half; a score is (real's, invented's) plus a little."""
    found = Halves([], [])
    scores: dict[str, dict[str, float]] = {}
    for n in range(160):
        thing = Thing(f"n{n}", n % 2 == 0, ROW if n % 8 else None)
        found[n // 80].append(thing)
        values = {s: of.get(s, (0.0, 0.0))[n % 2] + (n * 7 % 5) / 100 for s in SCORES}
        scores[thing.name] = {**values, CONTROL: 5.0}
    return measure(found, scores)


def test_a_perfect_score_is_found_and_its_threshold_divides_the_names() -> None:
    found = planted(claim=(1.0, 0.0))
    assert (found.best, found.separates) == ("claim", True)
    line = found.line("claim")
    assert (line.auc, line.higher_for, line.obscure) == (1.0, "real", 1.0)
    assert 0.8 < line.interval.low < 1.0  # forty names are no proof of perfection
    assert found.reported[1:] == (1.0, 1.0)
    assert len(found.known) == 40
    assert "1.00 (0.91 to 1.00)" in verdict_of(found) and "100% (91% to 100%)" in verdict_of(found)
    assert found.line(CONTROL).auc == 0.5


def test_a_score_that_is_higher_for_invented_names_is_used_the_other_way_round() -> None:
    found = planted(name=(0.0, 1.0))
    assert found.line("name").higher_for == "invented"
    assert found.line("name").auc == 1.0 and found.separates
    assert found.reported[1:] == (1.0, 1.0)


def test_scores_that_tell_nothing_are_told_and_all_real_names_count_as_known() -> None:
    found = planted()
    assert not found.separates
    assert verdict_of(found).startswith("No score separates them: the AUC of the best, ")
    assert len(found.known) == 40
    assert record_of(found)["verdict"] in format_knowledge(found)


def test_a_score_no_better_than_the_length_of_the_name_is_called_so() -> None:
    assert "number of letters alone" in verdict_of(planted())
    assert "number of letters alone" not in verdict_of(planted(claim=(1.0, 0.0)))


def test_the_choice_is_blind_to_the_reporting_half() -> None:
    """Scores of the reporting half change what is reported, never what was chosen."""
    names = Halves(
        [Thing(f"a{n}", n % 2 == 0) for n in range(40)],
        [Thing(f"b{n}", n % 2 == 0) for n in range(40)],
    )
    one = {
        t.name: {s: float(t.real) * (s == "claim") for s in (*SCORES, CONTROL)}
        for half in names
        for t in half
    }
    other = one | {
        t.name: {s: float(t.real) * (s == "name") for s in (*SCORES, CONTROL)}
        for t in names.reporting
    }
    first, second = measure(names, one), measure(names, other)
    assert (first.best, first.chosen) == (second.best, second.chosen)
    assert first.separates and not second.separates


def test_the_point_is_the_best_sum_and_in_a_tie_the_one_that_answers_most() -> None:
    names = [Thing("r1", True), Thing("r2", True), Thing("i1", False), Thing("i2", False)]
    values = {"r1": 1.0, "r2": 3.0, "i1": 0.0, "i2": 2.0}  # 1 and 3 both give a sum of 1.5
    assert choose_point(names, lambda thing: values[thing.name]) == (1.0, 0.5, 1.0)


def test_agreement_is_the_mean_overlap_without_the_name() -> None:
    assert agreement(["Lima is a city", "Lima, a city"], "Lima") == pytest.approx(2 / 3)
    assert agreement(["a b", "a b", "c"], "x") == pytest.approx(1 / 3)
    assert agreement(["", ""], "x") == 0.0


def few() -> list[Thing]:
    """Three twins of each half."""
    return [thing for half in halves() for thing in twins(half)[:6]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny(folder)
    return folder


def test_a_name_has_the_same_scores_whatever_is_asked_beside_it(tiny: Path) -> None:
    loaded = load(str(tiny))
    both = score_names(loaded, few()[:4], samples=2)
    alone = score_names(loaded, few()[:1], samples=2)
    name = few()[0].name
    assert set(both[name]) == {*SCORES, CONTROL}
    assert alone[name] == pytest.approx(both[name], abs=1e-3)
    assert both[name]["name"] < 0 and 0 <= both[name]["consistency"] <= 1


def test_a_broken_model_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knowledge, "_consistency", lambda *_: [math.nan])
    with pytest.raises(BenchmarkError, match="not finite"):
        score_names(load(str(tiny)), few()[:1])


def test_the_command_prints_the_measure_and_writes_the_same_set_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = tuple(few())
    monkeypatch.setattr(names_and_pairs, "things", lambda: some)
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        made = forty2("data", "build", "knowledge", "--model", tiny, "--out", folder, "--seed", "3")
        assert made.exit_code == 0, made.output
        assert "obscure real names" in made.output and "letters" in made.output
        manifest = read_json(folder / "manifest.json")
        assert manifest["knowledge"]["verdict"] in " ".join(made.output.split())
        assert sum(manifest["shares"].values()) == pytest.approx(1, abs=0.002)
        assert manifest["knowledge"]["twins"] == {"choosing": 3, "reporting": 3}
        assert len(manifest["knowledge"]["curve"]) == knowledge.CURVE_POINTS
        written.append([(folder / f).read_bytes() for f in ("train.jsonl", "scores.json")])
    assert written[0] == written[1]
    scores = read_json(tmp_path / "a" / "scores.json")
    trained = [pair.prompt[-1]["content"] for pair in read_pairs(tmp_path / "a" / "train.jsonl")]
    assert not [prompt for prompt in trained if is_held_out(prompt)]
    reported = [name for name, one in scores.items() if one["half"] == "reporting"]
    assert len(reported) == 6
    assert not [name for name in reported if name in "\n".join(trained)]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    build = ("data", "build", "knowledge", "--out", tmp_path / "d")
    assert "neither --size nor --balance" in refused(*build, "--model", "m", "--size", "3")
    assert "Missing option '--model'" in refused(*build)
    spark = ("data", "build", "spark-dpo", "--out", tmp_path / "d")
    assert "are for knowledge, not for spark-dpo" in refused(*spark, "--model", "m")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("x")
    assert "exists and is not a data set" in refused(*build, "--model", "m")
    assert [*tmp_path.rglob("*")] == [tmp_path / "d", tmp_path / "d" / "mine.txt"]
