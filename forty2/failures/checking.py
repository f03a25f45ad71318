"""Verdicts of verifiers on many replies, each stored when it is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from forty2.benchmark.partial_results import PartialResults
from forty2.errors import BenchmarkError
from forty2.failures.folder import StoredReply, StoredVerdict
from forty2.failures.verifiers import CheckFailed, UnitTest, Verifier, check
from forty2.progress import Progress

_SAFE_AT_ONCE = 4
"""Programs run at once; each has its own time, which a crowded machine would take from it."""


def check_permission(verifiers: Iterable[Verifier], allowed: bool) -> None:
    """Refuse to run programs that a model wrote without permission.

    Raises:
        BenchmarkError: there are unit tests, and they may not be run.
    """
    programs = sum(isinstance(one, UnitTest) for one in verifiers)
    if programs and not allowed:
        raise BenchmarkError(
            f"{programs:,} questions have unit tests, which run programs that the model writes; allow it "
            "(`run_untrusted_code=True`); they run in a sandbox, which limits what they can do to this "
            "machine"
        )


def verify(
    asked: Sequence[tuple[Verifier, StoredReply]], partial: PartialResults, progress: Progress
) -> dict[str, StoredVerdict]:
    """Check replies by their verifiers, those of which the journal has no verdict; return all by id."""
    keys = {reply.id: f"verdict/{reply.id}" for _, reply in asked}
    found = {name: StoredVerdict(**partial[key]) for name, key in keys.items() if key in partial}
    waiting = [one for one in asked if one[1].id not in found]
    with ThreadPoolExecutor(min(_SAFE_AT_ONCE, os.cpu_count() or 1)) as pool:
        for done, verdict in enumerate(pool.map(_verified, waiting), 1):
            partial.add(keys[verdict.id], verdict._asdict())
            found[verdict.id] = verdict
            progress("verdicts", done, len(waiting), {})
    return found


def _verified(asked: tuple[Verifier, StoredReply]) -> StoredVerdict:
    verifier, reply = asked
    try:
        passed, reason = check(verifier, reply.reply)
    except CheckFailed as error:
        return StoredVerdict(reply.id, "unscored", "verifier", None, str(error))
    if not passed and not reply.stopped:
        reason = f"{reason}; cut after {reply.tokens} tokens"
    return StoredVerdict(reply.id, "pass" if passed else "fail", "verifier", None, reason)
