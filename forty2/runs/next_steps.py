"""Which phase of a run cost more than the run may, and what to try next."""

from __future__ import annotations

from pathlib import Path

from forty2.benchmark.summary import Summary
from forty2.recipe.schema import Recipe
from forty2.run_paths import phase_label


def next_steps(summary: Summary, recipe: Recipe, path: Path) -> list[str]:
    """Say what each phase lost of what the one before it had reached, and what to try after a loss.

    Args:
        path: folder of the run.

    Returns:
        Sentences; none where no phase lost anything, or where the phases were not measured.
    """
    labels = {phase_label(number, name): name for number, name in enumerate(recipe.phases, 1)}
    lines = [
        f"{labels[stage]}, against the model before it: {step.sentence}"
        for stage, step in summary.steps.items()
        if stage in labels and step.verdict == "tax"
    ]
    if summary.verdict != "tax":
        return lines
    costly = [
        (number, name)
        for number, (label, name) in enumerate(labels.items(), 1)
        if (step := summary.steps.get(label) or summary.comparisons.get(label)) is not None
        and step.verdict == "tax"
    ]
    if not costly:
        return lines
    number, name = costly[-1]
    gentler = f"`overrides=phases.{name}.lr={recipe.phases[name].lr / 2:g}`"
    other = f"`run_dir={path}-2`"
    if number == 1:
        return [*lines, f"To try: a gentler {name}, in another run: {other} {gentler}."]
    before = path / list(labels)[number - 2]
    return [
        *lines,
        f"To try: the model before {name} (forty2 chat {before}); or a gentler {name}, in another run "
        f"that takes over the phases before it: {other} `reuse={path}` {gentler}.",
    ]
