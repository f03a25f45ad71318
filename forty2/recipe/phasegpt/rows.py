"""The rows of a PhaseGPT recipe's phases, and what divides them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from forty2.data.build import build
from forty2.data.sources import BUILTIN, HUB, read_rows, valid_beside
from forty2.errors import DataError, RecipeError
from forty2.files import JsonObject
from forty2.recipe.phasegpt.keys import (
    ALIASES,
    DIALECTIC,
    DOMAINS,
    PUBLISHED_DATA,
    PUBLISHED_TEXTS,
)
from forty2.recipe.translation import Translator


def translate_data(
    translator: Translator, at: str, paths: Sequence[str], *, texts: bool = False
) -> str:
    """Translate the training rows; return where they are, "" if nothing says it."""
    for path in paths:
        found = translator.take(path, str)
        if found is None:
            continue
        if found.startswith((BUILTIN, HUB)) or os.path.exists(found):
            translator.put(f"{at}.data", found, path)
            return str(found)
        beside = os.path.join(os.path.dirname(translator.theirs.place), found)
        if os.path.exists(beside):
            translator.put(f"{at}.data", beside, path)
            return beside
        if texts and found.lower() in PUBLISHED_TEXTS:
            translator.adapt(
                f"{at}.data",
                f"{DIALECTIC}-sft",
                path,
                f"{found} is not packaged; the chosen answers of the dialectic set stand for it",
            )
            return f"{DIALECTIC}-sft"
        if os.path.basename(found) in PUBLISHED_DATA:
            translator.adapt(
                f"{at}.data",
                DIALECTIC,
                path,
                f"there is no {found}; the dialectic set of 100 unique pairs stands for it",
            )
            return DIALECTIC
        translator.report(path, f"{found}: no such file or folder")
        return ""
    set_ = f"{DIALECTIC}-sft" if texts else DIALECTIC
    translator.put(f"{at}.data", set_, "", "none is named")
    return set_


def rows_of(translator: Translator, data: str) -> list[JsonObject] | None:
    """Read the training rows, to count steps; None where they cannot be counted here."""
    if data.startswith(BUILTIN):
        seed = translator.result.document.tree["seed"]
        try:
            return list(build(data.removeprefix(BUILTIN), seed=seed).train)
        except DataError as error:
            raise RecipeError(str(error)) from error
    if not data or data.startswith(HUB) or os.path.isdir(Path(data) / "train"):
        return None
    try:
        return [row for _, row in islice(read_rows(data), 1_000_000)]
    except DataError:
        return None  # the phase says so, with its lint


def translate_strata(
    translator: Translator, at: str, data: str, rows: list[JsonObject] | None
) -> list[JsonObject] | None:
    """Translate what divides the rows; return those that are trained on."""
    builtin = data.startswith(BUILTIN)
    share = _validation_share(translator)
    if share:
        if builtin or (data and valid_beside(data)):
            for path in ("data.train_split", "data.val_split"):
                translator.leave_out(path, f"{data} has validation rows of its own")
        elif data:
            translator.report(
                "data.val_split" if translator.given("data.val_split") else "data.train_split",
                f"{data} is not divided; divide it once: forty2 data split -i {data} --output-dir "
                f"{data.partition('.')[0]} --val-split {share:g}, and name that folder",
            )
    if translator.take("data.augmentation.enabled", bool, False):
        translator.report("data.augmentation.enabled", "rows are not augmented; set it to false")
    keys = translator.take_values("data.stratify_by")
    if keys:
        having = set(rows[0]) if rows else set()
        ours = [key if key in having else ALIASES.get(str(key), key) for key in keys]
        note = ", ".join(f"{a} is {b}" for a, b in zip(keys, ours, strict=True) if a != b)
        translator.put(f"{at}.stratify", ours, "data.stratify_by", note)
    domains = translator.take_values("evaluation.held_out_domains")
    if domains and translator.take("evaluation.test_on_held_out", bool, True):
        ours = [DOMAINS.get(str(name), name) if builtin else name for name in domains]
        note = ", ".join(f"{a} is {b}" for a, b in zip(domains, ours, strict=True) if a != b)
        translator.put(f"{at}.hold_out", {"domain": ours}, "evaluation.held_out_domains", note)
        rows = rows and [row for row in rows if row.get("domain") not in ours]
    return rows


def _validation_share(translator: Translator) -> float:
    """Return the share of the rows that validate, from either split; report two that disagree."""
    shares = {path: translator.take(path, float) for path in ("data.val_split", "data.train_split")}
    given: dict[str, float] = {path: share for path, share in shares.items() if share is not None}
    for path, share in given.items():
        if not 0 <= share <= 1:
            translator.report(path, f"should be a share of the rows, from 0 to 1, not {share:g}")
            return 0.0
    if len(given) == 2 and not math.isclose(sum(given.values()), 1, abs_tol=1e-6):
        translator.report(
            "data.val_split",
            f"{given['data.val_split']:g} and train_split {given['data.train_split']:g} do not add "
            "up to 1; remove one of the two",
        )
    return given.get("data.val_split", 1 - given.get("data.train_split", 1.0))
