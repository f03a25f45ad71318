"""Items on disk: a stopped measurement goes on, and only the same one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.models import tiny_loaded as loaded

from forty2.benchmark.partial_results import PartialResults, weights
from forty2.errors import BenchmarkError, RunError


def test_a_stopped_measurement_goes_on(tmp_path: Path) -> None:
    out, settings = tmp_path / "deep" / "out.json", {"shots": 5, "weights": [["a", 1]]}
    part = out.with_name("out.json.part")
    with PartialResults.open(out, settings, resume=False) as kept:
        kept.add("1", {"right": True, "text": "ä"})
        kept.add("2", {"right": False})
        with pytest.raises(BenchmarkError, match="another process is writing it"):
            PartialResults.open(out, settings, resume=True)
    with part.open("ab") as file:  # a third item was being written when it stopped
        file.write(b'["3", {"ri')
    with pytest.raises(BenchmarkError, match="2 items of a measurement that stopped; go on with"):
        PartialResults.open(out, settings, resume=False)
    with pytest.raises(BenchmarkError, match=r"another shots \(5, now 0\)"):
        PartialResults.open(out, {**settings, "shots": 0}, resume=True)
    with PartialResults.open(out, settings, resume=True) as kept:
        assert "2" in kept and "3" not in kept
        assert kept["1"] == {"right": True, "text": "ä"}
        kept.add("3", {"right": True})
        keys = [json.loads(line)[0] for line in part.read_text().splitlines()[1:]]
        assert keys == ["1", "2", "3"]
        kept.finish({"acc": 1.0})
    assert json.loads(out.read_text()) == {"acc": 1.0}
    assert list(out.parent.iterdir()) == [out]


def test_a_measurement_that_kept_nothing_just_starts(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with PartialResults.open(out, {"n": 1}, resume=False):
        pass
    assert not list(tmp_path.iterdir())
    with PartialResults.open(out, {"n": 2}, resume=False) as kept:
        kept.add("1", {})
        assert "1" in kept and "2" not in kept


def test_without_a_file_nothing_is_kept(tmp_path: Path) -> None:
    with PartialResults.open(None, {}, resume=False) as kept:
        kept.add("1", {"a": 1})
        kept.finish({})
        assert kept["1"] == {"a": 1}


def test_places_that_cannot_be_written_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a folder"):
        PartialResults.open(tmp_path, {}, resume=False)
    (tmp_path / "file").touch()
    with pytest.raises(BenchmarkError, match="cannot be written"):
        PartialResults.open(tmp_path / "file" / "out.json", {}, resume=False)
    (tmp_path / "out.json.part").write_text("rubbish\n[]\n")
    with pytest.raises(BenchmarkError, match=r"damaged .*; remove it"):
        PartialResults.open(tmp_path / "out.json", {}, resume=True)


def test_other_weights_are_told_apart(tmp_path: Path) -> None:
    one = replace(loaded(), path=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = weights(one, None)
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert weights(one, None) != before
    assert before[0][:2] == ["model.safetensors", 1]


def test_tasks_of_one_stage_do_not_mix_their_items(tmp_path: Path) -> None:
    out = tmp_path / "base.json"
    with PartialResults.open(out, {"stage": "base"}, resume=True) as partial:
        partial.add("1", {"a": 1})
        partial.under("mmlu/").add("1", {"b": 2})
        assert partial["1"] == {"a": 1} and partial.under("mmlu/")["1"] == {"b": 2}
        assert "2" not in partial.under("mmlu/")
    with PartialResults.open(out, {"stage": "base"}, resume=True) as partial:
        assert partial.under("mmlu/")["1"] == {"b": 2}
        partial.finish({"whole": True})
    assert [file.name for file in tmp_path.iterdir()] == ["base.json"]


def test_a_setting_that_no_longer_counts_does_not_hinder_going_on(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    with PartialResults.open(out, {"n": 1, "folder": "old"}, resume=False) as partial:
        partial.add("1", {"a": 1})
    with PartialResults.open(out, {"n": 1, "limit": None}, resume=True) as partial:
        assert "1" in partial
