"""`forty2 runs`: the archive of runs."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from forty2.cli import run_tables, shared_options
from forty2.cli.columns import side_by_side
from forty2.cli.echo import echo
from forty2.cli.errors import Group, warn
from forty2.cli.flags import with_flags
from forty2.cli.json_output import echo_json
from forty2.report.units import file_size
from forty2.run_paths import HOME, run_folder
from forty2.runs.archive import listing
from forty2.text_layout import terminal_width

if TYPE_CHECKING:
    from forty2.recipe.schema import Tracker
    from forty2.runs.archive.entry import Entry

_SINCE = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_NARROWEST, _MOST_LINES = 24, 12
"""Width of a column of replies, and lines of one."""
_REPLIES = 5


class _ListIsDefault(Group):
    """A group that lists the runs where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell completes the name of a command
            return super().parse_args(ctx, args)
        first = args[0] if args else ""
        known = first in self.commands or first in ctx.help_option_names
        is_list = first.startswith("-") or Path(first).exists()
        mistyped = not is_list and difflib.get_close_matches(first, self.commands)
        return super().parse_args(ctx, args if known or mistyped else ["list", *args])


@click.group("runs", cls=_ListIsDefault)
def runs_command() -> None:
    """List, compare, label, remove and export your runs.

    Without a command, the runs in adapters/ are listed. RUN is a run folder, or the name of one in
    adapters/.
    """


def _since(_: click.Context, __: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    if found := _SINCE.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[found[2]]: int(found[1])})
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise click.BadParameter("give a day as 2026-11-30, or a time as 12h, 7d or 2w") from error


def _selection(function: Callable[..., None]) -> Callable[..., None]:
    """Add the folders, the conditions and the order; the command gets `entries` and `sort`."""

    @functools.wraps(function)
    def with_entries(
        *,
        folders: tuple[Path, ...],
        sort: str | None,
        reverse: bool,
        **arguments: Any,
    ) -> None:
        from forty2.runs.archive.finding import (
            Selection,
            default_folders,
            find_runs,
            sort_runs,
        )

        names = ("model", "phase", "state", "since", "tags")
        selection = Selection(**{name: arguments.pop(name) for name in names})
        found = find_runs(folders or default_folders())
        for folder in found.unreadable:
            warn(folder)
        entries = [entry for entry in found.entries if selection.takes(entry)]
        entries = sort_runs(entries, sort or "started", reverse=reverse)
        hidden = len(found.entries) - len(entries)
        function(entries=entries, sort=sort, folders=folders, hidden=hidden, **arguments)

    return shared_options.combined(
        click.argument("folders", nargs=-1, type=click.Path(path_type=Path)),
        click.option("--tag", "tags", multiple=True, help="Only runs with this tag. Repeatable."),
        click.option("--model", "-m", help="Only runs whose model's name contains this."),
        click.option("--phase", help="Only runs with a phase of this name or objective."),
        click.option(
            "--state",
            type=click.Choice(["finished", "stopped", "running", "failed", "damaged"]),
            help="Only runs in this state.",
        ),
        click.option(
            "--since",
            callback=_since,
            metavar="TIME",
            help="Only runs started since: a day, or how long ago, e.g. 2026-11-30, 12h or 7d.",
        ),
        click.option(
            "--sort",
            metavar="METRIC",
            help="Sort by a metric, the best first, e.g. mc1, perplexity or valid_loss; or by size, "
            "minutes, started, name, model or state. Default: started, the newest first.",
        ),
        click.option("--reverse", is_flag=True, help="Sort the other way round."),
    )(with_entries)


@runs_command.command("list")
@_selection
@shared_options.as_json
def list_command(
    entries: Sequence[Entry],
    sort: str | None,
    folders: Sequence[Path],
    hidden: int,
    as_json: bool,
) -> None:
    """List runs with state, age, size, result and verdict.

    FOLDERS and the folders below are searched. Default: adapters/.

    The result is that of the last stage, after that of the base model.
    """
    if as_json:
        echo_json("runs.list", {"runs": [entry.to_json() for entry in entries]})
        return
    where = ", ".join(map(str, folders)) or "adapters/"
    if not entries:
        echo(f"no runs in {where}" + (f" meet this; {_left_out(hidden)}" if hidden else ""))
        return
    echo(run_tables.run_table(entries, _shown_metric(sort)))
    for entry in entries:
        if entry.state == "damaged":
            warn(entry.problem or "")
    total = file_size(sum(entry.size for entry in entries))
    echo(f"\n{_runs(len(entries))}, {total}" + (f"; {_left_out(hidden)}" if hidden else ""))


def _runs(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _left_out(number: int) -> str:
    return f"{number} other{'' if number == 1 else 's'} left out"


def _shown_metric(sort: str | None) -> str | None:
    """Return the metric to show as the result: the one sorted by, unless it has its own column."""
    key = listing.metric_key(sort) if sort else None
    return None if key in (None, "started", "name", "model", "state", "size") else key


@runs_command.command("show")
@click.argument("run")
@shared_options.as_json
def show_command(run: str, as_json: bool) -> None:
    """Show what is recorded about a run, and its notes."""
    from forty2.runs.archive.finding import find_runs

    folder = run_folder(run)
    (entry,) = find_runs([folder]).entries
    if as_json:
        echo_json("runs.show", entry.to_json())
        return
    phases = " → ".join(f"{name} ({kind})" for name, kind in entry.phases.items())
    report = folder / "report.html"
    facts = {
        "run": entry.path,
        "recipe": entry.name,
        "state": f"{entry.state}, {entry.finished_phases} of {len(entry.phases)} phases finished",
        "problem": with_flags(entry.problem or ""),
        "to go on": "the command that began it, with --resume"
        if entry.state in ("stopped", "failed")
        else "",
        "started": f"{entry.started} ({listing.age(entry.started)} ago)" if entry.started else "",
        "model": entry.model,
        "goes on from": entry.init_from or "",
        "phases": phases,
        "size": file_size(entry.size),
        "report": str(report) if report.exists() else "",
        "verdict": entry.verdict,
        "tags": ", ".join(entry.tags),
    }
    for key, text in facts.items():
        if text:
            echo(f"{key:<13} {text}")
    for path in entry.fused:
        echo(f"{'fused':<13} {path}" + ("" if Path(path).exists() else " (gone)"))
    if entry.metrics:
        echo(f"\n{'figure':<24}{'base':>12}{'run':>12}")
    for name, value in entry.metrics.items():
        base = entry.base_metrics.get(name)
        before = "" if base is None else listing.figure(base)
        echo(f"{name:<24}{before:>12}{listing.figure(value):>12}")
    for note in entry.notes:
        echo(f"\n{note.time}  {note.text}")


@runs_command.command("compare")
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--replies",
    default=_REPLIES,
    show_default=True,
    type=click.IntRange(0),
    help="Number of prompts whose replies are shown.",
)
@shared_options.as_json
def compare_command(runs: tuple[str, ...], replies: int, as_json: bool) -> None:
    """Compare runs by settings, statistics and replies.

    Each is compared with the first, item by item, after the last stage that was measured.
    """
    from forty2.benchmark.compare import format_comparison
    from forty2.runs.archive.comparison import compare_runs

    comparison = compare_runs([run_folder(run) for run in runs])
    if as_json:
        echo_json("runs.compare", comparison.to_json())
        return
    if comparison.short_differences:
        echo(run_tables.settings_table(comparison.short_differences, comparison.names))
    elif not comparison.remarks:
        echo("No setting differs.")
    for remark in comparison.remarks:
        echo(remark)
    for pair in comparison.measured:
        echo(f"\nMeasurements: {pair.before} → {pair.after}")
        if pair.comparison is None:
            echo(f"not compared: {pair.reason}")
        else:
            echo(format_comparison(pair.comparison))
    for reply in comparison.replies[:replies]:
        echo(f"\n{reply.task}: {reply.prompt}")
        echo(
            side_by_side(
                reply.replies,
                comparison.names,
                terminal_width(sys.stdout) or 100,
                narrowest=_NARROWEST,
                most_lines=_MOST_LINES,
            )
        )
    left = len(comparison.replies) - replies
    if left > 0:
        echo(f"\n{left} more prompts: --replies {len(comparison.replies)}, or --json")


@runs_command.command("note")
@click.argument("run")
@click.argument("text", required=False)
@click.option("--replace", is_flag=True, help="Put the note in place of all earlier ones.")
def note_command(run: str, text: str | None, replace: bool) -> None:
    """Add a note to a run, or print its notes.

    Without TEXT, the notes are printed. They are kept in the run's folder.
    """
    from forty2.runs.archive.notes import NOTES, add_note, read_notes

    folder = run_folder(run)
    if text is None and replace:
        raise click.UsageError("--replace needs the TEXT of the new note.")
    if text is None:
        for note in read_notes(folder).notes:
            echo(f"{note.time}  {note.text}")
        return
    number = len(add_note(folder, text, replace=replace).notes)
    echo(f"noted; {number} note{'' if number == 1 else 's'} in {folder / NOTES}")


@runs_command.command("tag")
@click.argument("run")
@click.argument("tags", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="Remove a tag. Repeatable.")
def tag_command(run: str, tags: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Tag a run, or print its tags.

    Without TAGS, they are printed. They are kept in the run's folder.
    """
    from forty2.runs.archive.notes import change_tags, read_notes

    folder = run_folder(run)
    notes = change_tags(folder, tags, removed) if tags or removed else read_notes(folder)
    echo(", ".join(notes.tags) or "no tags")


@runs_command.command("remove")
@click.argument("runs", nargs=-1, required=True)
@click.option("--fused", is_flag=True, help="Remove the runs' fused models, too.")
@click.option(
    "--force", is_flag=True, help="Remove what another run goes on from, or the only fused model."
)
@shared_options.yes
def remove_command(runs: tuple[str, ...], fused: bool, force: bool, yes: bool) -> None:
    """Remove runs, after asking.

    Says what that frees. All of them are removed, or none. Fused models stay unless you say --fused.
    """
    from forty2.runs.archive.removal import check_losses, plan_removal, remove

    removals = plan_removal([run_folder(run) for run in runs], fused=fused)
    check_losses(removals, force=force)
    for removal in removals:
        echo(f"{removal.run}  {file_size(removal.size)}")
        for path, size in removal.fused.items():
            echo(f"{path}  {file_size(size)}")
        for path, size in removal.staying.items():
            echo(f"stays: {path}  {file_size(size)}, its fused model (--fused removes it)")
        for loss in removal.losses:
            warn(loss)
    frees = file_size(sum(removal.frees for removal in removals))
    if yes or shared_options.confirmed(f"Remove this and free {frees}?"):
        remove(removals, force=force)
        echo(f"removed, {frees} freed")


@runs_command.command("export")
@click.argument("run")
@click.argument("file", type=shared_options.FILE, required=False)
@click.option(
    "--adapters",
    type=click.Choice(["last", "all", "none"]),
    help="Adapters to include: of the last phase, of all phases, or none. Default: last.",
)
@click.option("--replace", is_flag=True, help="Write over an existing file.")
@click.option(
    "--to",
    "tracker",
    type=click.Choice(["tensorboard", "wandb"]),
    help="Send the metrics to a tracker, in place of a zip file; those that it has are left alone.",
)
@click.option("--project", help="Project, with --to wandb. Default: that of the recipe, or forty2.")
def export_command(
    run: str,
    file: Path | None,
    adapters: Literal["last", "all", "none"] | None,
    replace: bool,
    tracker: Tracker | None,
    project: str | None,
) -> None:
    """Write a run to one zip file for a colleague, or send its metrics to a tracker.

    The file holds recipe, records, report and adapters, but no data files and no checkpoints. Paths
    of this machine are cut down.
    """
    if project is not None and tracker != "wandb":
        raise click.UsageError("--project is for --to wandb.")
    if tracker is not None:
        if file is not None or adapters is not None or replace:
            raise click.UsageError(
                "FILE, --adapters and --replace are for a zip file, without --to."
            )
        from forty2.runs.trackers import export_to_tracker

        sent, where = export_to_tracker(run_folder(run), tracker, project)
        echo(f"{sent} records sent; {where}")
        return
    if file is None:
        raise click.UsageError("name the zip file to write, or a tracker with --to")
    from forty2.runs.archive.export import export_run

    names = export_run(run_folder(run), file, adapters=adapters or "last", replace=replace)
    echo(f"{file}: {len(names)} files, {file_size(file.stat().st_size)}")


@runs_command.command("page")
@_selection
@shared_options.out_option(required=True, help="HTML file to write.")
def page_command(
    entries: Sequence[Entry], sort: str | None, folders: Sequence[Path], hidden: int, out: Path
) -> None:
    """Write the list of runs as one HTML page.

    It can be sorted by any column.
    """
    from forty2.report.archive import Cell, Row, write_archive_page

    names = sorted({listing.metric_key(name) for entry in entries for name in entry.metrics})
    columns = [name for name in listing.COLUMNS if name not in ("run", "result")]
    rows = []
    for entry in entries:
        texts = listing.cells(entry)
        sortable: dict[str, float | str] = {"age": entry.started, "size": entry.size}
        own = {listing.metric_key(name): value for name, value in entry.metrics.items()}
        cells = [Cell(texts[name], sortable.get(name)) for name in columns]
        cells += [
            Cell(listing.figure(own[name]), own[name]) if name in own else Cell("", "")
            for name in names
        ]
        notes = " ".join(note.text for note in entry.notes)
        rows.append(Row(texts["run"], _report_link(entry, out), [*cells, Cell(notes)]))
    where = ", ".join(map(str, folders)) or f"{HOME}/"
    left_out = f", {_left_out(hidden)}" if hidden else ""
    about = f"{_runs(len(entries))} in {where}{left_out}. Press a heading to sort."
    echo(write_archive_page(out, about, [*columns, *names, "notes"], rows))


def _report_link(entry: Entry, out: Path) -> str | None:
    """Return the address of a run's report as seen from the page."""
    import os
    from urllib.parse import quote

    report = Path(entry.path) / "report.html"
    return quote(os.path.relpath(report, out.resolve().parent)) if report.exists() else None
