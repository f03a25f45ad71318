"""`forty2 data`: build, look at, check and combine training data."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forty2.errors import DataError

if TYPE_CHECKING:
    from forty2.data.checks.findings import Finding

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)

output_dir = partial(
    click.option,
    "--output-dir",
    "--output_dir",
    required=True,
    type=FOLDER,
    help="Folder to write.",
)
output = click.option("--output", "-o", required=True, type=FILE, help="JSON Lines file to write.")
source = click.option("--input", "-i", "source", required=True, help="File, folder or hub:NAME.")
seed = click.option("--seed", default=42, show_default=True)
against = partial(
    click.option,
    "--against",
    multiple=True,
    help="A benchmark's file: nothing of it may be trained on.",
)


class _Several(click.Command):
    """A command whose listed options take all words up to the next option: --inputs A B C."""

    several = ("--inputs", "--weights", "--by-keys")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        current = ""
        for word in args:
            if word.startswith("-") and not word[1:2].isdigit():  # -o, but not a weight of -1
                current = word if word in self.several else ""
                if not current:
                    spread.append(word)
            elif current:
                spread += [current, word]
            else:
                spread.append(word)
        return super().parse_args(ctx, spread)


class _NamesSets(click.Command):
    """A command whose help ends with the names of the built-in sets."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from forty2.data.build import NAMES

        with formatter.section("Names"):
            formatter.write_dl(list(zip(NAMES[::2], NAMES[1::2], strict=True)))


@click.group("data")
def data_command() -> None:
    """Build, look at, check and combine training data."""


# --- building -------------------------------------------------------------------------------------


@data_command.command("build", cls=_NamesSets)
@click.argument("name")
@output_dir(required=False, help="Folder to write; default training_data/NAME.")
@seed
@click.option("--size", type=click.IntRange(1), help="Training rows; default the published count.")
@click.option("--balance", type=click.FloatRange(0, 0.9), help="spark-sft: share of plain answers.")
def build_command(
    name: str, output_dir: Path | None, seed: int, size: int | None, balance: float | None
) -> None:
    """Write a built-in set, as published or in full."""
    from forty2.data.build import build, write_built

    folder = _free(output_dir or Path("training_data") / name)
    _wrote(folder, write_built(build(name, seed=seed, size=size, balance=balance), folder))


@data_command.command("format-lock")
@click.option("--mode", type=click.Choice(["full", "minimal"]), default="full", show_default=True)
@click.option(
    "--math",
    type=click.Choice(["include", "exclude", "only", "minimal"]),
    default="include",
    show_default=True,
)
@output_dir()
@seed
def format_lock_command(mode: Any, math: Any, output_dir: Path, seed: int) -> None:
    """Write short questions with one short answer, in English and German."""
    from forty2.data.build.curriculum import format_lock

    _wrote_curriculum(output_dir, {"train": format_lock(mode, math, seed)}, seed)


@data_command.command("echo")
@click.option(
    "--gibberish",
    type=click.Choice(["include", "exclude", "only"]),
    default="exclude",
    show_default=True,
)
@click.option("--max-examples", "--max_examples", type=click.IntRange(1), help="At most so many.")
@output_dir()
@seed
def echo_command(gibberish: Any, max_examples: int | None, output_dir: Path, seed: int) -> None:
    """Write instructions to copy, and ones that only look like it."""
    from forty2.data.build.curriculum import echo

    rows = echo(gibberish, max_examples, seed)
    _wrote_curriculum(output_dir, {"train": rows}, seed, asked=max_examples)


@data_command.command("operators")
@output_dir()
@seed
def operators_command(output_dir: Path, seed: int) -> None:
    """Write copying, wrapping and extracting; validation shares no template and no payload.

    The validation rows are there as eval_prompts.json too, for `eval_prompts` in a recipe.
    """
    from forty2.data.build.curriculum import eval_prompts, operators
    from forty2.files import write_json

    made = operators(seed)
    _wrote_curriculum(output_dir, {"train": made.train, "valid": made.valid}, seed)
    file = output_dir / "eval_prompts.json"
    write_json(file, eval_prompts(made.valid))
    click.echo(f"{file}: {len(made.valid):,} eval prompts")


def _wrote_curriculum(
    output_dir: Path, splits: Mapping[str, Any], seed: int, asked: int | None = None
) -> None:
    from forty2.data.sets import write_set

    folder = _free(output_dir)
    about = {"command": _command(), "seed": seed, "asked": asked}
    _wrote(folder, write_set(folder, splits, about))


# --- looking --------------------------------------------------------------------------------------


@data_command.command("show")
@click.argument("file")
@click.option("--model", "-m", default="smollm2", show_default=True, help="Whose chat template.")
@click.option("--rows", "count", default=3, show_default=True, type=click.IntRange(1))
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(2))
@click.option("--html", type=FILE, help="Write a page, NAME.html, instead.")
def show_command(file: str, model: str, count: int, max_length: int, html: Path | None) -> None:
    """Show rows as the model sees them: supervised green, prompt dim, cut off struck through.

    Where nothing can be coloured, supervised text stands in «guillemets».
    """
    from itertools import islice

    from forty2.data.formats import parse
    from forty2.data.sources import read_rows
    from forty2.files import write_text
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder
    from forty2.text.preview import page, spans

    if html is not None and html.suffix != ".html":
        raise DataError(f"{html}: a page is written; name a file that ends in .html")
    tokenizer = load_tokenizer(model)
    encoder = Encoder(tokenizer)
    shown = [
        (origin, spans(parse(row, origin), encoder, tokenizer, max_length))
        for origin, row in islice(read_rows(file), count)
    ]
    if not shown:
        raise DataError(f"{file}: holds no rows")
    if html is not None:
        write_text(html, page(shown))
        click.echo(html)
        return
    for origin, sections in shown:
        click.secho(f"── {origin}", bold=True)
        for title, parts in sections:
            if title:
                click.secho(f"{title}:", bold=True)
            click.echo("".join(_paint(text, role) for text, role in parts))


def _paint(text: str, role: str) -> str:
    if not sys.stdout.isatty():
        return {"supervised": f"«{text}»", "cut": f"~~{text}~~"}.get(role, text)
    return click.style(
        text,
        fg="green" if role == "supervised" else None,
        dim=role == "prompt",
        strikethrough=role == "cut",
    )


@data_command.command("stats")
@click.argument("file")
@click.option("--model", "-m", default="smollm2", show_default=True, help="Whose tokenizer.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def stats_command(file: str, model: str, as_json: bool) -> None:
    """Rows, tokens, supervised share, lengths as a histogram, strata, near duplicates."""
    import json

    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder
    from forty2.text.preview import stats

    found = stats(file, Encoder(load_tokenizer(model)))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False))
        return
    for key in ("rows", "tokens", "supervised", "unreadable", "near_duplicates"):
        value = found[key]
        click.echo(f"{key:16} {f'{value:.1%}' if isinstance(value, float) else f'{value:,}'}")
    click.echo("tokens a row")
    most = max(n for _, n in found["histogram"])
    for label, n in found["histogram"]:
        click.echo(f"  {label:>12} {n:>8,} {'█' * round(40 * n / most)}")
    for key, counts in found["strata"].items():
        click.echo(f"{key}: " + ", ".join(f"{name} {n:,}" for name, n in counts.items()))


@data_command.command("lint")
@click.argument("file")
@click.option("--valid", help="Validation rows; default those beside it in the folder.")
@against()
@click.option("--model", "-m", help="Whose tokenizer: checks lengths and its special tokens.")
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(2))
@click.option("--fix", type=FILE, help="Write the rows that can be kept to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def lint_command(
    file: str,
    valid: str | None,
    against: tuple[str, ...],
    model: str | None,
    max_length: int,
    fix: Path | None,
    as_json: bool,
) -> None:
    """Find what would spoil a run. Exit code 1 if there are errors."""
    import json
    from dataclasses import asdict

    from forty2.data.checks.contamination import benchmark_of
    from forty2.data.checks.lint import fixed, lint
    from forty2.data.sets import write_file
    from forty2.data.sources import valid_beside

    valid = valid or valid_beside(file)
    if fix is not None:
        _free_file(fix, *filter(None, (file, valid, *against)))
    specials, fits = _tokenizer_checks(model, max_length) if model is not None else ((), None)
    findings = lint(
        file,
        valid,
        benchmarks=[benchmark_of(path) for path in against],
        specials=specials,
        fits=fits,
    )
    if as_json:
        click.echo(json.dumps([asdict(f) for f in findings], ensure_ascii=False))
    else:
        _table(findings)
    if fix is not None:
        counts: dict[str, int] = {}  # filled as the rows are written, before the manifest is
        about = {"command": _command(), "fixed": counts}
        _wrote(fix, write_file(fix, fixed(file, counts), about))
        click.echo("  " + ", ".join(f"{n:,} {what}" for what, n in counts.items()))
    if any(f.level == "error" for f in findings):
        raise SystemExit(1)


def _tokenizer_checks(model: str, max_length: int) -> tuple[list[str], Any]:
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder, problem_of_length

    encoder = Encoder(load_tokenizer(model))
    return encoder.specials, lambda record: problem_of_length(encoder, record, max_length)


def _table(findings: list[Finding]) -> None:
    if not findings:
        click.echo("nothing found")
    for f in findings:
        level = click.style(f.level, fg="red" if f.level == "error" else "yellow")
        click.echo(f"{level:7} {f.check:13} {f.count:>7,}  {f.message}")
        if f.origins:
            more = " …" if f.count > len(f.origins) else ""
            click.echo(f"{'':31}{', '.join(f.origins)}{more}")


# --- combining ------------------------------------------------------------------------------------


@data_command.command("mix", cls=_Several)
@click.option("--inputs", multiple=True, required=True, help="Files, one after another.")
@click.option("--weights", multiple=True, type=float, help="Shares of the output, one per input.")
@click.option("--by", type=click.Choice(["rows", "tokens"]), default="rows", show_default=True)
@click.option("--model", "-m", default="smollm2", show_default=True, help="Whose tokens.")
@click.option("--size", type=click.IntRange(1), help="Of the output, in rows or tokens.")
@click.option("--shuffle", is_flag=True, help="Mix the rows of all inputs.")
@click.option("--repeat", is_flag=True, help="Start a used-up input again.")
@seed
@output
def mix_command(
    inputs: tuple[str, ...],
    weights: tuple[float, ...],
    by: str,
    model: str,
    size: int | None,
    shuffle: bool,
    repeat: bool,
    seed: int,
    output: Path,
) -> None:
    """Mix files so that each makes up its share of what comes out.

    Without --weights every row is taken, and the shares that gives are printed.
    """
    from forty2.data.mixing import mix
    from forty2.data.sets import write_file

    _free_file(output, *inputs)
    measure = _token_counter(model) if by == "tokens" else lambda row: 1
    mixed = mix(
        inputs,
        weights or None,
        size=size,
        measure=measure,
        repeat=repeat,
        shuffle=shuffle,
        seed=seed,
    )
    about = {"command": _command(), "seed": seed, "asked": size, "by": by, "shares": mixed.shares}
    _wrote(output, write_file(output, mixed.rows, about))
    for name, share in mixed.shares.items():
        again = mixed.repeats.get(name)
        click.echo(f"  {share:>6.1%} {name}" + (f" (each row {again:g} times)" if again else ""))


def _token_counter(model: str) -> Any:
    from forty2.data.formats import parse
    from forty2.model.loading import load_tokenizer
    from forty2.text.encoder import Encoder

    encoder = Encoder(load_tokenizer(model))
    return lambda row: encoder.measure(parse(row, "mix"))[0]


@data_command.command("stratify", cls=_Several)
@source
@click.option("--by-keys", "keys", multiple=True, required=True, help="domain complexity …")
@click.option("--size", type=click.IntRange(1), help="Rows; default all strata can give evenly.")
@seed
@output
def stratify_command(
    source: str, keys: tuple[str, ...], size: int | None, seed: int, output: Path
) -> None:
    """Draw rows evenly over strata, the easiest first, each with its `order`."""
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import read_rows
    from forty2.data.strata import stratify

    _free_file(output, source)
    rows = [to_row(parse(row, origin)) for origin, row in read_rows(source)]
    found = stratify(rows, keys, size, seed)
    about = {"command": _command(), "seed": seed, "asked": size}
    _wrote(output, write_file(output, found.rows, about))
    least, most = min(found.drawn.values()), max(found.drawn.values())
    click.echo(f"  {len(found.drawn)} strata of {least} to {most} rows")
    if found.empty:
        click.echo(f"  {len(found.empty)} strata are empty: {' '.join(found.empty[0])} …")


@data_command.command("split")
@source
@output_dir()
@click.option(
    "--val-split", "--val_split", default=0.1, show_default=True, type=click.FloatRange(0, 0.9)
)
@click.option("--by", help="Key whose values stay together; default: entity, else prompt.")
@seed
def split_command(
    source: str, output_dir: Path, val_split: float, by: str | None, seed: int
) -> None:
    """Split off validation rows; rows of one prompt or entity stay together."""
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_set
    from forty2.data.sources import read_rows
    from forty2.data.splitting import split

    folder = _free(output_dir, source)
    held = split(source, val_split, by=by, seed=seed)

    def rows(valid: bool) -> Iterator[Mapping[str, Any]]:
        for (origin, row), is_valid in zip(read_rows(source), held, strict=True):
            if is_valid == valid:
                yield to_row(parse(row, origin))

    about = {"command": _command(), "seed": seed, "asked": {"val_split": val_split}}
    splits = {"train": rows(False)} | ({"valid": rows(True)} if any(held) else {})
    _wrote(folder, write_set(folder, splits, about))


@data_command.command("prepare")
@source
@output_dir()
@click.option(
    "--val-split", "--val_split", default=0.1, show_default=True, type=click.FloatRange(0, 0.9)
)
@click.option("--model", "-m", default="smollm2", show_default=True, help="Whose tokens.")
@click.option("--max-length", default=1024, show_default=True, type=click.IntRange(2))
@click.option("--pack", type=click.IntRange(2), help="Fill sequences of so many tokens with rows.")
@click.option("--workers", type=click.IntRange(1), help="Processes; default one a core.")
@seed
def prepare_command(
    source: str,
    output_dir: Path,
    val_split: float,
    model: str,
    max_length: int,
    pack: int | None,
    workers: int | None,
    seed: int,
) -> None:
    """Tokenise conversations once, into a folder that a recipe can name as `data`."""
    from forty2.cli.progress_bars import Bars
    from forty2.model.loading import load_tokenizer
    from forty2.text.preparing import Preparation, prepare

    folder = _free(output_dir, source)
    with Bars() as bars:
        manifest = prepare(
            source,
            folder,
            model,
            load_tokenizer,
            Preparation(
                valid_share=val_split,
                max_length=pack or max_length,
                pack=pack is not None,
                seed=seed,
            ),
            workers=workers,
            about={"command": _command()},
            progress=bars,
        )
    _wrote(folder, manifest)
    for name, tokens in manifest["tokens"].items():
        share = manifest["supervised"][name] / tokens if tokens else 0.0
        packs = f", {manifest['packs'][name]:,} packs" if manifest["packs"] else ""
        click.echo(f"  {name}: {tokens:,} tokens, {share:.0%} supervised{packs}")
    if manifest["dropped"]:
        some = ", ".join(manifest["dropped"][:3])
        click.echo(f"  {len(manifest['dropped']):,} rows dropped, too long: {some} …")


@data_command.command("convert")
@source
@output
def convert_command(source: str, output: Path) -> None:
    """Write any format that is read as our JSON Lines."""
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import read_rows

    _free_file(output, source)

    def rows() -> Iterator[Mapping[str, Any]]:
        origin = ""
        for origin, row in read_rows(source):
            yield to_row(parse(row, origin))
        if not origin:
            raise DataError(f"{source}: holds no rows")

    _wrote(output, write_file(output, rows(), {"command": _command()}))


@data_command.command("decontaminate")
@source
@against(required=True)
@output
def decontaminate_command(source: str, against: tuple[str, ...], output: Path) -> None:
    """Drop rows that overlap with benchmark files: 13 words in a row, or a whole question."""
    from forty2.data.checks.contamination import benchmark_of, contaminated
    from forty2.data.formats import parse, to_row
    from forty2.data.sets import write_file
    from forty2.data.sources import read_rows

    _free_file(output, source, *against)
    benchmarks = [benchmark_of(path) for path in against]
    dropped: list[str] = []

    def clean() -> Iterator[Mapping[str, Any]]:
        for origin, row in read_rows(source):
            record = parse(row, origin)
            if name := contaminated(record, benchmarks):
                dropped.append(f"{origin}: overlaps with {name}")
            else:
                yield to_row(record)

    _wrote(output, write_file(output, clean(), {"command": _command()}))
    for line in dropped:
        click.echo(line)
    click.echo(f"{len(dropped):,} rows dropped")


# --- shared ---------------------------------------------------------------------------------------


def _free(folder: Path, *sources: str) -> Path:
    """A folder that may be written: new, empty, or an older data set that nothing is read from."""
    _refuse_read(folder, sources)
    if folder.exists() and not (folder / "manifest.json").exists() and any(folder.iterdir()):
        raise DataError(f"{folder}: exists and is no data set of ours; name another --output-dir")
    return folder


def _free_file(file: Path, *sources: str) -> None:
    """Refuse to write rows to what is read, is something else, or would not be read again."""
    from forty2.data.sets import SUFFIXES, is_ours, manifest_of

    _refuse_read(file, sources)
    for source in sources:
        if _same(file.parent, os.path.expanduser(source)):  # a folder's files are its rows
            raise DataError(f"{file}: lies in {source}, which is read; write to another folder")
    if file.suffix not in SUFFIXES:
        ends = " or ".join(SUFFIXES)
        raise DataError(f"{file}: JSON Lines are written; name a file that ends in {ends}")
    for there in (file, manifest_of(file)):
        if os.path.lexists(there) and not is_ours(file):
            raise DataError(
                f"{there}: exists and is no older output of ours; write to another file, "
                "or remove this one"
            )


def _refuse_read(path: Path, sources: Sequence[str]) -> None:
    """Refuse to write over what is read: a source itself, or a folder that holds it."""
    for source in sources:
        read = Path(os.path.expanduser(source))
        if os.path.exists(read) and any(_same(path, p) for p in (read, *read.resolve().parents)):
            raise DataError(f"{path}: {source} is read from there; write to another place")


def _same(a: str | Path, b: str | Path) -> bool:
    """Whether two paths lead to one file or folder, through links or in another case too."""
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


def _wrote(path: Path, manifest: Mapping[str, Any]) -> None:
    names = {"train": "training", "valid": "validation"}
    written = " and ".join(
        f"{n:,} {names[name]} rows" if name in names else f"{n:,} rows"
        for name, n in manifest["written"].items()
    )
    click.echo(f"{path}: {written}")
    for level, found in manifest["lint"].items():
        if found:
            what = ", ".join(f"{check} {n:,}" for check, n in found.items())
            click.echo(f"  lint {level}s: {what} (forty2 data lint {path})")


def _command() -> str:
    """The command as it was typed, for the manifest."""
    return shlex.join(["forty2", *sys.argv[1:]])
