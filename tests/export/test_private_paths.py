"""No path of this machine is left in a text; what only looks like one stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from forty2.export.private_paths import find_path, machine_paths, without_paths


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    here = tmp_path / "home" / "work"
    here.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(here)
    return machine_paths({"model": "/models of anna/base", "more": ["/models of anna/other"]})


def test_known_paths_are_cut_down(paths: list[str]) -> None:
    home, here = Path.home(), Path.cwd()
    text = f"{home}/x/y.jsonl:3, {here}/in/a.jsonl, {here}, {home} and /models of anna/base/config.json"
    assert without_paths(text, paths) == "y.jsonl:3, in/a.jsonl, , ~ and base/config.json"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("see /home/otto/rows/a.jsonl:7.", "see a.jsonl:7."),
        ("`/Users/joe/a.txt`", "`a.txt`"),
        ("../../otto/rows.jsonl", "rows.jsonl"),
        ("~/secret/rows.jsonl", "rows.jsonl"),
        ("https://huggingface.co/a/b", "https://huggingface.co/a/b"),
        ("<b>a</b> 1/2 owner/name a/b/c.txt ...", "<b>a</b> 1/2 owner/name a/b/c.txt ..."),
    ],
)
def test_other_paths_are_recognised(text: str, left: str, paths: list[str]) -> None:
    assert without_paths(text, paths) == left


def test_a_longer_name_is_another_path(paths: list[str]) -> None:
    assert find_path(f"{Path.home()}-of-otto", paths) is None
    assert find_path(f'"{Path.home()}"', paths) == str(Path.home())
    assert find_path("/models of anna/other/x", paths) == "/models of anna/other"
