"""The phases of a PhaseGPT recipe: texts, then pairs, with a term λ·KL where its method is kto."""

from __future__ import annotations

from forty2.recipe.phasegpt.course import translate_course, translate_curriculum
from forty2.recipe.phasegpt.keys import KL_KINDS
from forty2.recipe.phasegpt.rows import rows_of, translate_data, translate_strata
from forty2.recipe.translation import Translator


def method_of(translator: Translator) -> str:
    """Return the method of the pairs' phase, dpo or kto."""
    two = isinstance(translator.given("training.phase_b"), dict)
    path = "training.phase_b.method" if two else "training.method"
    method = translator.take(path, str)
    if method not in ("dpo", "kto", None):
        translator.report(path, f"{method!r} is not a method of this schema; use dpo or kto")
    return str(method or "dpo")


def translate_phases(
    translator: Translator, kto: bool, lr: float | None, kl_weight: float | None
) -> None:
    """Translate both phases.

    Args:
        lr, kl_weight: values of flags, for the phase of pairs.
    """
    two = any(
        isinstance(translator.given(f"training.{key}"), dict) for key in ("phase_a", "phase_b")
    )
    asked = [
        translator.take(f"{p}.use_gradient_checkpointing", bool) for p in ("model", "training")
    ]
    checkpointing = any(asked)
    names = []
    if two and translator.take("training.phase_a.enabled", bool, True):
        method = translator.take("training.phase_a.method", str, "lora")
        if method not in ("lora", "sft"):
            translator.report("training.phase_a.method", f"should be lora or sft, not {method!r}")
        names.append("sft")
        translator.put("phases.sft.objective", "sft", "training.phase_a")
        data = translate_data(translator, "phases.sft", ("data.phase_a_dataset",), texts=True)
        rows = rows_of(translator, data)
        translate_course(translator, "phases.sft", "training.phase_a", data, rows)
    if not two or translator.take("training.phase_b.enabled", bool, True):
        names.append("dpo")
        section = "training.phase_b" if two else "training"
        _translate_pairs(translator, section, kto, lr, kl_weight)
    if not names:
        translator.report(
            "training.phase_b.enabled", "both phases are off; nothing would be trained"
        )
    for name in names if checkpointing else ():
        translator.put(f"phases.{name}.grad_checkpoint", True, "model.use_gradient_checkpointing")


def _translate_pairs(
    translator: Translator, section: str, kto: bool, lr: float | None, kl_weight: float | None
) -> None:
    at = "phases.dpo"
    why = "DPO + λ·KL; the true KTO of Kahneman and Tversky is objective: kto" if kto else ""
    translator.put(f"{at}.objective", "dpo", f"{section}.method", why)
    sources = ("training.preference_dataset", "data.preference_dataset", "data.phase_b_dataset")
    data = translate_data(translator, at, sources)
    rows = translate_strata(translator, at, data, rows_of(translator, data))
    translator.put(f"{at}.beta", translator.take(f"{section}.beta", float, 0.1), f"{section}.beta")
    if kto:
        _translate_kl(translator, at, kl_weight)
    elif kl_weight is not None:
        translator.report(f"{section}.method", "a λ needs method: kto; this one has no term λ·KL")
    else:
        for path in ("training.kto_lambda", "training.kto_config"):
            translator.leave_out(path, "belongs to method: kto")
    shares = translate_curriculum(translator, at, data)
    translate_course(translator, at, section, data, rows, lr, shares)


def _translate_kl(translator: Translator, at: str, weight_flag: float | None) -> None:
    """Translate the penalty λ·KL."""
    config = "training.kto_config"
    found = [
        (path, value)
        for path in ("training.kto_lambda", f"{config}.lambda")
        if (value := translator.take(path, float)) is not None
    ]
    path, weight = found[0] if found else ("", 0.1)
    if len({value for _, value in found}) > 1:
        translator.report(
            found[0][0], f"is {found[0][1]:g}, and {found[1][0]} {found[1][1]:g}; keep one"
        )
    if translator.take(f"{config}.kl_temperature", float, 1.0) != 1.0:
        translator.report(f"{config}.kl_temperature", "only 1 is offered")
    if not translator.take(f"{config}.enabled", bool, True):
        translator.report(f"{config}.enabled", "is off, so this is DPO; write method: dpo")
    kind = translator.take(f"{config}.kl_penalty_type", str, "kl")
    if kind not in KL_KINDS:
        translator.report(f"{config}.kl_penalty_type", f"{kind!r} is none of {', '.join(KL_KINDS)}")
        return
    schedule = f"{config}.lambda_schedule"
    values = {
        key: translator.take(f"{schedule}.{key}", kind_)
        for key, kind_ in (
            ("enabled", bool),
            ("initial_lambda", float),
            ("final_lambda", float),
            ("schedule_type", str),
        )
    }
    changes = bool(values["enabled"])
    if changes and values["initial_lambda"] is not None:
        path, weight = f"{schedule}.initial_lambda", values["initial_lambda"]
    if weight_flag is not None:
        path, weight = "--lambda", weight_flag
    translator.put(f"{at}.kl.weight", weight, path, "" if path else "as published")
    which = "KL(policy‖reference)" if kind == "kl" else "named the other way round there"
    note = which if kind in ("kl", "reverse_kl") else ""
    translator.put(f"{at}.kl.kind", KL_KINDS[kind], f"{config}.kl_penalty_type", note)
    if changes:
        form, final = values["schedule_type"] or "linear", values["final_lambda"]
        if form not in ("linear", "cosine") or final is None:
            translator.report(schedule, "needs final_lambda, and schedule_type linear or cosine")
            return
        translator.put(f"{at}.kl.schedule", form, f"{schedule}.schedule_type")
        translator.put(f"{at}.kl.to", final, f"{schedule}.final_lambda")
    elif translator.given(schedule) is not None:
        translator.leave_out(schedule, "is off")
