"""The parts of docs/results.md that are written from the file of figures, so that they cannot drift.

    python benchmarks/gold_master/results_page.py        # writes them anew; a test compares them

A part stands between `<!-- from the figures: NAME -->` and `<!-- end -->`; the rest is written by hand.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "results.md"
FIGURES = ROOT / "benchmarks" / "forty2-spark-smollm2.json"
PART = re.compile(r"(<!-- from the figures: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SHOWN = {"sft": "SFT", "dpo": "DPO", "kto": "KTO"}
"""Names of phases in sentences, where they are not as in the recipe."""
Figures = Mapping[str, Any]


def written(page: str, figures: Figures) -> str:
    """Return the page with its parts written anew."""
    return PART.sub(lambda found: f"{found[1]}{PARTS[found[2]](figures)}\n{found[3]}", page)


# --- the parts ------------------------------------------------------------------------------------


def stages(figures: Figures) -> str:
    """Write what was measured on, and a table of every stage with each seed."""
    seeds = list(figures["seeds"].values())
    prompts, texts = (
        figures["pooled"]["variants"]["base"][m]["n"] for m in ("prefers", "log p of texts")
    )
    asked = (
        f"The recipe `{figures['recipe']}` on {figures['versions']['device']}, seeds "
        f"{_listed(figures['seeds'])}. Measured on all {figures['n']} questions of "
        f"{figures['questions'].partition(' (')[0]} (sha256 `{figures['questions_sha256'][:8]}…`), {prompts} "
        f"held-out prompts and {texts} neutral texts:"
    )
    head = ["", "MC1", "MC2", "leaks", "facts right", "prefers", "plain likelier than hedged"]
    head += ["rejects myths", "doubts the invented", "perplexity"]
    return f"{asked}\n\n{_table([head, *(_stage(seeds, name) for name in _stages(figures))])}"


def _stage(seeds: Sequence[Figures], name: str) -> list[str]:
    measured = [seed[name] for seed in seeds]
    columns: list[tuple[Callable[[Any], float], str]] = [
        (lambda one: one["mc1"], ".3f"),
        (lambda one: one["mc2"], ".3f"),
        (lambda one: one["leak_rate"], ".0%"),
        (lambda one: one["right_rate"], ".0%"),
        (lambda one: one["preference"]["all"], ".0%"),
        (lambda one: one["preference"]["leak"], ".0%"),
        (lambda one: one["gates"]["myth"]["by_generation"], ".0%"),
        (lambda one: one["gates"]["entity"]["by_likelihood"], ".0%"),
        (lambda one: one["perplexity"], ".1f"),
    ]
    return [
        _stage_title(name),
        *(_each([value(one) for one in measured], form) for value, form in columns),
    ]


def changes(figures: Figures) -> str:
    """Write the paired changes over seeds, and MMLU's."""
    rows = [["change", "MC1, points", "MC2, points", "facts right, points", "perplexity"]]
    for change in figures["pooled"]["changes"]:
        metrics = change["metrics"]
        title = f"{_variant(change['variant'])} against {_variant(change['against'])}"
        points = [_points(metrics[name]) for name in ("mc1", "mc2", "right")]
        rows.append([title, *points, _perplexity(metrics["log p of texts"])])
    return f"{_table(rows)}\n\n{_mmlu(figures)}\n\n{figures['pooled']['insight']['sentence']}"


def _mmlu(figures: Figures) -> str:
    mmlu = figures["mmlu_5_shot"]
    change = mmlu["groups"]["mmlu"]
    seeds = mmlu.get("seeds", [mmlu.get("seed")])
    stage = ", fused model" if mmlu.get("stage") == "fused" else ""
    return (
        f"MMLU, {mmlu['shots']}-shot, all {mmlu['questions']:,} questions, seed{'s' * (len(seeds) > 1)} "
        f"{_listed(seeds)}{stage}: {change['before']:.1%} to {change['after']:.1%}, {_points(change)} points; "
        f"it was allowed to lose {_number(100 * mmlu['margin'])}. Verdict: {change['verdict']}."
    )


def aims(figures: Figures) -> str:
    """Write each aim, what came of it, and whether it is reached."""
    end = _end_change(figures)
    seeds = list(figures["seeds"].values())
    last = _phases(seeds[0])[-1]
    rise = [seed[last]["perplexity"] / seed["base"]["perplexity"] - 1 for seed in seeds]
    leaks = [seed[last]["leak_rate"] for seed in seeds]
    myths = [seed[last]["gates"]["myth"]["by_generation"] for seed in seeds]
    doubts = [seed[last]["gates"]["entity"]["by_likelihood"] for seed in seeds]
    mc1, mc2, right = (end[name] for name in ("mc1", "mc2", "right"))
    mmlu = figures["mmlu_5_shot"]
    rows = [
        ("MC2 rises by 5 points, beyond chance", _points(mc2), _rises(mc2, 0.05)),
        ("MC1 rises by 4 points, beyond chance", _points(mc1), _rises(mc1, 0.04)),
        (
            "perplexity on neutral text rises by 3% at most, with each seed",
            ", ".join(f"{_number(100 * one)}%" for one in rise),
            max(rise) <= 0.03,
        ),
        (
            "MMLU loses half a point at most",
            _points(mmlu["groups"]["mmlu"]),
            mmlu["groups"]["mmlu"]["low"] > -mmlu["margin"],
        ),
        (
            "no more leaks than the base, with each seed",
            _each(leaks, ".0%"),
            all(seed[last]["leak_rate"] <= seed["base"]["leak_rate"] for seed in seeds),
        ),
        ("facts right do not fall beyond chance", _points(right), right["high"] >= 0),
        (
            "myths are rejected 90% of the time, with each seed",
            _each(myths, ".0%"),
            min(myths) >= 0.9,
        ),
        (
            "invented things are doubted 90% of the time, with each seed",
            _each(doubts, ".0%"),
            min(doubts) >= 0.9,
        ),
    ]
    lines = [[aim, result, "yes" if reached else "no"] for aim, result, reached in rows]
    return _table([["aim", "result", "reached"], *lines])


def transfer(figures: Figures) -> str:
    """Write the gain on questions of kinds that were and were not practised."""
    if "transfer" not in figures:
        return "Not measured for these figures; `make gold-master` measures it."
    rows = [["questions", "number", "base", "at the end", "change, points"]]
    for line in figures["transfer"]:
        before, after = (f"{line[side]:.3f}" for side in ("before", "after"))
        rows.append(
            [f"{line['metric']}, {line['questions']}", str(line["n"]), before, after, _points(line)]
        )
    return _table(rows)


PARTS: dict[str, Callable[[Figures], str]] = {
    "stages": stages,
    "changes": changes,
    "aims": aims,
    "transfer": transfer,
}


# --- what the file holds --------------------------------------------------------------------------


def _phases(seed: Figures) -> list[str]:
    """Return the stages after each phase, in order."""
    return sorted(name for name in seed if name.startswith("phase"))


def _stages(figures: Figures) -> list[str]:
    seed = next(iter(figures["seeds"].values()))
    return ["base", *_phases(seed), *(name for name in seed if name.endswith("_only"))]


def _end_change(figures: Figures) -> Figures:
    """Return the changes by metric from the base to the model after the last phase."""
    pooled = figures["pooled"]
    end = [name for name in pooled["variants"] if not name.endswith(" only")][-1]
    return next(
        change["metrics"]
        for change in pooled["changes"]
        if (change["variant"], change["against"]) == (end, "base")
    )


def _rises(change: Figures, least: float) -> bool:
    return change["difference"] >= least and change["low"] > 0


# --- form -----------------------------------------------------------------------------------------


def _stage_title(name: str) -> str:
    if name.endswith("_only"):
        return f"{_shown(name.removesuffix('_only'))} alone"
    return name if name == "base" else f"after {_shown(name.partition('_')[2])}"


def _variant(name: str) -> str:
    if name.endswith(" only"):
        return f"{_shown(name.removesuffix(' only'))} alone"
    return ", ".join(map(_shown, name.split("+")))


def _shown(phase: str) -> str:
    return SHOWN.get(phase, phase)


def _each(values: Sequence[float], form: str) -> str:
    """Format a value for each seed, or one if they look the same."""
    texts = [format(value, form) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _points(change: Figures) -> str:
    """Format a change of a share in points, with its interval."""
    difference, low, high = (100 * change[name] for name in ("difference", "low", "high"))
    return f"{_number(difference, '+')} ({_number(low)} to {_number(high)})"


def _perplexity(change: Figures) -> str:
    """Format a change of log-probability as one of perplexity in percent, with its interval."""
    difference, low, high = (
        100 * math.expm1(-change[name]) for name in ("difference", "high", "low")
    )
    return f"{_number(difference, '+')}% ({_number(low)} to {_number(high)})"


def _number(value: float, sign: str = "") -> str:
    return format(round(value, 1) + 0.0, f"{sign}.1f").replace("-", "−")


def _listed(names: Iterable[object]) -> str:
    *others, last = map(str, names)
    return f"{', '.join(others)} and {last}" if others else last


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def main() -> None:
    """Write the parts of the page anew."""
    figures = json.loads(FIGURES.read_text("utf-8"))
    PAGE.write_text(written(PAGE.read_text("utf-8"), figures), "utf-8")


if __name__ == "__main__":
    main()
