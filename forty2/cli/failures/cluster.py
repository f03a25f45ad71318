"""`forty2 failures cluster`, `label` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from forty2.cli import shared_options
from forty2.cli.echo import echo
from forty2.cli.failures.chat_options import chat_model
from forty2.cli.json_output import echo_json
from forty2.cli.progress_bars import ProgressBars
from forty2.errors import printable

if TYPE_CHECKING:
    from forty2.failures.asking import Limits
    from forty2.failures.chat_models import ChatModel


def _k(_: click.Context, __: click.Parameter, text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 2:
        raise click.BadParameter("give a whole number above 1, or auto")
    return int(text)


@click.command("cluster")
@shared_options.runs_model
@click.argument("folder", type=shared_options.FOLDER)
@click.option(
    "--k",
    default="10",
    show_default=True,
    callback=_k,
    metavar="NUMBER|auto",
    help="Number of clusters. auto: the one with the largest silhouette, from 2 to 20.",
)
@shared_options.seed_option(help="Seed of the clusters and of the resamples.")
@shared_options.model_option(
    default="all-MiniLM-L6-v2",
    show_default=True,
    help="Embedding model: its name, a folder of sentence-transformers, or a hub name.",
)
@shared_options.as_json
def cluster_command(
    folder: Path, k: int | Literal["auto"], seed: int, model: str, as_json: bool
) -> None:
    """Cluster all scored items, and test which clusters fail more often than the rest."""
    from forty2.failures.clustering import CLUSTERS, cluster_items

    with ProgressBars() as bars:
        record = cluster_items(folder, k=k, seed=seed, model=model, progress=bars)
    if as_json:
        echo_json("failures.cluster", record)
        return
    echo(record["sentence"])
    for cluster in record["clusters"] if record["stable"] else ():
        words = ", ".join(term["term"] for term in cluster["terms"][:4])
        verdict = "worse" if cluster["worse"] else "" if cluster["stable"] else "not stable"
        echo(
            f"{cluster['cluster']:>3}  {cluster['size']:>6,} items  {cluster['rate']:>6.1%} failed  "
            f"p {cluster['p_holm']:<7.2g} {verdict:<10}  {words}".rstrip()
        )
    echo(f"written   {folder / CLUSTERS}")


@click.command("label")
@click.argument("folder", type=shared_options.FOLDER)
@chat_model("teacher", budget=False)
@shared_options.as_json
def label_command(folder: Path, teacher: ChatModel | None, limits: Limits, as_json: bool) -> None:
    """Name the stable clusters by distinctive terms or a teacher, and check names on held-out items."""
    from forty2.failures.labels import LABELS, label_clusters

    with ProgressBars() as bars:
        made = label_clusters(folder, teacher, limits=limits, progress=bars)
    if as_json:
        echo_json("failures.label", made)
        return
    echo(made["sentence"])
    for label in made["labels"]:
        weak = "  weak" if label["weak"] else ""
        echo(
            f"{label['cluster']:>3}  {label['right']:>3} of {label['sorted']:>3} sorted rightly  "
            f"{printable(label['label']) or 'no label'}{weak}"
        )
    if made["requests"] is not None:
        counts = ", ".join(f"{name} {count}" for name, count in made["requests"].items())
        echo(f"requests  {counts}")
    echo(f"written   {folder / LABELS}")


@click.command("report")
@click.argument("folder", type=shared_options.FOLDER)
def report_command(folder: Path) -> None:
    """Write one page: pass rates, a map of the items, clusters, labels and examples."""
    from forty2.report.failures import write_failures

    echo(f"report    {write_failures(folder)}")
