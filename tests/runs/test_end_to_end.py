"""The main job on the real starter model and real data: a few steps of each phase, to the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from support.runs import short_checks

import forty2
from forty2.cli import main
from forty2.data.build import build
from forty2.data.library import rows
from forty2.export.fusing import fuse
from forty2.files import read_json, write_json
from forty2.model.loading import load
from forty2.runs.folder import read_times
from forty2.runs.pipeline import RunResult
from forty2.runs.planning import plan

SHORT = [
    "phases.sft.steps=2",
    "phases.dpo.steps=3",
    "phases.boost.steps=2",
    "phases.sft.batch_size=2",
    "phases.dpo.batch_size=2",
    "phases.boost.batch_size=2",
    "phases.sft.warmup_steps=0",
    "phases.dpo.warmup_steps=0",
    "phases.boost.warmup_steps=0",
    "adapter.layers=4",
    "phases.sft.eval_every_steps=2",
    "phases.dpo.eval_every_steps=3",
    "phases.boost.eval_every_steps=2",
    "benchmark.n=2",
    "benchmark.tasks=[truthfulqa]",
    "benchmark.each_phase=true",
    "benchmark.questions=probe",
]
DATA = {"sft": "spark-sft", "dpo": "spark-dpo", "boost": "spark-boost"}
"""Built-in set of each phase: smaller than the demo's own, and of these only some rows."""
ROWS, VALID_ROWS = 24, 3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A whole short run."""
    folder = tmp_path_factory.mktemp("end_to_end")
    recipe = forty2.load_recipe(
        "demo", [*SHORT, *first_rows(folder), f"fuse.out={folder / 'fused'}"]
    )
    with short_checks(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("forty2.benchmark.tasks.perplexity.WINDOW", 64)
        patch.setattr("forty2.benchmark.tasks.behaviour.rows", lambda name: rows(name)[::8])
        for name in ("behaviour", "held_out"):
            patch.setattr(f"forty2.benchmark.tasks.{name}.MAX_TOKENS", 8)
        return forty2.run(recipe, run_dir=folder / "run")


def first_rows(folder: Path) -> list[str]:
    """Write the first rows of each phase's set; returns the settings that name the files."""
    settings = []
    for phase, name in DATA.items():
        built = build(name)
        for key, found in (("data", built.train[:ROWS]), ("valid", built.valid[:VALID_ROWS])):
            path = folder / f"{phase}.{key}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in found))
            settings.append(f"phases.{phase}.{key}={path}")
    return settings


def test_every_phase_left_its_adapter_and_its_record(finished: RunResult) -> None:
    for name in ("phase1_sft", "phase2_dpo", "phase3_boost"):
        folder = finished.path / name
        assert sorted(p.name for p in folder.iterdir()) == [
            "SHA256SUMS",
            "adapter_config.json",
            "adapters.safetensors",
            "phase.json",
        ]
    first, second = (
        mx.load(str(finished.path / name / "adapters.safetensors"))
        for name in ("phase1_sft", "phase2_dpo")
    )
    assert isinstance(first, dict) and isinstance(second, dict)
    assert first.keys() == second.keys()
    assert any(float(mx.abs(first[k] - second[k]).max()) > 0 for k in first)


def test_the_metrics_tell_the_story(finished: RunResult) -> None:
    records = [
        json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()
    ]
    dpo = [r for r in records if r["phase"] == "dpo" and "loss" in r]
    assert [r["step"] for r in dpo] == [1, 2, 3]
    assert dpo[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # anchored to the SFT result
    assert {
        "chosen_logps",
        "rejected_logps",
        "chosen_rewards",
        "rejected_rewards",
        "margin",
        "accuracy",
        "kl",
        "lr",
        "grad_norm",
        "tokens_per_s",
        "peak_memory_gb",
    } <= dpo[0].keys()
    boost = next(r for r in records if r["phase"] == "boost" and "loss" in r)
    assert boost["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_a_run_says_at_its_end_what_each_phase_changed_and_how_long_it_took(
    finished: RunResult,
) -> None:
    lines = {line.split("  ")[0]: line for line in finished.outcome.splitlines()}
    assert {"sft", "dpo", "boost", "fused", "measuring", "in all"} <= {*lines}
    assert re.search(r"0\.693 → \d\.\d{3} .* → \d+% .* of 3 .* \d+ s .* MB", lines["dpo"])
    seconds = [record["seconds"] for record in read_times(finished.path)]
    started = datetime.fromisoformat(read_json(finished.path / "run.json")["started"])
    ended = (finished.path / "summary.json").stat().st_mtime
    assert sum(seconds) == pytest.approx(ended - started.timestamp(), rel=0.3)
    report = (finished.path / "report.md").read_text("utf-8")
    assert "| training dpo |" in report and "| in all |" in report


def test_the_lints_warnings_are_kept_by_phase(finished: RunResult) -> None:
    assert [*read_json(finished.path / "lint.json")] == ["sft", "dpo", "boost"]


def test_all_stages_are_measured_on_identical_items(finished: RunResult) -> None:
    stages = [s.name for s in finished.stages]
    assert stages == ["base", "phase1_sft", "phase2_dpo", "phase3_boost", "fused"]
    questions = [[i.record["question"] for i in s["truthfulqa"].items] for s in finished.stages]
    assert all(q == questions[0] for q in questions) and len(questions[0]) == 2
    boost, fused = (s["truthfulqa"].items for s in finished.stages[-2:])
    for one, other in zip(boost, fused, strict=True):
        np.testing.assert_allclose(
            one.record["mc2"]["loglik"], other.record["mc2"]["loglik"], atol=2e-3
        )
    assert finished.verdict in ("gain", "no tax", "tax", "inconclusive", "no change")


def test_the_adapter_works_in_stock_mlx_lm(finished: RunResult, starter_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mlx_lm",
        "generate",
        "--model",
        str(starter_path),
        "--adapter-path",
        str(finished.path / "phase2_dpo"),
        "--prompt",
        "Say hello.",
        "--max-tokens",
        "5",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_fused_model_is_base_and_adapter_in_stock_mlx_lm(
    finished: RunResult, starter_path: Path
) -> None:
    import mlx_lm

    assert finished.fused is not None
    model, tokenizer = mlx_lm.load(str(finished.fused))[:2]
    adapted = load(str(starter_path), finished.path).model
    ids = mx.array([tokenizer.encode("Water boils at a lower temperature on a mountain.")])
    np.testing.assert_allclose(np.asarray(model(ids)), np.asarray(adapted(ids)), atol=2e-3)
    base = load(str(starter_path)).model
    assert float(mx.abs(base(ids) - adapted(ids)).max()) > 1e-2
    names = {p.name for p in finished.fused.iterdir()}
    assert {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    } <= names


def test_the_report_is_one_safe_file(finished: RunResult) -> None:
    html = finished.report.read_text("utf-8")
    assert html.count("<svg") >= 8
    assert not re.search(r"<script|src=", html)
    anchors = set(re.findall(r'href="#([^"]*)"', html))
    assert all(f'id="{anchor}"' in html for anchor in anchors)
    links = [link for link in re.findall(r"href=[^ >]*", html) if not link.startswith('href="#')]
    assert links and all(re.fullmatch(r'href="[\w./-]+"', link) for link in links), links
    assert all((finished.path / link[6:-1]).exists() for link in links)
    assert "phase3_boost" in html and finished.verdict in html
    markdown = finished.report.with_suffix(".md").read_text("utf-8")
    assert "no training row holds a question of TruthfulQA" in markdown
    assert markdown.count("\n| ") >= 6


def test_the_report_escapes_what_the_model_said(finished: RunResult) -> None:
    path = finished.path / "benchmarks" / "fused.json"
    measured, before = read_json(path), path.read_bytes()
    item = next(i for i in measured["behaviour"]["items"] if "answer" in i)
    item["answer"] = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    write_json(path, measured)
    result = CliRunner().invoke(main, ["report", str(finished.path)])
    path.write_bytes(before)
    assert result.exit_code == 0
    html = finished.report.read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in html and "<script>" not in html and "<img" not in html


def test_a_finished_run_resumes_to_itself_and_is_not_started_over(finished: RunResult) -> None:
    recipe = forty2.load_recipe(finished.path / "recipe.yaml")
    adapters = (finished.adapter / "adapters.safetensors").read_bytes()
    again = forty2.run(recipe, run_dir=finished.path, resume=True)
    assert again.table == finished.table
    assert (finished.adapter / "adapters.safetensors").read_bytes() == adapters
    from forty2.errors import RunError

    with pytest.raises(RunError, match="holds a run already"):
        forty2.run(recipe, run_dir=finished.path)


def test_compare_and_benchmark_from_the_command_line(
    finished: RunResult, starter_path: Path, tmp_path: Path
) -> None:
    results = []
    for name, more in (("base", []), ("tuned", ["--adapter", str(finished.path)])):
        out = tmp_path / f"{name}.json"
        command = [
            "benchmark",
            "truthfulqa",
            "-m",
            str(starter_path),
            "-q",
            "probe",
            "--n",
            "2",
            "-o",
            str(out),
        ]
        result = CliRunner().invoke(main, command + more)
        assert result.exit_code == 0, result.output
        results.append(out)
    compared = CliRunner().invoke(main, ["compare", *map(str, results)])
    assert compared.exit_code == 0
    assert any(
        word in compared.output for word in ("gain", "no tax", "tax", "inconclusive", "no change")
    )


def test_quantising_says_what_is_left_of_the_adapter(
    finished: RunResult, starter_path: Path, tmp_path: Path
) -> None:
    fused = fuse(str(starter_path), finished.adapter, tmp_path / "gold", quantize=8)
    assert fused.quantized is not None
    assert fused.quantized.path == tmp_path / "gold-8bit"
    assert fused.quantized.cosine is not None and 0 < fused.quantized.cosine <= 1
    assert fused.parity_kl < 1e-6 < fused.adapter_kl
    assert load(str(fused.quantized.path)).quantized


def test_the_plan_knows_what_the_run_did(finished: RunResult) -> None:
    recipe = forty2.load_recipe(finished.path / "recipe.yaml")
    planned = plan(recipe, quick=True)
    record = read_json(finished.path / "phase2_dpo" / "phase.json")
    dpo = planned.phases[1]
    assert (dpo.steps, dpo.rows, dpo.valid_rows) == (record["steps"], record["rows"], 3)
    assert dpo.exposures == pytest.approx(record["exposures"], abs=1e-3)
    records = [
        json.loads(line) for line in (finished.path / "metrics.jsonl").read_text().splitlines()
    ]
    evaluations = [r for r in records if r["phase"] == "dpo" and "valid_loss" in r]
    assert dpo.evaluations == len(evaluations)
    saved: Any = mx.load(str(finished.adapter / "adapters.safetensors"))
    assert planned.trainable == sum(value.size for value in saved.values())
    adapters = [path.stat().st_size for path in finished.path.glob("phase*/adapters.safetensors")]
    assert planned.disk.kept == pytest.approx(sum(adapters), rel=0.02)
    assert finished.fused is not None
    weights = (finished.fused / "model.safetensors").stat().st_size
    assert [*planned.disk.fused.values()] == [pytest.approx(weights, rel=0.02)]
