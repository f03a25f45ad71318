"""The page of a failure loop: pass rates, a map, clusters with examples, rows to teach, and the arms."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from forty2.errors import RunError
from forty2.files import JsonObject, write_text
from forty2.report.axes import percent
from forty2.report.charts import Chart, MapPoint, Point, interval_chart, map_chart
from forty2.report.json_records import DAMAGE, read_object, read_whole_lines
from forty2.report.markdown import Table
from forty2.report.page import render

REPORT = "failures.html"
_DRAWN = 1500
"""Most points of the map; a browser takes long to draw more."""
_HOVER, _EXAMPLE = 160, 500
"""Characters of a text in a tooltip and among the examples."""


class _Item(NamedTuple):
    text: str
    failed: bool


class _Examples(NamedTuple):
    title: str
    about: str
    rows: list[tuple[str, str]]
    """Verdict and text."""


class _Recovery(NamedTuple):
    sentence: str
    warnings: list[str]
    arms: Table
    changes: list[Chart]
    costs: Table
    note: str


class _Generated(NamedTuple):
    rows: Table
    about: str


def write_failures(folder: Path) -> Path:
    """Write the page of a folder whose items were clustered.

    Returns:
        The file.

    Raises:
        RunError: the folder has no clusters, a file of it is damaged, or the page cannot be written.
    """
    if not (folder / "clusters.json").exists():
        raise RunError(
            f"{folder / 'clusters.json'}: no such file; make it with forty2 failures cluster {folder}"
        )
    try:
        page = _page(folder)
    except DAMAGE as error:
        raise RunError(
            f"{folder}: a file is missing or damaged ({error}); run forty2 failures cluster {folder} "
            "again"
        ) from error
    write_text(folder / REPORT, page)
    return folder / REPORT


def _page(folder: Path) -> str:
    record = read_object(folder / "clusters.json")
    items = _items(folder)
    places = read_whole_lines(folder / "cluster_items.jsonl")
    warnings = []
    if {place["id"] for place in places} != items.keys():
        warnings.append(
            "The clusters are of other items than those with a verdict now: run "
            f"forty2 failures cluster {folder} again."
        )
    labels, stale = _labels(folder)
    warnings += [stale] if stale else []
    names = [_name(cluster, labels) for cluster in record["clusters"]]
    generated, stale = _generated(folder)
    warnings += [stale] if stale else []
    drawn = _some(places)
    shown = f"{len(drawn):,} of {len(places):,} items" if len(drawn) < len(places) else "All items"
    return render(
        "failures.html.jinja",
        name=folder.resolve().name,
        sentence=record["sentence"],
        about=_about(record),
        warnings=warnings,
        strata=_strata(record["strata"]),
        rates=_rates(record["strata"]),
        map=_map(record, drawn, items, names),
        map_note=f"{shown}, each a dot if it passed and a cross if it failed; a touch shows its "
        "text. The axes are the two directions in which the embeddings differ most (PCA), so items "
        "that lie apart here differ, and items that lie together may differ in other directions.",
        clusters=_clusters(record["clusters"], names),
        clusters_note=_clusters_note(record),
        recovery=_recovery(folder),
        examples=[
            _examples(cluster, name, items, labels)
            for cluster, name in zip(record["clusters"], names, strict=True)
        ],
        generated=generated,
    )


def _recovery(folder: Path) -> _Recovery | None:
    """Show the arms side by side; None: no arm was trained."""
    path = folder / "recover.json"
    if not path.exists():
        return None
    record = read_object(path)
    warnings = list(record["warnings"])
    if record["testset_sha256"] != read_object(folder / "testset.json").get("sha256"):
        warnings.append("The arms were tested on another test set than the one that is here now.")
    points = [
        Point(f"{one['arm']} against {one['than']}", one["difference"], one["low"], one["high"])
        for one in record["differences"]
    ]
    chart = interval_chart("Change of the pass rate", points, axis=percent("points"), change=True)
    seeds = ", ".join(map(str, record["seeds"]))
    return _Recovery(
        record["sentence"],
        warnings,
        _arms(record),
        [chart] if chart else [],
        _costs(record),
        f"{record['items']:,} untouched items in {record['groups']:,} groups of similar questions have a "
        f"verdict in every arm; {record['unscored']:,} have not, and are left out. Seeds {seeds}. Intervals "
        "are at 95%, over seeds and groups of items. Both trained arms have the same recipe, original rows "
        "and number of new tokens; none is the model as it was.",
    )


def _arms(record: JsonObject) -> Table:
    strata = list(next(iter(record["arms"].values()))["strata"])
    rows = []
    for arm, figures in record["arms"].items():
        parts = [figures["all"], *(figures["strata"][name] for name in strata)]
        rates = [_rate(part["pass_rate"]) for part in parts]
        own = record["rows"]["arms"].get(arm)
        trained = ["–"] * 4
        if own is not None:
            left_out = ", ".join(f"{count:,} {why}" for why, count in own["left_out"].items())
            trained = [
                f"{own['rows']:,}",
                f"{own['tokens']:,}",
                f"{own['original_share']:.1%}",
                left_out or "none",
            ]
        rows.append([arm, *rates, *trained])
    head = ["arm", "pass rate", *strata, "new rows", "new tokens", "original", "left out"]
    return Table(head, rows)


def _rate(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1%}"


def _costs(record: JsonObject) -> Table:
    rows = [
        [arm, cost["name"].removesuffix(":"), cost["before"], cost["after"], cost["answer"]]
        for arm, costs in record["costs"].items()
        for cost in costs
    ]
    return Table(["arm", "elsewhere", "before", "after", "loss beyond the margin"], rows)


def _items(folder: Path) -> dict[str, _Item]:
    """Read the scored items of the half `find`, by id."""
    verdicts = {row["id"]: row["verdict"] for row in read_whole_lines(folder / "verdicts.jsonl")}
    found = {}
    for row in read_whole_lines(folder / "testset.jsonl"):
        if row["half"] == "find" and verdicts.get(row["id"]) in ("pass", "fail"):
            asked = [turn["content"] for turn in row["messages"] if turn["role"] == "user"]
            found[row["id"]] = _Item(str(asked[-1]), verdicts[row["id"]] == "fail")
    return found


def _labels(folder: Path) -> tuple[dict[int, JsonObject], str | None]:
    """Return the labels by cluster, and a warning if they are of earlier clusters."""
    path = folder / "labels.json"
    if not path.exists():
        return {}, None
    record = read_object(path)
    if record["clusters_sha256"] != _sha256(folder / "clusters.json"):
        return {}, f"The labels are of earlier clusters: run forty2 failures label {folder} again."
    return {label["cluster"]: label for label in record["labels"]}, None


def _name(cluster: JsonObject, labels: Mapping[int, JsonObject]) -> str:
    label = labels.get(cluster["cluster"])
    words = label["label"] if label else ""
    weak = " (weak)" if words and label and label["weak"] else ""
    return f"{cluster['cluster']} {words}{weak}".strip()


def _about(record: JsonObject) -> str:
    stability = record["stability"]
    chosen = ", chosen by silhouette" if record["k_asked"] == "auto" else ""
    return (
        f"{record['items']:,} items of the half that is looked at were scored, and "
        f"{record['failures']:,} failed. All of them, failures and passes, were embedded by their "
        f"{record['text']} ({record['model']}) and put into {record['k']} clusters{chosen} "
        f"(KMeans, seed {record['seed']}). Adjusted Rand index of {stability['resamples']} "
        f"resamples: {stability['rand']:.2f}; below {stability['least_rand']} the clusters are not "
        "stable."
    )


def _strata(strata: Sequence[JsonObject]) -> Table:
    rows = []
    for one in strata:
        scored = one["passed"] + one["failed"]
        rate = (
            f"{one['passed'] / scored:.1%} ({one['interval'][0]:.1%} to {one['interval'][1]:.1%})"
            if scored
            else "– none was scored"
        )
        counts = [f"{one[key]:,}" for key in ("passed", "failed", "unscored")]
        rows.append([one["name"], rate, *counts])
    return Table(["stratum", "pass rate", "passed", "failed", "unscored"], rows)


def _rates(strata: Sequence[JsonObject]) -> list[Chart]:
    points = [
        Point(one["name"], one["passed"] / (one["passed"] + one["failed"]), *one["interval"])
        for one in strata
        if one["passed"] + one["failed"]
    ]
    chart = interval_chart("Pass rate", points, axis=percent("of scored items"))
    return [chart] if chart else []


def _map(
    record: JsonObject,
    places: Sequence[JsonObject],
    items: Mapping[str, _Item],
    names: Sequence[str],
) -> list[Chart]:
    points = []
    for place in places:
        item = items.get(place["id"])
        if item is not None:
            verdict = "failed" if item.failed else "passed"
            text = f"{names[place['cluster'] - 1]}: {verdict}: {_cut(item.text, _HOVER)}"
            points.append(MapPoint(place["x"], place["y"], place["cluster"] - 1, item.failed, text))
    chart = map_chart(f"{record['k']} clusters", names, points)
    return [chart] if chart else []


def _some(places: Sequence[JsonObject]) -> list[JsonObject]:
    """Return places to draw: all, or some by the hash of their ids, in their order."""
    if len(places) <= _DRAWN:
        return list(places)
    hashes = [hashlib.sha256(place["id"].encode()).digest() for place in places]
    last = sorted(hashes)[_DRAWN - 1]
    return [place for place, digest in zip(places, hashes, strict=True) if digest <= last]


def _clusters(clusters: Sequence[JsonObject], names: Sequence[str]) -> Table:
    rows = []
    for one, name in zip(clusters, names, strict=True):
        low, high = one["interval"]
        rows.append(
            [
                name,
                f"{one['size']:,}",
                f"{one['rate']:.1%} ({low:.1%} to {high:.1%})",
                f"{one['rest_rate']:.1%}",
                _p(one["p"]),
                _p(one["p_holm"]),
                f"{one['jaccard']:.2f}",
                "worse" if one["worse"] else "" if one["stable"] else "not stable",
            ]
        )
    head = ["cluster", "items", "failure rate", "rest", "p", "p, Holm", "Jaccard", ""]
    return Table(head, rows)


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def _clusters_note(record: JsonObject) -> str:
    return (
        "p: Fisher's exact test of the failure rate against that of all other items, two-sided; "
        "Holm: corrected for the number of clusters. Clusters are made without the verdicts. "
        "Jaccard: what a cluster has in common with the most similar one of a resample; below "
        f"{record['least_jaccard']} it is not stable. # in a label stands for any number; a weak "
        "label did not sort held-out items above chance."
    )


def _examples(
    cluster: JsonObject,
    name: str,
    items: Mapping[str, _Item],
    labels: Mapping[int, JsonObject],
) -> _Examples:
    about = "distinctive: " + (", ".join(term["term"] for term in cluster["terms"]) or "nothing")
    label = labels.get(cluster["cluster"])
    if label is not None and label["sorted"]:
        about += f"; the label put {label['right']} of {label['sorted']} held-out items on the right side"
    rows = []
    for near in cluster["nearest"]:
        item = items.get(near)
        if item is not None:
            rows.append(("failed" if item.failed else "passed", _cut(item.text, _EXAMPLE)))
    return _Examples(f"Cluster {name}", about, rows)


def _generated(folder: Path) -> tuple[_Generated | None, str | None]:
    """Return the rows made and accepted, by cluster, and a warning if they are of earlier clusters."""
    path = folder / "generated.json"
    if not path.exists():
        return None, None
    record = read_object(path)
    if record["clusters_sha256"] != _sha256(folder / "clusters.json"):
        again = f"make them in a copy of {folder.name}, or remove generated.json and start again"
        return None, f"The generated rows are of earlier clusters: {again}."
    accepted = _accepted(folder, record)
    rows = []
    for one in record["targets"]:
        cluster = one["cluster"]
        name = "at random" if cluster is None else f"{cluster} {one['label']}".strip()
        counts = [f"{one[key]:,}" for key in ("wanted", "asked", "kept")]
        passed = "–" if accepted is None else f"{accepted.get(cluster, 0):,}"
        refused = "; ".join(f"{count:,} {why}" for why, count in one["refused"].items())
        rows.append([name, *counts, passed, refused])
    head = ["cluster", "wanted", "asked for", "kept", "accepted", "refused"]
    return _Generated(Table(head, rows), _about_generated(record)), None


def _accepted(folder: Path, generated: JsonObject) -> dict[int | None, int] | None:
    """Return the number of accepted rows by cluster, None for the random arm; or None: not scored."""
    path = folder / "accepted.json"
    if not path.exists():
        return None
    record = read_object(path)
    if record["generated_sha256"] != generated["generated_sha256"]:
        return None
    found: dict[int | None, int] = {one["cluster"]: one["accepted"] for one in record["clusters"]}
    found[None] = record["arms"]["random"]["accepted"]
    return found


def _about_generated(record: JsonObject) -> str:
    model = record["teacher_model"]
    teacher = record["teacher"] if model in (None, "default") else f"{model} at {record['teacher']}"
    cost = "" if record["cost"] is None else f", {record['cost']:,.2f} in money"
    tokens = record["tokens"]
    spent = (
        f" It read {tokens['prompt']:,} tokens and wrote {tokens['reply']:,}{cost}."
        if tokens["prompt"]
        else ""
    )
    return (
        f"{record['sentence']} The teacher was {teacher}.{spent} Rows at random are made in the same "
        "way after items drawn without a look at cluster or verdict: what the others gain beyond "
        "these is what aiming at failures gains."
    )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _cut(text: Any, most: int) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= most else f"{line[:most]}…"
