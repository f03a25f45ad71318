"""A run's report, from what its directory holds: Markdown, and one self-contained HTML file.

Whatever a model, a data row or a file name says is text here. Characters that would hide or turn
round what stands beside them are spelled out; the HTML is made by an escaping template and forbids
itself scripts and requests; in Markdown, what could be markup is a code span.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from forty2.errors import RunError
from forty2.files import read_json, refuse_links, write_text
from forty2.report.charts import Point, change_bars, interval_chart, line_chart

SERIES = (
    ("Loss", ("loss", "valid_loss")),
    ("Margin (β h)", ("margin", "valid_margin")),
    ("Rewards", ("chosen_rewards", "rejected_rewards")),
    ("Pair accuracy", ("accuracy", "valid_accuracy")),
    ("KL to the phase's start, a token", ("kl", "valid_kl")),
    ("Eval prompts answered as expected", ("valid_passed",)),
    ("Gradient norm", ("grad_norm",)),
)
Quote = Callable[[Any], str]
"""Text from a run, as it is put into a line of a report."""
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069\ufeff"
    r"\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Controls, overrides of direction, lone surrogates and what has no width; lines and tabs stay."""


def write_report(run: Path) -> Path:
    """Write RUN/report.md and RUN/report.html.

    Returns:
        The HTML file.

    Raises:
        RunError: this is no run directory, a damaged one, or one with links that lead out of it.
    """
    refuse_links(run)
    try:
        facts = _seen(_gather(run))
        markdown, page = _markdown(facts), _html(facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(
            f"{run}: damaged, or written by another release ({error!r}); go on with --resume, "
            "which reports again, or run anew"
        ) from error
    write_text(run / "report.md", markdown)
    html = run / "report.html"
    write_text(html, page)
    return html


def notices(run: Path) -> list[str]:
    """What a run's owner should look at, a line each: as its report has it, fit for a terminal."""
    facts = _seen(_gather(run))
    found = []
    for phase in facts["phases"]:
        for what, origins in (
            ("rows are dropped, too long for max_length", phase["dropped"]),
            ("prompts lost their beginning to max_length", phase["shortened"]),
        ):
            if origins:
                found.append(f"{phase['name']}: {len(origins):,} {what} (first: {origins[0]})")
    return [*found, *_warnings(facts), *(facts["fused"] or {}).get("warnings", [])]


def _gather(run: Path) -> dict[str, Any]:
    if not (run / "run.json").exists():
        raise RunError(f"{run}: no run here (run.json is missing)")
    metrics: list[dict[str, Any]] = []
    if (run / "metrics.jsonl").exists():
        lines = (run / "metrics.jsonl").read_text("utf-8").split("\n")[:-1]
        metrics = [json.loads(line) for line in lines]
    phases = [read_json(path) for path in sorted(run.glob("phase*/phase.json"))]
    # A phase that was trained anew logged behind the later ones.
    order = [phase["name"] for phase in phases]
    metrics.sort(key=lambda r: order.index(r["phase"]) if r["phase"] in order else len(order))
    summary = read_json(run / "summary.json") if (run / "summary.json").exists() else {}
    return {
        "run": read_json(run / "run.json"),
        "recipe": (run / "recipe.yaml").read_text("utf-8"),
        "phases": phases,
        "summary": summary,
        "stages": summary.get("stages", []),
        "comparisons": summary.get("comparisons", []),
        "fused": read_json(run / "fused.json") if (run / "fused.json").exists() else None,
        "metrics": metrics,
        "leaks": _leaks(run, summary),
    }


def _seen(value: Any) -> Any:
    """The same JSON, in which every character of every text can be seen."""
    if isinstance(value, str):
        return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], value)
    if isinstance(value, Mapping):
        return {_seen(key): _seen(held) for key, held in value.items()}
    return [_seen(held) for held in value] if isinstance(value, list) else value


def _leaks(run: Path, summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the base and the last stage answered to the held-out factual prompts."""
    names = [stage["stage"] for stage in summary.get("stages", [])]
    if len(names) < 2:
        return []
    # Looked up among what is there: a name in a file must not lead to another folder.
    results = {path.stem: path for path in (run / "benchmarks").glob("*.json")}
    first, last = (
        {
            item["id"]: item
            for item in read_json(results[name.replace(" ", "-")])["behaviour"]["items"]
        }
        for name in (names[0], names[-1])
    )
    return [
        {
            "id": key,
            "before": item["answer"],
            "after": last[key]["answer"],
            "before_leak": item["leak"],
            "after_leak": last[key]["leak"],
        }
        for key, item in first.items()
        if "leak" in item and key in last
    ]


def _markdown(facts: Mapping[str, Any]) -> str:
    run, summary = facts["run"], facts["summary"]
    lines = [
        f"# {_md(run['name'])}",
        "",
        f"Model {_md(run['model'])}, started {_md(run['started'])}.",
        "",
    ]
    if summary.get("verdict"):
        lines += [f"**{_md(summary['verdict'])}** ({_md(summary['questions'])})", ""]
    if facts["stages"]:
        lines += [_md_row(_STAGE_HEAD), _md_row(["---"] * len(_STAGE_HEAD))]
        for stage in facts["stages"]:
            name, *figures = _stage_row(stage)
            lines.append(_md_row([_md(name), *figures]))
        lines += ["", _STAGE_NOTE, ""]
    for comparison in facts["comparisons"]:
        against = "; ".join(_comparison_lines(comparison, _md))
        lines += [f"- base against {_md(comparison['stage'])}: {against}"]
    lines += [f"- {line}" for line in _contamination_lines(summary, _md)]
    lines += ["", "## Phases", ""]
    for phase in facts["phases"]:
        lines.append(f"- {_phase_line(phase, _md)}")
    lines += [f"- warning: {line}" for line in _warnings(facts, _md)]
    if facts["fused"]:
        lines += ["", "## Fused", "", *(f"- {line}" for line in _fused_lines(facts["fused"], _md))]
    versions = ", ".join(f"{_md(key)} {_md(value)}" for key, value in run["versions"].items())
    lines += [
        "",
        "## What it takes to believe it",
        "",
        f"- {versions}",
        f"- model weights sha256 {_md(run['model_sha256'])}",
    ]
    if summary.get("questions_sha256"):
        lines.append(f"- questions sha256 {_md(summary['questions_sha256'])}")
    recipe = facts["recipe"].rstrip()
    fence = _fence(recipe, 3)
    return "\n".join([*lines, "", f"{fence}yaml", recipe, fence, ""])


def _md(value: Any) -> str:
    """Text for a line of Markdown: a code span, if anything in it could be markup or a link."""
    text = " ".join(str(value).split())
    if re.fullmatch(r"[\w ()+-]*", text):
        return text
    fence = _fence(text, 1)
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _fence(text: str, least: int) -> str:
    """Backticks that no run of backticks in the text can end."""
    return "`" * max(least, *(len(run) + 1 for run in re.findall("`+", text)), 0)


_STAGE_HEAD = ["stage", "MC1", "MC2", "leaks", "prefers", "margin", "perplexity", "KL"]
_STAGE_NOTE = (
    "Leaks: share of plain factual prompts answered with needless hedging. Prefers: share of held-out "
    "prompts whose good answer is likelier than the bad one; margin: by how much, in nats a token. KL: from the base, "
    "in nats a token."
)


def _stage_row(stage: Mapping[str, Any]) -> list[str]:
    return [
        stage["stage"],
        f"{stage['mc1']:.3f}",
        f"{stage['mc2']:.3f}",
        f"{stage['leak_rate']:.1%}",
        f"{stage['preference']:.1%}",
        f"{stage['margin']:+.3f}",
        f"{stage['perplexity']:.2f}",
        f"{stage['kl']:.2g}",
    ]


def _comparison_lines(comparison: Mapping[str, Any], quote: Quote = str) -> list[str]:
    """What the verdict is over; the metrics beside it are in summary.json."""
    return [
        f"{quote(name.upper())} {one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f}; "
        f"p {one['p_holm']:.2g}, corrected), {quote(one['verdict'])}"
        for name, one in comparison["metrics"].items()
        if name in comparison["judged"]
    ]


def _warnings(facts: Mapping[str, Any], quote: Quote = str) -> list[str]:
    return [quote(record["warning"]) for record in facts["metrics"] if "warning" in record]


def _contamination_lines(summary: Mapping[str, Any], quote: Quote = str) -> list[str]:
    """What training rows share with the benchmark, and the last comparison without it."""
    found = summary.get("contamination")
    if not found:
        return []
    if not found["questions"]:
        return ["no training row holds a question of the benchmark"]
    said = f"{found['questions']:d} questions of the benchmark are in training rows (contamination.json)"
    if not found["comparisons"]:
        return [said]
    last = found["comparisons"][-1]
    against = "; ".join(_comparison_lines(last, quote))
    return [f"{said}; without them, base against {quote(last['stage'])}: {against}"]


def _phase_line(phase: Mapping[str, Any], quote: Quote = str) -> str:
    text = (
        f"{quote(phase['name'])} ({quote(phase['objective'])}): {phase['steps']:d} steps over "
        f"{phase['rows']:d} rows, each seen {phase['exposures']:.2f} times; adapter of step "
        f"{phase['kept_step']:d}"
    )
    if phase["dropped"]:
        text += f"; dropped as too long: {', '.join(map(quote, phase['dropped']))}"
    if phase["shortened"]:
        text += f"; prompts shortened: {len(phase['shortened'])}"
    return text


def _fused_lines(fused: Mapping[str, Any], quote: Quote = str) -> list[str]:
    lines = [
        f"{quote(fused['path'])}: KL {fused['parity_kl']:.1e} a token from base + adapter, which is "
        f"{fused['adapter_kl']:.1e} from base",
    ]
    if fused["quantised"]:
        quantised = fused["quantised"]
        lines.append(
            f"{quote(quantised['path'])} ({quantised['bits']:d} bits): cosine {quantised['cosine']:.3f} of "
            f"the intended change kept, KL {quantised['kl']:.1e} a token from the fused model"
        )
    return lines + [f"warning: {quote(warning)}" for warning in fused["warnings"]]


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _charts(facts: Mapping[str, Any]) -> dict[str, list[str]]:
    """SVG by section."""
    charts: dict[str, list[str]] = {"TruthfulQA": []}
    for name in ("mc1", "mc2"):
        points = [
            Point(
                s["stage"],
                s[name],
                s[name] - 1.96 * s["stderr"][name],
                s[name] + 1.96 * s["stderr"][name],
            )
            for s in facts["stages"]
        ]
        charts["TruthfulQA"].append(interval_chart(f"{name.upper()} with 95% interval", points))
        changes = [
            Point(
                c["stage"],
                c["metrics"][name]["difference"],
                c["metrics"][name]["low"],
                c["metrics"][name]["high"],
            )
            for c in facts["comparisons"]
        ]
        charts["TruthfulQA"].append(
            interval_chart(f"{name.upper()}: paired change from base", changes, zero=True)
        )
    told = [s for s in facts["stages"] if s.get("calibration")]
    if told:
        lines = {
            f"{s['stage']} (error {s['calibration']['ece']:.2f})": [
                (b["confidence"], b["accuracy"]) for b in s["calibration"]["bins"]
            ]
            for s in (told[0], told[-1])
        }
        title = "How often MC1's first choice is right, by how sure the model is of it"
        charts["TruthfulQA"].append(line_chart(title, {**lines, "ideal": [(0.0, 0.0), (1.0, 1.0)]}))
    if facts["comparisons"]:
        by_category = sorted(facts["comparisons"][-1]["categories"].items(), key=lambda kv: -kv[1])
        charts["TruthfulQA"].append(change_bars("MC2 change by category", by_category))
    for phase in dict.fromkeys(record["phase"] for record in facts["metrics"]):
        records = [record for record in facts["metrics"] if record["phase"] == phase]
        charts[f"Phase {phase}"] = [
            line_chart(
                title,
                {key: [(r["step"], float(r[key])) for r in records if key in r] for key in keys},
            )
            for title, keys in SERIES
        ]
    return {section: [svg for svg in svgs if svg] for section, svgs in charts.items() if any(svgs)}


def _html(facts: Mapping[str, Any]) -> str:
    source = (resources.files(__package__) / "report.html.jinja").read_text("utf-8")
    template = Environment(autoescape=True).from_string(source)
    return template.render(
        run=facts["run"],
        recipe=facts["recipe"],
        summary=facts["summary"],
        head=_STAGE_HEAD,
        rows=[_stage_row(stage) for stage in facts["stages"]],
        note=_STAGE_NOTE,
        comparisons=[(c["stage"], _comparison_lines(c)) for c in facts["comparisons"]],
        contamination=_contamination_lines(facts["summary"]),
        phases=[_phase_line(phase) for phase in facts["phases"]],
        warnings=_warnings(facts),
        fused=_fused_lines(facts["fused"]) if facts["fused"] else [],
        charts=_charts(facts),
        leaks=facts["leaks"],
    )
