"""Recipes in the schema of PhaseGPT v1.4, translated to ours key by key.

That schema has the sections model, training, data, evaluation, logging and experiment. Every key is
translated, left out for a stated reason, or refused by name. Its paths are relative to the working
directory, as its scripts were started there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from forty2.errors import RecipeError
from forty2.recipe.document import Document, listed
from forty2.recipe.phasegpt.adapter import (
    translate_adapter,
    translate_phase_attention,
    translate_reference,
)
from forty2.recipe.phasegpt.keys import LEFT_OUT, SECTIONS
from forty2.recipe.phasegpt.phases import method_of, translate_phases
from forty2.recipe.phasegpt.run import (
    account_for_rest,
    folders_of,
    translate_metrics,
    translate_tracker,
)
from forty2.recipe.translation import Translation, Translator


class _Translator(Translator):
    left_out_keys = LEFT_OUT


def is_phasegpt(tree: Mapping[str, object]) -> bool:
    """Return whether a recipe is written in their schema."""
    ours = "phases" in tree or "version" in tree
    return not ours and (
        isinstance(tree.get("model"), dict) or isinstance(tree.get("training"), dict)
    )


def translate(
    document: Document, *, lr: float | None = None, kl_weight: float | None = None
) -> Translation:
    """Translate a recipe in their schema.

    Args:
        document: the file, with `--set` already applied to its own keys.
        lr, kl_weight: values of the flags `--lr` and `--lambda` of its scripts.

    Raises:
        RecipeError: listing every key that is unknown, of a wrong type, or cannot be had.
    """
    translator = _Translator(document)
    _translate_head(translator)
    kto = method_of(translator) == "kto"
    translate_reference(translator)
    translate_adapter(translator)
    translate_phase_attention(translator)
    translate_phases(translator, kto, lr, kl_weight)
    translate_metrics(translator)
    translate_tracker(translator)
    translator.result.folders = folders_of(translator, kto, lr, kl_weight)
    account_for_rest(translator)
    if translator.problems:
        raise RecipeError(listed(translator.problems))
    return translator.result


def _translate_head(translator: Translator) -> None:
    """Translate what all phases share."""
    translator.put("version", 1, "")
    name = translator.take("experiment.name", str) or Path(translator.theirs.place).stem
    slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:64] or "phasegpt"
    translator.put("name", slug, "experiment.name")
    model = translator.take("model.base_model", str)
    if model is None and not translator.problems:
        translator.report("model.base_model", "missing; name the model")
    translator.put("model", model or "", "model.base_model")
    translator.put("seed", translator.take("experiment.seed", int, 42), "experiment.seed")
    length = translator.take("training.max_length", int, 512)
    translator.put("max_length", length, "training.max_length")


def divide_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide overrides into those of their keys, such as training.beta=0.2, and those of ours."""
    theirs: list[str] = []
    ours: list[str] = []
    for override in overrides:
        keys = override.partition("=")[0].strip().split(".")
        of_theirs = keys[0] in SECTIONS and keys != ["model"]  # which both have
        (theirs if of_theirs else ours).append(override)
    return theirs, ours
