"""The adapter of a PhaseGPT recipe: its shape, and what it goes on from."""

from __future__ import annotations

import os

from forty2.recipe.phasegpt.keys import MODULES, PHASE_ATTENTION
from forty2.recipe.translation import Translator


def translate_adapter(translator: Translator) -> None:
    """Translate the shape of the adapter."""
    lora = "model.lora_config."
    rank, alpha = translator.take(f"{lora}r", int, 16), translator.take(f"{lora}lora_alpha", float)
    if rank < 1:
        translator.report(f"{lora}r", f"should be above 0, not {rank}")
        rank = 1  # the rest is read, so that it is not unknown
    alpha = 2 * rank if alpha is None else alpha
    translator.put("adapter.rank", rank, f"{lora}r")
    translator.put(
        "adapter.scale",
        alpha / rank,
        f"{lora}lora_alpha",
        f"{alpha:g} / rank {rank}, the factor itself",
    )
    translator.put(
        "adapter.dropout",
        translator.take(f"{lora}lora_dropout", float, 0.05),
        f"{lora}lora_dropout",
    )
    modules = translator.take_values(f"{lora}target_modules", [f"{name}_proj" for name in "qkvo"])
    keys = [MODULES.get(name, name if "." in str(name) else "") for name in modules]
    for name, key in zip(modules, keys, strict=True):
        if not key:
            translator.report(
                f"{lora}target_modules",
                f"{name!r} is none of {', '.join(MODULES)}; see adapter.keys",
            )
    translator.put("adapter.keys", keys, f"{lora}target_modules", "with their place in a block")
    if translator.take(f"{lora}bias", str, "none") != "none":
        translator.report(f"{lora}bias", "biases are not trained; write none")
    if translator.take(f"{lora}task_type", str, "CAUSAL_LM") != "CAUSAL_LM":
        translator.report(f"{lora}task_type", "only language models are trained; write CAUSAL_LM")


def translate_phase_attention(translator: Translator) -> None:
    """Translate the coupled phases, which are added to a block here and replace its attention there."""
    if not translator.take("model.use_phase_attention", bool, False):
        return
    at, path = "adapter.phase_attention", "model.phase_layer_idx"
    found = translator.given(path)
    numbers = found if isinstance(found, list) else [7 if found is None else found]
    if len(numbers) != 1 or type(numbers[0]) is not int:
        translator.report(path, f"should be one block, as in [7], not {found!r}")
        return
    how = "beside its attention, not in place of it; a gate that starts at zero adds it"
    translator.put(f"{at}.block", numbers[0], path, how)
    for ours, (key, kind, published) in PHASE_ATTENTION.items():
        translator.put(
            f"{at}.{ours}", translator.take(f"model.{key}", kind, published), f"model.{key}"
        )
    translator.leave_out("model.natural_freq", "a frequency that all phases share changes nothing")
    for key in ("logging.track_phase_dynamics", "logging.phase_log_interval"):
        translator.leave_out(key, "R is in metrics.jsonl at every step, as order_parameter")


def translate_reference(translator: Translator) -> None:
    """Translate the adapter that the pairs' phase begins with, which is its reference."""
    paths = ("training.reference_model", "training.kto_config.reference_model")
    for path in paths:
        found = translator.take(path, str)
        if found is None:
            continue
        if os.path.exists(found):
            translator.put(
                "init_from", found, path, "the policy as the phase begins is the reference"
            )
        elif "v12_lora" in found:
            why = (
                "that adapter was never published, so training begins with a new one: the reference"
            )
            translator.result.left_out[path] = f"{why} is the base model"
            translator.result.adapted.append(f"{path}: {why} is the base model")
        else:
            translator.report(path, f"{found}: no such file or folder")
