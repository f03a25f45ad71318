"""A card says what its run recorded, in the hub's form, and its owner's text stays."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from support.hub_server import USER, front_matter
from support.runs import short_checks

import forty2
from forty2.export.card import MARK, build_card, is_owners, result_files, write_card
from forty2.export.fusing import fuse
from forty2.export.origin import origin_of_adapter, origin_of_model
from forty2.files import find_damage
from forty2.recipe.paths import path_values

RUN = Path("adapters/mine")
MODEL = Path("fused_models/mine")


def read(file: str) -> Any:
    return json.loads((RUN / file).read_text("utf-8"))


def cells(card: str, title: str) -> list[list[str]]:
    """The rows of the first table below a heading."""
    _, _, rest = card.partition(f"\n{title}\n")
    lines = [line for line in rest.splitlines() if line.strip()]
    start = next(n for n, line in enumerate(lines) if line.startswith("|"))
    found = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found[2:]


@pytest.fixture
def card(work: Path) -> str:
    return build_card("Mine", origin_of_model(MODEL))


def test_the_front_matter_is_in_the_hubs_form(work: Path) -> None:
    data = front_matter(build_card("Mine", origin_of_model(MODEL, base="owner/base")))
    assert (data.base_model, data["base_model_relation"]) == ("owner/base", "finetune")
    assert data.pipeline_tag == "text-generation" and "forty2" in (data.tags or [])
    recorded = next(c for c in read("summary.json")["comparisons"] if c["stage"] == "fused")
    scores = {one.metric_type: one for one in data.eval_results or []}
    assert set(scores) == {"mc1", "mc2", "mc3"}
    for name, one in scores.items():
        assert one.metric_value == round(recorded["metrics"][name]["after"], 4)
        assert one.dataset_type == "truthfulqa/truthful_qa"
        assert one.dataset_args == {
            "questions": 2,
            "sha256": read("summary.json")["questions_sha256"],
        }


def test_a_base_that_is_a_folder_is_no_base_on_the_hub(card: str) -> None:
    assert front_matter(card).base_model is None
    assert "The base is known by a folder's name" in card


def test_results_have_their_intervals_and_the_verdict(card: str) -> None:
    summary = read("summary.json")
    recorded = next(c for c in summary["comparisons"] if c["stage"] == "fused")["metrics"]
    rows = cells(card, "## Results")
    assert [row[0].lower() for row in rows[:2]] == ["mc1", "mc2"]
    for row in rows:
        one = recorded[row[0].lower()]
        assert row[1:5] == [
            f"{one['before']:.4f}",
            f"{one['after']:.4f}",
            f"{one['difference']:+.4f}",
            f"{one['low']:+.4f} to {one['high']:+.4f}",
        ]
        assert row[5].strip("`") == one["verdict"]
    assert f"**Verdict: {summary['verdict']}.**" in card and summary["sentence"] in card


def test_data_have_hashes_rows_and_licences(card: str) -> None:
    hashes = read("data.json")
    assert cells(card, "## Data") == [
        ["sft", "`sft.jsonl`", "6", hashes["sft"]["train"], "unknown"],
        ["dpo", "`dpo.jsonl`", "6", hashes["dpo"]["train"], "unknown"],
    ]


def test_the_recipe_is_whole_but_for_the_folders_of_its_files(card: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)\n```", card, re.DOTALL)
    shown, stored = yaml.safe_load(block), yaml.safe_load((RUN / "recipe.yaml").read_text("utf-8"))
    for at, path in path_values(stored):
        section = stored
        for key in at[:-1]:
            section = section[key]
        section[at[-1]] = Path(path).name
    assert shown == stored


def test_versions_and_hashes_are_those_of_the_run(card: str) -> None:
    rows = {row[0]: row[1].strip("`") for row in cells(card, "## Versions")}
    about = read("run.json")
    assert rows.items() >= about["versions"].items()
    assert rows["model weights, sha256"] == about["model_sha256"]


def test_a_card_of_an_earlier_phase_says_nothing_of_later_ones(work: Path) -> None:
    card = build_card("Mine", origin_of_adapter(RUN / "phase1_sft"))
    assert [row[0] for row in cells(card, "## Data")] == ["sft"]
    assert "trained by SFT on 6 rows." in card and "This stage itself was not measured" in card
    last = build_card("Mine", origin_of_adapter(RUN / "phase2_dpo"))
    assert "trained by SFT on 6 rows, then DPO on 6 rows." in last


def test_a_quantized_copy_says_so(work: Path) -> None:
    card = build_card("Mine", origin_of_model(Path("fused_models/mine-8bit")))
    assert "quantized to 8 bits a weight" in card
    named = build_card("Mine", origin_of_model(Path("fused_models/mine-8bit"), base="me/full"))
    assert front_matter(named)["base_model_relation"] == "quantized"


@pytest.mark.parametrize("folder", ["fused_models/mine", "fused_models/mine-8bit"])
def test_the_readme_of_a_fused_folder_is_its_card(work: Path, folder: str) -> None:
    written = Path(folder, "README.md").read_text("utf-8")
    assert written == build_card(Path(folder).name, origin_of_model(Path(folder)))
    assert "**Verdict" in written


def test_no_card_names_the_machine_or_its_user(work: Path) -> None:
    warned = {"phase": "sft", "step": 1, "warning": f"{work}/rows.jsonl:3 and ~/x/y.jsonl are odd"}
    with (RUN / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(warned) + "\n")
    for folder in (MODEL, Path("fused_models/mine-8bit")):
        card = build_card("Mine", origin_of_model(folder))
        assert "rows.jsonl:3" in card
        assert USER not in card and str(work) not in card and "my work" not in card


def test_text_of_a_run_is_no_markup(work: Path) -> None:
    record = read("summary.json") | {"sentence": "[x](http://evil) <script>"}
    (RUN / "summary.json").write_text(json.dumps(record), "utf-8")
    assert "`[x](http://evil) <script>`" in build_card("a|b <b>", origin_of_model(MODEL))


def test_without_its_run_a_card_says_what_is_not_known(work: Path) -> None:
    RUN.rename("elsewhere")
    card = build_card("Mine", origin_of_model(MODEL))
    assert "The run that made it was not at hand" in card and "Nothing was measured" in card


def test_an_owners_own_text_stays(work: Path) -> None:
    readme = MODEL / "README.md"
    origin = origin_of_model(MODEL)
    readme.write_text("---\nlibrary_name: mlx\n---\n", "utf-8")  # mlx-lm's, which says nothing
    assert not is_owners(MODEL)
    write_card(MODEL, origin)
    assert MARK in readme.read_text("utf-8") and not is_owners(MODEL)
    own = readme.read_text("utf-8").replace(MARK, "My own words.")
    readme.write_text(own, "utf-8")
    assert is_owners(MODEL)
    write_card(MODEL, origin)
    with short_checks():
        fuse(str(work / "inputs" / "model"), RUN / "phase2_dpo", MODEL, progress=forty2.silent)
    assert readme.read_text("utf-8") == own


def test_an_edited_readme_is_no_damage(work: Path) -> None:
    (MODEL / "README.md").write_text("My own words.", "utf-8")
    assert find_damage(MODEL) is None
    (MODEL / "config.json").write_text("{}", "utf-8")
    assert find_damage(MODEL) is not None


@pytest.mark.parametrize(("questions", "files"), [(1319, 1), (1318, 0)])
def test_a_benchmark_with_a_leaderboard_is_in_the_hubs_results_if_all_was_asked(
    work: Path, questions: int, files: int
) -> None:
    summary = read("summary.json")
    summary["tasks"]["gsm8k"] = {"label": "GSM8K", "questions": "gsm8k", "n": questions}
    for comparison in summary["comparisons"]:
        change = comparison["metrics"]["mc1"] | {"before": 0.25, "after": 0.5}
        comparison["metrics"]["flexible"] = change
        comparison["tasks"]["gsm8k"] = {"judged": ["flexible"], "verdict": "gain"}
    (RUN / "summary.json").write_text(json.dumps(summary), "utf-8")
    found = result_files(origin_of_model(MODEL))
    assert len(found) == files
    for path, content in found.items():
        (entry,) = parse_eval_result_entries(yaml.safe_load(content))
        assert (entry.dataset_id, entry.task_id, entry.value) == ("openai/gsm8k", "gsm8k", 50.0)
        assert path.startswith(".eval_results/")
