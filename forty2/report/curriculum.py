"""A curriculum in stages: gates, eval prompts by bucket at every stage, and the use of the rows."""

from __future__ import annotations

from forty2.report.eval_replies import TAGS_NOTE, tags_table
from forty2.report.markdown import Table
from forty2.report.run_types import ReplayRecord, Run

GATES_NOTE = (
    "Share of the eval prompts that passed at the end of the phase, with its 95% interval (Wilson), "
    "against the smallest share that should."
)
BUCKETS_NOTE = (
    "Every phase's eval prompts, asked at every stage, by group: a prompt's bucket is the beginning of "
    "its id. Prompts: how many it has. Forgotten: prompts that passed at the best "
    "stage before and fail at the last one."
)
COVERAGE_NOTE = (
    "Passes: how often a phase trained on each supervised token of these rows, on average. More than 3 "
    "memorizes them."
)


def curriculum_tables(run: Run) -> list[tuple[str, Table, str]]:
    """List the tables of a curriculum in stages that have rows, each with title and note."""
    tables = [
        ("Gates", gates_table(run), GATES_NOTE),
        ("Eval prompts by bucket", buckets_table(run), BUCKETS_NOTE),
        ("Tags in replies", tags_table(run), TAGS_NOTE),
        ("Use of the rows", coverage_table(run), COVERAGE_NOTE),
    ]
    return [(title, table, note) for title, table, note in tables if table.rows]


def gates_table(run: Run) -> Table:
    """Make the table of the gates of the finished phases; no rows: they have none."""
    finished = {phase.name for phase in run.phases}
    return Table(
        ("Phase", "Gate", "Passed", "95% interval", "At least", "Prompts", "Result"),
        [
            (
                one.phase,
                one.bucket,
                f"{one.share:.1%}",
                f"{one.low:.1%} to {one.high:.1%}",
                f"{one.least:.1%}",
                f"{one.n}",
                "passed" if one.passed else "failed",
            )
            for one in run.gates
            if one.phase in finished
        ],
    )


def buckets_table(run: Run) -> Table:
    """Make the table of the buckets of eval prompts by stage; no rows: none were measured."""
    found = run.summary.buckets if run.summary is not None else []
    stages = list(found[0].shares) if found else []
    rows = [
        (
            one.name,
            f"{one.n}",
            *(f"{share:.0%}" for share in one.shares.values()),
            f"{one.forgotten} since {one.best}" if one.forgotten else "0",
        )
        for one in found
    ]
    return Table(("Bucket", "Prompts", *stages, "Forgotten"), rows)


def coverage_table(run: Run) -> Table:
    """Make the table of the use of own and replayed rows; no rows: no phase has a gate or replays any."""
    rows = []
    gated = {gate.phase for gate in run.gates}
    for phase in run.phases:
        if not phase.coverage or not (phase.replayed or phase.name in gated):
            continue
        left = phase.rows - sum(one.rows for one in phase.replayed)
        shares = (
            1 - sum(getattr(one, of) for one in phase.replayed) for of in ("of_rows", "of_tokens")
        )
        own = ReplayRecord(next(iter(phase.coverage)), left, *shares)
        for one in (own, *phase.replayed):
            passes = f"{phase.coverage[one.name]:.2f}" if one.name in phase.coverage else "–"
            rows.append(
                (
                    phase.name,
                    one.name,
                    f"{one.rows:,}",
                    f"{one.of_rows:.1%}",
                    f"{one.of_tokens:.1%}",
                    passes,
                )
            )
    return Table(("Phase", "From", "Rows", "Of the rows", "Of the tokens", "Passes"), rows)
