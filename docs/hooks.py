"""Tables that mkdocs puts into pages: from the recipe's dataclasses and from measured figures.

A page asks for one with a line `<!-- generated: NAME -->`; an unknown NAME stops the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from mkdocs.exceptions import PluginError
from mkdocs.structure.pages import Page

from forty2.cli import main
from forty2.cli.json_output import as_markdown as json_schemas
from forty2.recipe.keys import as_markdown

ROOT = Path(__file__).parent.parent
SPEED = ROOT / "benchmarks" / "forty2-bench.json"
SUITES = {
    "dpo-short": "DPO, prompts of 64 tokens and answers of 48",
    "dpo-long": "DPO, prompts of 384 tokens and answers of 64",
    "sft-tail": "SFT, lengths with a long tail to 500 tokens",
    "vocabulary": "DPO on a random model with a vocabulary of 200,064",
    "truthfulqa": "TruthfulQA, MC1 and MC2 of a question",
}
PEERS = {
    "mlx-lm": "mlx-lm",
    "mlx-lm-lora": "mlx-lm-lora",
    "mlx-optiq": "mlx-optiq",
    "unsloth": "Unsloth",
}
PLACE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def table(rows: Iterable[Sequence[str]]) -> str:
    """Format rows of cells as a Markdown table; the first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def speed_ratios() -> str:
    """Format our time and peak memory divided by each peer's, by suite."""
    suites = _speed()["suites"]
    rows = [["forty2 divided by the peer: time, memory", *PEERS.values()]]
    for name, text in SUITES.items():
        ratios = suites[name]["ratios"]
        cells = [
            f"{ratios[peer]['seconds']:.2f}, {ratios[peer]['mlx_gb']:.2f}" if peer in ratios else ""
            for peer in PEERS
        ]
        rows.append([text, *cells])
    return table(rows)


def speed_floor() -> str:
    """Format our time, and that of the needed matrix products alone, by suite."""
    suites = _speed()["suites"]
    rows = [["suite", "time", "needed matrix products alone", "ratio"]]
    for name, text in SUITES.items():
        suite = suites[name]
        unit, ours = suite["unit"], suite["medians"]["forty2"]["seconds"]
        floor = suite["floor"]
        rows.append(
            [
                text,
                f"{ours:.2f} s a {unit}",
                f"{floor['seconds']:.2f} s a {unit}",
                f"{floor['ratio']:.2f}",
            ]
        )
    return table(rows)


def speed_growth() -> str:
    """Format time and memory by size, with the exponent from the size before."""
    parts = []
    for what, grown in _speed()["growth"].items():
        rows = [[what, "seconds", "exponent", "GB"]]
        exponents = ["", *(f"{one:.2f}" for one in grown["seconds_exponents"])]
        for size, seconds, exponent, gb in zip(
            grown["size"], grown["seconds"], exponents, grown["gb"], strict=True
        ):
            rows.append([f"{size:,}", f"{seconds:.3f}", exponent, f"{gb:.2f}"])
        parts.append(table(rows))
    return "\n\n".join(parts)


def _speed() -> Mapping[str, Any]:
    figures: Mapping[str, Any] = json.loads(SPEED.read_text("utf-8"))
    return figures


GENERATED: dict[str, Callable[[], str]] = {
    "json-schemas": json_schemas,
    "recipe-keys": as_markdown,
    "speed-ratios": speed_ratios,
    "speed-floor": speed_floor,
    "speed-growth": speed_growth,
}


def load_commands(command: click.Command = main, name: str = "forty2") -> Iterator[str]:
    """Import a command and all below it, and yield their names, as in `forty2 data lint`.

    mkdocs-click reads only `commands`, which lacks the commands that a group loads when used.
    """
    yield name
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            command.commands[below] = found
            yield from load_commands(found, f"{name} {below}")


COMMANDS = list(load_commands())


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replace each placeholder by its generated table."""
    return PLACE.sub(lambda found: GENERATED[found[1]](), markdown)


def on_page_content(html: str, page: Page, **_: object) -> None:
    """Stop the build if the page of commands lacks one."""
    if page.file.src_uri == "reference/commands.md":
        missing = [n for n in COMMANDS if f'id="{n.replace(" ", "-")}"' not in html]
        if missing:
            raise PluginError(f"{page.file.src_uri} lacks {', '.join(missing)}")
