"""The card of a model or an adapter: what it is, what was measured, and how to make it again.

It is the README.md of a fused folder and of what is pushed to the hub. Its front matter has the hub's
keys. Every text of a run is escaped, and no path of this machine is in it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import yaml
from huggingface_hub import EvalResult, ModelCardData

from forty2.data.sources import BUILTIN, HUB
from forty2.errors import ModelError, RunError
from forty2.export.origin import Origin
from forty2.export.private_paths import machine_paths, without_paths
from forty2.files import CARD, JsonObject, read_json, write_text
from forty2.metric_names import metric_name
from forty2.model.adapter import trained_system
from forty2.recipe.paths import path_values
from forty2.report import run_sentences, run_tables
from forty2.report.json_records import visible
from forty2.report.markdown import Table, code_lines, escape, table_lines
from forty2.report.metrics import interval, signed
from forty2.report.records import read_run
from forty2.report.run_types import HELD_OUT, ComparisonRecord, Run
from forty2.run_paths import finished_phases, phase_label

MARK = "<!-- Written by forty2, which writes it anew; remove this line to keep your own text. -->"
"""Last line of a card of ours. Without it, the file is its owner's."""
_BUILTIN_LICENCE = "Apache-2.0 (part of forty2)"
_UNKNOWN = "unknown"
_DATASETS = {
    "truthfulqa": "truthfulqa/truthful_qa",
    "mmlu": "cais/mmlu",
    "gsm8k": "openai/gsm8k",
    "humaneval": "openai/openai_humaneval",
}
"""The hub's data set of each benchmark."""
_LIBRARIES = {"model": "transformers", "quantized": "mlx", "adapter": "mlx"}
RESULTS = {"gsm8k": (".eval_results/gsm8k.yaml", "gsm8k", 1319)}
"""Benchmarks that the hub has a leaderboard for: the file, its task, and its number of questions."""


def write_card(folder: Path, origin: Origin, *, name: str | None = None) -> None:
    """Write the card into a model's folder, unless the README there is its owner's own.

    Args:
        name: its heading. Default: the folder's name.
    """
    if not is_owners(folder):
        write_text(folder / CARD, build_card(name or folder.name, origin))


def is_owners(folder: Path) -> bool:
    """Return whether a folder's README is its owner's own: neither a card of ours nor mlx-lm's empty one."""
    try:
        text = (folder / CARD).read_text("utf-8")
    except (OSError, ValueError):
        return False
    _, front, rest = text.partition("---\n")
    body = rest.partition("---\n")[2] if front else text
    return MARK not in text and bool(body.strip())


def build_card(name: str, origin: Origin, *, repository: str | None = None) -> str:
    """Write the card of a model or an adapter.

    Args:
        name: its heading.
        repository: its name on the hub. Default: it is not pushed yet.
    """
    run, records = _read(origin)
    lines = [
        "---",
        _front_matter(name, origin, run),
        "---",
        "",
        f"# {escape(name)}",
        "",
        _what_it_is(origin, run),
    ]
    if run is not None:
        lines += _results(origin, run)
        lines += _data(origin, run, records)
    lines += _limits(origin, run)
    lines += _use(origin, repository)
    if run is not None:
        lines += _repetition(run)
    paths = machine_paths(*records.values(), origin.base.name)
    return without_paths("\n".join([*lines, ""]), paths) + f"\n{MARK}\n"


def _read(origin: Origin) -> tuple[Run | None, dict[str, JsonObject]]:
    """Read the run that made it, if it is here and readable, and its records that name paths."""
    if origin.run is None:
        return None, {}
    try:
        run = read_run(origin.run)
        recipe = visible(yaml.safe_load(run.recipe))
        records = {"recipe": recipe if isinstance(recipe, dict) else {}}
        for file in ("run.json", "data.json", "fused.json"):
            if (origin.run / file).exists():
                records[file] = read_json(origin.run / file)
    except (RunError, yaml.YAMLError, ValueError, RecursionError):
        return None, {}
    return _up_to(run, origin.stage), records


def _up_to(run: Run, stage: str) -> Run:
    """Leave out the phases after the one of this stage, and what was logged of them."""
    labels = [phase_label(n, phase.name) for n, phase in enumerate(run.phases, 1)]
    if stage not in labels:
        return run
    phases = run.phases[: labels.index(stage) + 1]
    names = {phase.name for phase in phases}
    log = [line for line in run.log if line.phase in names]
    return dataclasses.replace(run, phases=phases, log=log)


# --- front matter ---


def _front_matter(name: str, origin: Origin, run: Run | None) -> str:
    """Write the metadata in the hub's form, as YAML."""
    base = origin.base
    comparison = _comparison(origin, run)
    results = _eval_results(run, comparison) if run is not None and comparison is not None else []
    hub_sets = [source.removeprefix(HUB) for _, source in _sources(run) if source.startswith(HUB)]
    data = ModelCardData(
        base_model=base.hub,
        license=base.licence,
        library_name="peft" if origin.peft else _LIBRARIES[origin.kind],
        pipeline_tag="text-generation",
        tags=["forty2", "mlx", *(["lora"] if origin.kind == "adapter" else [])],
        datasets=[source.partition("#")[0].partition(":")[0] for source in hub_sets] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    if base.hub is not None:
        data["base_model_relation"] = origin.relation
    return data.to_yaml(
        original_order=["base_model", "base_model_relation", "license", "library_name"]
    )


def _eval_results(run: Run, comparison: ComparisonRecord) -> list[EvalResult]:
    """List the scores of the benchmarks, one for each metric."""
    found = []
    for task, verdict in comparison.tasks.items():
        record = run.tasks.get(task)
        if task == HELD_OUT or record is None:
            continue
        for metric in verdict.metrics:
            change = comparison.changes.get(metric)
            if change is None or change.after is None or not math.isfinite(change.after):
                continue
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=_DATASETS.get(task, task),
                    dataset_name=record.label,
                    dataset_args={"questions": record.n, "sha256": record.questions_sha256},
                    metric_type=metric,
                    metric_name=f"{metric_name(metric)}, change from the base {signed(change)} "
                    f"(95% interval {interval(change)})",
                    metric_value=round(change.after, 4),
                )
            )
    return found


def result_files(origin: Origin) -> dict[str, bytes]:
    """Write the scores of benchmarks that the hub has a leaderboard for, if all questions were asked.

    Returns:
        The contents of the files, by their path on the hub.
    """
    run, _ = _read(origin)
    comparison = _comparison(origin, run)
    files = {}
    for task, (path, task_id, questions) in RESULTS.items():
        record = run.tasks.get(task) if run is not None else None
        if record is None or comparison is None or record.n != questions:
            continue
        metrics = comparison.tasks[task].metrics if task in comparison.tasks else []
        after = comparison.changes[metrics[0]].after if metrics else None
        if after is not None and run is not None:
            entry = {
                "dataset": {"id": _DATASETS[task], "task_id": task_id},
                "value": round(100 * after, 2),
                "date": run.started[:10],
                "notes": f"forty2 {version('forty2')}, {metric_name(metrics[0])}",
            }
            files[path] = yaml.safe_dump([entry], sort_keys=False).encode()
    return files


# --- what it is ---


def _what_it_is(origin: Origin, run: Run | None) -> str:
    """Say in a few sentences what the folder holds."""
    base = f"`{origin.base.name}`" if origin.base.hub else escape(origin.base.name)
    if origin.relation == "quantized":
        return f"{base}, quantized to {origin.bits} bits a weight."
    phases = run.phases if run is not None else []
    trained = ", then ".join(f"{p.objective.upper()} on {p.rows:,} rows" for p in phases)
    after = f", trained by {trained}" if trained else ""
    if origin.kind == "adapter":
        form = "PEFT's" if origin.peft else "mlx-lm's"
        return f"An adapter for {base}, in {form} form{after}. It is used with its base."
    merged = f"{base} with an adapter merged into its weights in full precision{after}."
    if origin.kind == "quantized":
        merged = f"{merged[:-1]}; the result was then quantized to {origin.bits} bits a weight."
    if origin.base.quantized_start:
        merged += " Training began with the 4-bit weights of the base's GGUF file, dequantized."
    return merged


def _comparison(origin: Origin, run: Run | None) -> ComparisonRecord | None:
    """Return the comparison of this stage with the base; None: it was not measured."""
    comparisons = run.comparisons if run is not None else []
    return next((one for one in comparisons if one.stage == origin.stage), None)


# --- results ---


def _results(origin: Origin, run: Run) -> list[str]:
    """Return the verdict and the tables of what was measured."""
    lines = ["", "## Results", ""]
    comparison, summary = _comparison(origin, run), run.summary
    if summary is None or not run.stages:
        return [*lines, "The run measured nothing."]
    if summary.verdict:
        meaning = run_sentences.meaning(summary, escape)
        lines += [f"**Verdict: {escape(summary.verdict)}.** {meaning}"]
        last = run.comparisons[-1].stage if run.comparisons else ""
        if last != origin.stage:
            lines += [
                "",
                f"The verdict is on the last stage that the run measured, {escape(last)}.",
            ]
    if comparison is None:
        return [*lines, "", "This stage itself was not measured."]
    head = ("Score", "Base", "This", "Change", "95% interval", "Verdict")
    rows = [
        (
            metric_name(name),
            "–" if change.before is None else f"{change.before:.4f}",
            "–" if change.after is None else f"{change.after:.4f}",
            signed(change),
            interval(change),
            change.verdict,
        )
        for name, change in comparison.changes.items()
    ]
    lines += ["", *table_lines(Table(head, rows)), ""]
    lines += [
        "Changes are paired, item by item. Intervals and verdicts are as the run recorded them."
    ]
    for title, table, note in (
        ("On held-out rows of its own data", run_tables.held_out(run), run_tables.held_out_note),
        ("Other measurements", run_tables.stages(run), run_tables.stages_note),
    ):
        shown = Table(table.head, [row for row in table.rows if row[0] in ("base", origin.stage)])
        if len(shown.rows) > 1:
            lines += ["", f"### {title}", "", *table_lines(shown), "", note(shown)]
    return lines


# --- data ---


class _Source(NamedTuple):
    phase: str
    source: str


def _sources(run: Run | None) -> list[_Source]:
    """List the data of each phase as its recipe names it."""
    try:
        recipe = visible(yaml.safe_load(run.recipe)) if run is not None else {}
        return [
            _Source(str(name), str(phase["data"]))
            for name, phase in recipe["phases"].items()
            if phase.get("data") is not None
        ]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return []


def _data(origin: Origin, run: Run, records: dict[str, JsonObject]) -> list[str]:
    """Return the table of the training data, with hashes and licences."""
    hashes, rows = records.get("data.json", {}), []
    finished = {phase.name: phase for phase in run.phases}
    for name, source in _sources(run):
        if name not in finished:
            continue
        found = hashes.get(name)
        digest = found.get("train") if isinstance(found, dict) else None
        named = source if source.startswith((BUILTIN, HUB)) else Path(source).name
        licence = _BUILTIN_LICENCE if source.startswith(BUILTIN) else _UNKNOWN
        rows.append((name, named, f"{finished[name].rows:,}", str(digest or "–"), licence))
        rows += [
            (name, f"replayed: {Path(r.name).name}", f"{r.rows:,}", "–", _UNKNOWN)
            for r in finished[name].replayed
        ]
    head = ("Phase", "Data", "Rows", "sha256 of the rows", "Licence")
    lines = ["", "## Data", "", *table_lines(Table(head, rows))]
    if any(row[-1] == _UNKNOWN for row in rows):
        lines += [
            "",
            "A licence is unknown where forty2 was not told one. No row is published here.",
        ]
    for line in run_sentences.contamination(run, escape):
        lines += ["", line]
    return lines


# --- limits ---


def _limits(origin: Origin, run: Run | None) -> list[str]:
    """List what is not known, and what to look out for."""
    measured = run is not None and bool(run.stages)
    lines = [
        "Only what is in the tables above was measured. Nothing else is known about its replies, their "
        "safety included."
        if measured
        else "Nothing was measured: it may be better or worse than its base."
    ]
    if run is not None:
        lines += run_sentences.warnings(run, escape)
    else:
        lines.append(
            "The run that made it was not at hand: data, recipe and results are not known."
        )
    if origin.base.licence is None:
        lines.append("The licence of the base is not recorded: look at the base's own page.")
    if origin.base.hub is None:
        lines.append("The base is known by a folder's name and checksum only.")
    return ["", "## Limits", "", *(f"- {line}" for line in lines)]


# --- use ---


def _use(origin: Origin, repository: str | None) -> list[str]:
    """Return the commands that load it."""
    place = repository or "OWNER/NAME"
    name = place.partition("/")[2]
    base = origin.base.hub or "BASE"
    commands, python = [f"forty2 pull {place}"], list[str]()
    if origin.kind != "adapter":
        commands += [
            f"forty2 chat fused_models/{name}",
            f"mlx_lm.generate --model {place} --prompt Hi",
        ]
    else:
        commands.append(f"forty2 chat {base} --adapter adapters/{name}")
        if origin.peft:
            python = _peft_code(base, place)
        else:
            commands.append(
                f"mlx_lm.generate --model {base} --adapter-path adapters/{name} --prompt Hi"
            )
    lines = ["", "## Use", "", *code_lines("\n".join(commands), ""), *python]
    system = _system(origin)
    if system is not None:
        lines += [
            "",
            "Most of its training rows had this system message:",
            "",
            *code_lines(system, ""),
        ]
    return lines


def _peft_code(base: str, place: str) -> list[str]:
    """Return the lines of Python that load an adapter of PEFT."""
    code = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = AutoModelForCausalLM.from_pretrained({base!r})",
        f"model = PeftModel.from_pretrained(base, {place!r})",
        f"tokenizer = AutoTokenizer.from_pretrained({place!r})",
    ]
    return ["", *code_lines("\n".join(code), "python")]


def _system(origin: Origin) -> str | None:
    """Return the system message of most training rows; None: there is none."""
    if origin.run is None:
        return None
    phases = list(finished_phases(origin.run))
    own = [phase for phase in phases if phase.name == origin.stage] or phases[-1:]
    try:
        return trained_system(own[0]) if own else None
    except ModelError:
        return None


# --- how to repeat it ---


def _repetition(run: Run) -> list[str]:
    """Return recipe, commands and versions."""
    lines = [
        "",
        "## Training",
        "",
        *table_lines(run_tables.phases(run)),
        "",
        run_tables.PHASES_NOTE,
    ]
    lines += [
        "",
        "## Make it again",
        "",
        "Save the recipe beside the data that it names, then:",
        "",
    ]
    lines += code_lines(
        f"pip install forty2=={run.provenance.versions.get('forty2', version('forty2'))}\n"
        "forty2 run recipe.yaml",
        "",
    )
    lines += ["", "The run's data.json must then hold the hashes above.", ""]
    lines += code_lines(_portable_recipe(run.recipe), "yaml")
    return [*lines, "", "## Versions", "", *table_lines(run_tables.origin(run))]


def _portable_recipe(text: str) -> str:
    """Return a recipe whose paths are the names of files alone."""
    tree = visible(yaml.safe_load(text))
    places: Sequence[tuple[tuple[str | int, ...], str]] = list(path_values(tree))
    for at, path in places:
        section = tree
        for key in at[:-1]:
            section = section[key]
        if at != ("model",) or Path(path).is_absolute() or ".." in Path(path).parts:
            section[at[-1]] = Path(path).name or path
    dumped: str = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)
    return dumped
