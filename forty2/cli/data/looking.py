"""`forty2 data show`, `stats` and `lint`: look at data and check it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from forty2.cli import shared_options
from forty2.cli.data import options
from forty2.cli.data.output import check_file, echo_written, typed_command
from forty2.cli.echo import echo
from forty2.cli.json_output import echo_json
from forty2.errors import DataError
from forty2.text_layout import may_colour

if TYPE_CHECKING:
    from forty2.data.checks.findings import Finding
    from forty2.data.records import Record
    from forty2.model.chat_template import TemplateSettings
    from forty2.recipe.tags import TagSettings
    from forty2.text.preview import Section


def _token_weights(
    _: click.Context, __: click.Parameter, given: tuple[str, ...]
) -> dict[str, float]:
    found = {}
    for text in given:
        token, equals, weight = text.rpartition("=")
        try:
            found[token] = float(weight)
        except ValueError:
            equals = ""
        if not equals or not 0 < found[token] <= 100:
            raise click.BadParameter(f"{text}: write TOKEN=WEIGHT, with a weight above 0 up to 100")
    return found


@click.command("show")
@click.argument("file")
@options.tokenizer_of(help="Model whose chat template is used.")
@click.option(
    "--rows",
    "count",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Number of rows to show, from the first.",
)
@shared_options.max_length
@click.option("--html", type=shared_options.FILE, help="Write an HTML page to this file instead.")
@options.tags
@click.option(
    "--token-weight",
    "token_weights",
    multiple=True,
    callback=_token_weights,
    metavar="TOKEN=WEIGHT",
    help="Weight of a supervised token, as in a recipe's token_weights. Repeatable.",
)
@shared_options.template
def show_command(
    file: str,
    model: str,
    count: int,
    max_length: int,
    html: Path | None,
    tags: TagSettings | None,
    token_weights: dict[str, float],
    template: TemplateSettings | None,
) -> None:
    """Show rows as the model sees them, and say why the others cannot be trained on.

    Supervised text is green, the prompt is dim, and text that is cut off is struck through. Without
    a terminal, supervised text is in «guillemets», and text that is cut off in ~~tildes~~. A weight
    stands behind its token, as in ×2.
    """
    from forty2.data.sources import no_rows
    from forty2.files import write_text
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder
    from forty2.text.preview import page, shown_rows
    from forty2.text.token_weights import weights_by_id

    if html is not None and html.suffix != ".html":
        raise DataError(f"{html}: the output is a web page; name a file that ends in .html")
    tokenizer = load_tokenizer(model, template, tags)
    weights = weights_by_id(tokenizer, token_weights, "--token-weight")
    shown, refused = shown_rows(file, count, Encoder(tokenizer), tokenizer, max_length, weights)
    if not shown and not refused:
        raise no_rows(file)
    if html is None:
        _echo_rows(shown)
    elif shown:
        write_text(html, page(shown))
        click.echo(html)
    if refused:
        raise DataError("\n".join(refused))


def _echo_rows(rows: Sequence[tuple[str, Sequence[Section]]]) -> None:
    for origin, sections in rows:
        click.secho(f"── {origin}", bold=True)
        for title, parts in sections:
            if title:
                click.secho(f"{title}:", bold=True)
            click.echo("".join(_paint(text, role) for text, role in parts))


def _paint(text: str, role: str) -> str:
    if not may_colour(sys.stdout):
        return {"supervised": f"«{text}»", "cut": f"~~{text}~~"}.get(role, text)
    return click.style(
        text,
        fg={"supervised": "green", "weight": "yellow"}.get(role),
        dim=role == "prompt",
        strikethrough=role == "cut",
    )


@click.command("stats")
@click.argument("file")
@options.tokenizer_of()
@shared_options.as_json
@options.tags
@shared_options.template
def stats_command(
    file: str,
    model: str,
    as_json: bool,
    tags: TagSettings | None,
    template: TemplateSettings | None,
) -> None:
    """Count rows, tokens, supervised share, lengths, strata and near duplicates.

    Rows that cannot be read are counted by the reason, keys that nothing reads by their rows.
    """
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder
    from forty2.text.preview import stats

    found = stats(file, Encoder(load_tokenizer(model, template, tags)))
    if as_json:
        echo_json("data.stats", found)
        return
    for key in ("rows", "tokens", "supervised", "unreadable", "near_duplicates"):
        value = found[key]
        echo(f"{key:16} {f'{value:.1%}' if isinstance(value, float) else f'{value:,}'}")
    for reason in found["unreadable_because"]:
        more = " …" if reason["rows"] > len(reason["first"]) else ""
        echo(f"  {reason['rows']:>6,} × {reason['reason']}: {', '.join(reason['first'])}{more}")
    if found["ignored"]:
        echo(f"ignored: {found['ignored']}")
    echo("tokens a row")
    most = max(n for _, n in found["histogram"])
    for label, n in found["histogram"]:
        echo(f"  {label:>12} {n:>8,} {'█' * round(40 * n / most)}")
    for key, counts in found["strata"].items():
        echo(f"{key}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))


@click.command("lint")
@click.argument("file")
@click.option("--valid", help="File of validation rows. Default: valid.jsonl if FILE is a folder.")
@options.against()
@shared_options.model_option(
    help="Model whose tokenizer checks lengths and special tokens. Default: not checked."
)
@shared_options.max_length
@click.option(
    "--fix",
    type=shared_options.FILE,
    help="JSON Lines file to write: readable rows, once each, without control characters.",
)
@shared_options.as_json
@shared_options.template
def lint_command(
    file: str,
    valid: str | None,
    against: tuple[str, ...],
    model: str | None,
    max_length: int,
    fix: Path | None,
    as_json: bool,
    template: TemplateSettings | None,
) -> None:
    """Find faults that would spoil a training run. The exit code is 1 if there are errors."""
    from forty2.data.checks.contamination import benchmark_of
    from forty2.data.checks.lint import Linter
    from forty2.data.sources import valid_beside

    valid = valid or valid_beside(file)
    if fix is not None:
        check_file(fix, *filter(None, (file, valid, *against)))
    specials, fits = (
        _tokenizer_checks(model, template, max_length) if model is not None else ((), None)
    )
    linter = Linter([benchmark_of(path) for path in against], specials, fits)
    linter.read(file, "train")
    if valid is not None:
        linter.read(valid, "valid")
    findings = linter.findings()
    ignored = str(linter.ignored) if linter.ignored.rows else ""
    if as_json:
        echo_json("data.lint", {"findings": findings, "ignored": ignored})
    else:
        _echo_findings(findings)
        if ignored:
            echo(f"ignored: {ignored}")
    if fix is not None:
        _write_fixed(file, fix)
    if any(f.level == "error" for f in findings):
        raise SystemExit(1)


def _tokenizer_checks(
    model: str, template: TemplateSettings | None, max_length: int
) -> tuple[Collection[str], Callable[[Record], str | None]]:
    """Return a tokenizer's special tokens, and a check of a record's length in its tokens."""
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder, problem_of_length

    encoder = Encoder(load_tokenizer(model, template))
    return encoder.specials, lambda record: problem_of_length(encoder, record, max_length)


def _echo_findings(findings: Sequence[Finding]) -> None:
    if not findings:
        echo("nothing found")
    for f in findings:
        level = click.style(f.level, fg="red" if f.level == "error" else "yellow")
        echo(f"{level:7} {f.check:13} {f.count:>7,}  {f.message}")
        if f.origins:
            more = " …" if f.count > len(f.origins) else ""
            echo(f"{'':31}{', '.join(f.origins)}{more}")


def _write_fixed(file: str, target: Path) -> None:
    from forty2.data.checks.lint import fixed
    from forty2.data.sets import write_file

    counts: dict[str, int] = {}  # filled as the rows are written, before the manifest is
    about = {"command": typed_command(), "fixed": counts}
    echo_written(target, write_file(target, fixed(file, counts), about))
    echo("  " + ", ".join(f"{n:,} {change}" for change, n in counts.items()))
