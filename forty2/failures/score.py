"""Which generated rows are good enough to teach from.

A row with a verifier is accepted if its own reply passes. A row without one needs a judge's mean score
of at least 8 of 10. Where the check cannot be made, or the judge does not answer or gives no score, the
row is unscored: it is counted, and not accepted.

Each check and each answer is a line in the journal `accepted.json.part`, and the same command goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from forty2.benchmark.partial_results import PartialResults
from forty2.errors import printable
from forty2.failures.asking import Limits
from forty2.failures.chat_models import ChatModel
from forty2.failures.checking import check_permission, verify
from forty2.failures.examples import (
    ABOUT_ACCEPTED,
    ACCEPTED,
    ARMS,
    GENERATED,
    Example,
    read_examples,
)
from forty2.failures.folder import StoredReply, StoredVerdict, json_line, read_if_same
from forty2.failures.judging import (
    Asked,
    Scoring,
    ToScore,
    ask_judge,
    judge_figures,
    judge_lines,
    judged,
)
from forty2.failures.verifiers import parse_verifier
from forty2.files import JsonObject, atomic_write, file_sha256, write_json
from forty2.progress import Progress, silent

AT_LEAST = 8.0
_ENDED = "the budget ended before the judge was asked"
_REASONS = 20
"""Reasons without a score that are recorded, the most frequent first."""


def score(
    folder: str | Path,
    judge: str | ChatModel | None = None,
    *,
    at_least: float = AT_LEAST,
    repeats: int = 2,
    run_untrusted_code: bool = False,
    seed: int = 42,
    limits: Limits | None = None,
    progress: Progress = silent,
) -> JsonObject:
    """Decide on every generated row of a folder, and write those that are accepted, and counts.

    Args:
        judge: address of an OpenAI-compatible server, `local:MODEL`, or either of them with its
            settings; None: rows without a verifier are unscored.
        at_least: smallest mean score of the judge that is accepted, of 10.
        repeats: times that the judge scores each row.
        run_untrusted_code: permission to run the programs of the replies, in the sandbox.

    Returns:
        What accepted.json holds.

    Raises:
        RunError: nothing was generated, or the folder holds what was scored in another way.
        BenchmarkError: the judge does not work, or programs may not be run; what was decided is stored.
        ServeError: a local judge cannot be loaded.
    """
    folder, limits = Path(folder), limits or Limits()
    how = Scoring(at_least=at_least, repeats=repeats)
    if judge is not None and not isinstance(judge, ChatModel):
        judge = ChatModel(name=judge, role="judge")
    rows = read_examples(folder)
    verifiers = {
        row.id: parse_verifier(row.verifier, f"{folder / GENERATED}: {row.id}")
        for row in rows
        if row.verifier is not None
    }
    check_permission(verifiers.values(), run_untrusted_code)
    header: JsonObject = {
        "generated_sha256": file_sha256(folder / GENERATED),
        "judge": None if judge is None else judge.name,
        "judge_model": None if judge is None else judge.model,
        "seed": seed,
        **asdict(how),
    }
    out = folder / ABOUT_ACCEPTED
    if out.exists() and (before := read_if_same(out, header, "scored"))["complete"]:
        return before
    with PartialResults.open(out, header, resume=True) as partial:
        checked = [
            (verifiers[row.id], StoredReply(row.id, row.reply, True, 0))
            for row in rows
            if row.verifier is not None
        ]
        verdicts = verify(checked, partial, progress)
        asked = Asked({}, True, {"tokens": None, "cost": None})
        if judge is not None:
            left = [
                ToScore(row.id, row.messages, row.reference, row.reply)
                for row in rows
                if row.verifier is None
            ]
            asked = ask_judge(
                judge, left, how, partial, seed=seed, limits=limits, progress=progress
            )
        for row in rows:
            if row.id in asked.answers:
                verdicts[row.id] = judged(row.id, asked.answers[row.id], at_least)
            elif row.id not in verdicts:
                reason = "no verifier, and no judge was named" if judge is None else _ENDED
                verdicts[row.id] = StoredVerdict(row.id, "unscored", "judge", None, reason)
        _write(folder / ACCEPTED, rows, verdicts)
        record = {**header, **_figures(rows, verdicts, at_least)}
        record["judged"] = judge_figures(asked.answers, how) if judge is not None else None
        record |= {"complete": asked.complete, **asked.costs}
        record["accepted_sha256"] = file_sha256(folder / ACCEPTED)
        if record["complete"]:
            partial.finish(record)
        else:  # with a larger budget, the same command goes on
            write_json(out, record)
    return record


def _write(path: Path, rows: Sequence[Example], verdicts: Mapping[str, StoredVerdict]) -> None:
    with atomic_write(path) as file:
        for row in rows:
            verdict = verdicts[row.id]
            if verdict.verdict == "pass":
                about = {"by": verdict.by, "score": verdict.score}
                file.write(json_line({**asdict(row), **about}))


# --- the record -----------------------------------------------------------------------------------


def _figures(
    rows: Sequence[Example], verdicts: Mapping[str, StoredVerdict], at_least: float
) -> JsonObject:
    """Count verdicts by arm, and accepted rows by cluster."""
    arms: JsonObject = {}
    for arm in ARMS:
        own = [verdicts[row.id] for row in rows if row.arm == arm]
        counts = Counter(one.verdict for one in own)
        refused = Counter(
            "reply fails its verifier" if one.by == "verifier" else f"score below {at_least:g}"
            for one in own
            if one.verdict == "fail"
        )
        unscored = Counter(one.reason for one in own if one.verdict == "unscored")
        arms[arm] = {
            "rows": len(own),
            "accepted": counts["pass"],
            "refused": dict(sorted(refused.items())),
            "unscored": dict(unscored.most_common(_REASONS)),
        }
    passed = [row for row in rows if verdicts[row.id].verdict == "pass"]
    made = Counter(row.cluster for row in rows if row.cluster is not None)
    accepted = Counter(row.cluster for row in passed)
    by = Counter(verdicts[row.id].by for row in passed)
    return {
        "sentence": f"{len(passed):,} of {len(rows):,} rows are accepted.",
        "arms": arms,
        "clusters": [
            {"cluster": number, "rows": made[number], "accepted": accepted[number]}
            for number in sorted(made)
        ],
        "by": {name: by[name] for name in ("verifier", "judge")},
    }


def format_accepted(record: JsonObject) -> str:
    """Format what was accepted, for the terminal."""
    lines = [record["sentence"], f"{'arm':<12}{'rows':>8}{'accepted':>10}"]
    for arm, part in record["arms"].items():
        lines.append(f"{arm:<12}{part['rows']:>8,}{part['accepted']:>10,}")
    for kind in ("refused", "unscored"):
        for arm, part in record["arms"].items():
            lines += [
                f"{kind}, {arm}: {count:,}: {printable(why)}" for why, count in part[kind].items()
            ]
    lines += judge_lines(record["judged"])
    if not record["complete"]:
        lines.append("The budget allows no more; with a larger one, go on.")
    return "\n".join(lines)
