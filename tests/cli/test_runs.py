"""`forty2 runs` and `forty2 clean` as a user meets them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from support.archive import make_run
from support.cli import forty2, refused

from forty2.cli import main
from forty2.runs.archive.listing import COLUMNS


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three runs in adapters/."""
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("COLUMNS", raising=False)
    folder = tmp_path / "here"
    make_run(folder / "adapters" / "good", mc1=0.5, model="a/model-with-a-long-name-1.5B-Instruct")
    make_run(folder / "adapters" / "half")
    make_run(folder / "adapters" / "more" / "deep", mc1=0.4)
    monkeypatch.chdir(folder)
    return folder


def done(*arguments: str | Path) -> str:
    result = forty2(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def answered(answer: str, *arguments: str) -> str:
    result = CliRunner().invoke(main, list(arguments), input=answer)
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_alone_lists_what_list_lists(here: Path) -> None:
    assert done("runs") == done("runs", "list") == done("runs", "adapters")
    text = done("runs")
    for words in ("good", "more/deep", "finished", "stopped 1/2", "MC1 0.300 → 0.500", "gain"):
        assert words in text
    assert "3 runs" in text and "\x1b" not in text
    assert "good" not in done("runs", "--state", "stopped")
    assert "2 others left out" in done("runs", "--state", "stopped")
    assert "1 other left out" in done("runs", "--state", "finished")
    assert "no runs in adapters/ meet this; 3 others left out" in done("runs", "--tag", "none")


def test_the_result_on_the_own_rows_comes_before_a_benchmark_s(here: Path) -> None:
    summary = here / "adapters" / "good" / "summary.json"
    record = json.loads(summary.read_text())
    for stage, share in zip(record["stages"], (0.5, 0.7, 0.8), strict=True):
        stage["held_out"] = {"pairs right": share, "chat loss": 2.0}
    summary.write_text(json.dumps(record))
    assert "pairs right 0.500 → 0.800" in done("runs")
    for name in ("chat loss", "Chat_Loss", "pairs right"):
        text = done("runs", "--sort", name)
        shown = "pairs right 0.500 → 0.800" if name[0] == "p" else "chat loss 2.000 → 2.000"
        assert shown in text and "_" not in text


def test_a_mistyped_command_is_not_taken_for_a_folder(here: Path) -> None:
    assert "Did you mean 'show'" in refused("runs", "shwo")
    assert "no such folder" in refused("runs", "elsewhere")
    assert "did you mean mc1" in refused("runs", "--sort", "mc11")
    assert "give a day as 2026-11-30" in refused("runs", "--since", "yesterday")
    assert "did you mean adapters/good?" in refused("runs", "show", "god")


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_list_fits_the_terminal(
    width: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    lines = done("runs").splitlines()
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert all(name in text for name in ("run", "state", "good", "more/deep"))
    assert "verdict" in lines[0] and "gain" in text
    assert ("result" in lines[0]) == (width >= 60) and ("phases" in lines[0]) == (width >= 80)
    assert "size" not in lines[0] or "model" in lines[0]


def test_a_pipe_gets_every_column_whole(here: Path) -> None:
    done("runs", "tag", "good", "a-tag-of-some-length-that-no-terminal-of-80-columns-shows")
    head, _, *rows = done("runs").splitlines()
    assert head.split() == [*COLUMNS]
    assert any("model-with-a-long-name-1.5B-Instruct" in row for row in rows)
    assert any("of-80-columns-shows" in row for row in rows)


def test_the_metric_sorted_by_is_shown(here: Path) -> None:
    rows = done("runs", "--sort", "perplexity").splitlines()
    assert "perplexity 33.333 → 20.000" in rows[2] and rows[2].startswith("good")
    assert rows[4].startswith("half") and "perplexity" not in rows[4]


def test_json_has_everything(here: Path) -> None:
    found = json.loads(done("runs", "--json", "--sort", "mc1"))["runs"]
    assert [Path(one["path"]).name for one in found] == ["good", "deep", "half"]
    assert found[0]["metrics"]["mc1"] == 0.5 and found[0]["state"] == "finished"
    shown = json.loads(done("runs", "show", "good", "--json"))
    assert shown == {"schema": "forty2.runs.show/1", **found[0]}


def test_show_prints_the_records_and_notes(here: Path) -> None:
    noted = done("runs", "note", "good", "the rate was too high")
    assert noted == "noted; 1 note in adapters/good/notes.json\n"
    done("runs", "tag", "good", "keep", "shop")
    text = done("runs", "show", "good")
    for words in ("finished, 2 of 2 phases", "sft (sft) → dpo (dpo)", "the rate was too high",
                  "keep, shop", "sums", "fused"):  # fmt: skip
        assert words in text
    assert "--resume" not in text and "with --resume" in done("runs", "show", "half")
    assert done("runs", "tag", "good", "--remove", "keep") == "shop\n"
    assert "the rate was too high" in done("runs", "note", "good")
    assert "--replace needs the TEXT" in refused("runs", "note", "good", "--replace")


def test_compare_shows_settings_statistics_and_replies(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = here / "adapters" / "good" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("rank: 2", "rank: 8"))
    monkeypatch.setenv("COLUMNS", "80")
    text = done("runs", "compare", "good", "deep", "--replies", "1")
    for words in ("adapter.rank", "95% interval", "Verdict:", "gsm8k: How many is 16?",
                  "39 more prompts"):  # fmt: skip
        assert words in text
    replies = text.partition("How many is 16?\n")[2].splitlines()
    assert replies[0].split() == ["adapters/good", "|", "adapters/more/deep"]
    assert replies[1].split("|")[0].strip() == "It is 16."
    assert json.loads(done("runs", "compare", "good", "deep", "--json"))["replies"]
    assert ["adapter.rank", "8", "2"] in [line.split() for line in text.splitlines()]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = done("runs", "compare", "good", "deep").splitlines()
    assert "  adapters/more/deep  2" in narrow


def test_compare_lists_a_part_that_one_run_lacks_in_a_line_and_no_hash(here: Path) -> None:
    file = here / "adapters" / "good" / "recipe.yaml"
    recipe = yaml.safe_load(file.read_text())
    kept = {key: value for key, value in recipe["phases"].items() if key != "dpo"}
    file.write_text(yaml.safe_dump({**recipe, "phases": kept}))
    for name, sha in (("good", "1" * 64), ("deep", "2" * 64)):
        data = (here / "adapters" / ("good" if name == "good" else "more/deep")) / "data.json"
        data.write_text(json.dumps({"sft": {"train": sha}, "dpo": {"train": sha}}))
    text = done("runs", "compare", "good", "deep", "--replies", "0")
    head = text.partition("Measurements")[0]
    assert "phases.dpo: only in adapters/more/deep\n" in head
    assert "phases.sft.data: the same name, but other contents\n" in head
    assert "phases.dpo." not in head and "1111" not in head and "absent" not in head
    every = json.loads(done("runs", "compare", "good", "deep", "--json"))["differences"]
    assert every["phases.dpo.objective"] == ["absent", "dpo"]
    assert every["rows.sft.train"] == [f"'{n * 64}'" for n in "12"]


def test_runs_given_to_compare_are_told_where_runs_are_compared(here: Path) -> None:
    said = "good and deep are runs; compare them with: forty2 runs compare good deep"
    assert said in refused("compare", "good", "deep")
    folders = ("adapters/good", "adapters/more/deep")
    assert f"forty2 runs compare {' '.join(folders)}" in refused("compare", *folders)
    stage = here / "adapters" / "good" / "benchmarks" / "base.json"
    text = refused("compare", "adapters/good", stage)
    assert "adapters/good is a run; give the file of a stage, such as adapters/good/" in text
    assert "benchmarks/fused.json" in text and "no such file" in refused("compare", "x.json", stage)


def test_names_of_folders_cannot_act_on_the_terminal(here: Path) -> None:
    make_run(here / "adapters" / "bad\x1b[31m\u202eno")
    text = done("runs")
    assert "\x1b" not in text and "\u202e" not in text and "bad\\x1b[31m\\u202eno" in text


def test_a_removal_asks_and_a_no_keeps_everything(here: Path) -> None:
    text = answered("n\n", "runs", "remove", "good", "half")
    assert "Remove this and free" in text and "nothing deleted" in text
    assert "stays: " in text and (here / "adapters" / "good").exists()
    assert "Give --yes" in refused("runs", "remove", "half")  # nobody answers
    assert (here / "adapters" / "half").exists()
    assert "removed" in answered("y\n", "runs", "remove", "half")
    assert "freed" in done("runs", "remove", "good", "--yes")
    assert "good" not in done("runs") and "half" not in done("runs")


def test_what_would_be_missed_needs_force(here: Path) -> None:
    used = here / "adapters" / "good" / "phase2_dpo"
    make_run(here / "adapters" / "next", init_from=str(used))
    assert "next goes on from" in refused("runs", "remove", "good", "--yes")
    assert "only copy of the fused model" in refused("runs", "remove", "deep", "--fused", "--yes")
    text = done("runs", "remove", "good", "--yes", "--force")
    assert "warning: " in text and not used.exists()


def test_export_writes_a_zip_and_overwrites_none(here: Path) -> None:
    assert "files" in done("runs", "export", "good", "good.zip", "--adapters", "none")
    assert "exists" in refused("runs", "export", "good", "good.zip")
    with zipfile.ZipFile("good.zip") as archive:
        assert "good/report.html" in archive.namelist()


def test_the_page_links_to_reports_from_where_it_is(here: Path) -> None:
    (here / "adapters" / "good" / "report.html").write_text("")
    (here / "pages").mkdir()
    done("runs", "note", "good", "a <b>thought</b>")
    done("runs", "page", "--out", "pages/index.html", "--sort", "mc1")
    html = (here / "pages" / "index.html").read_text("utf-8")
    assert 'href="../adapters/good/report.html"' in html and html.count("href=") == 1
    assert "a &lt;b&gt;thought" in html and html.index("good") < html.index("deep")
    assert "Missing option '--out'" in refused("runs", "page")


def test_clean_says_what_it_frees_and_asks(here: Path, tmp_path: Path) -> None:
    (model := tmp_path / "cache" / "models" / "small").mkdir(parents=True)
    (model / "weights").write_bytes(b"x" * 5000)
    assert "would free" in done("clean", "--dry-run") and model.exists()
    assert "nothing deleted" in answered("n\n", "clean") and model.exists()
    assert "index" not in done("clean", "models", "--yes") and not model.exists()
    assert "deleted" in done("clean", "--yes")
    assert list((here / "adapters" / "half").glob("work/*/step*"))
    assert "is not one of" in refused("clean", "runs")
