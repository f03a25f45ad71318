"""Recipes in the schema of PhaseGPT v1.4, translated to ours key by key.

That schema has the sections model, training, data, evaluation, logging and experiment. Every key is
translated, left out for a stated reason, or refused by name. Its paths are relative to the working
directory, as its scripts were started there.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from forty2.data.build import build
from forty2.data.sources import BUILTIN, HUB, read_rows, valid_beside
from forty2.errors import DataError, RecipeError
from forty2.files import JsonObject
from forty2.recipe.document import Document, listed
from forty2.recipe.phasegpt_keys import (
    ALIASES,
    DIALECTIC,
    DOMAINS,
    KL_KINDS,
    LEFT_OUT,
    METRICS,
    MODULES,
    PHASE_ATTENTION,
    PUBLISHED,
    PUBLISHED_DATA,
    PUBLISHED_TEXTS,
    SECTIONS,
)
from forty2.recipe.translation import Folders, Translation, Translator


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
    translator = _Translator(document, lr, kl_weight)
    found = translator.translate()
    if translator.problems:
        raise RecipeError(listed(translator.problems))
    return found


class _Translator(Translator):
    left_out_keys = LEFT_OUT

    def __init__(
        self, document: Document, learning_rate: float | None, kl_weight: float | None
    ) -> None:
        super().__init__(document)
        self.learning_rate, self.kl_weight = learning_rate, kl_weight

    # --- the whole ---

    def translate(self) -> Translation:
        self.put("version", 1, "")
        name = self.take("experiment.name", str) or Path(self.theirs.place).stem
        self.put(
            "name", re.sub(r"[^A-Za-z0-9_.-]+", "-", name)[:64] or "phasegpt", "experiment.name"
        )
        model = self.take("model.base_model", str)
        if model is None and not self.problems:
            self.report("model.base_model", "missing; name the model")
        self.put("model", model or "", "model.base_model")
        self.put("seed", self.take("experiment.seed", int, 42), "experiment.seed")
        length = self.take("training.max_length", int)
        if length is None:
            self.put("max_length", 512, "", "as published")
        else:
            self.put("max_length", length, "training.max_length")
        kto = self.method() == "kto"
        self.reference(kto)
        self.adapter()
        self.phase_attention()
        self.phases(kto)
        self.metrics()
        self.tracker()
        self.result.folders = self.folders(kto)
        self.rest()
        return self.result

    def method(self) -> str:
        two = isinstance(self.given("training.phase_b"), dict)
        path = "training.phase_b.method" if two else "training.method"
        method = self.take(path, str)
        if method not in ("dpo", "kto", None):
            self.report(path, f"{method!r} is not a method of this schema; use dpo or kto")
        return str(method or "dpo")

    def adapter(self) -> None:
        lora = "model.lora_config."
        rank, alpha = self.take(f"{lora}r", int, 16), self.take(f"{lora}lora_alpha", float)
        if rank < 1:
            self.report(f"{lora}r", f"should be above 0, not {rank}")
            return
        alpha = 2 * rank if alpha is None else alpha
        self.put("adapter.rank", rank, f"{lora}r")
        self.put(
            "adapter.scale",
            alpha / rank,
            f"{lora}lora_alpha",
            f"{alpha:g} / rank {rank}, the factor itself",
        )
        self.put(
            "adapter.dropout", self.take(f"{lora}lora_dropout", float, 0.05), f"{lora}lora_dropout"
        )
        modules = self.take(f"{lora}target_modules", list, [f"{name}_proj" for name in "qkvo"])
        keys = [MODULES.get(name, name if "." in str(name) else "") for name in modules]
        for name, key in zip(modules, keys, strict=True):
            if not key:
                self.report(
                    f"{lora}target_modules",
                    f"{name!r} is none of {', '.join(MODULES)}; see adapter.keys",
                )
        self.put("adapter.keys", keys, f"{lora}target_modules", "with their place in a block")
        if self.take(f"{lora}bias", str, "none") != "none":
            self.report(f"{lora}bias", "biases are not trained; write none")
        if self.take(f"{lora}task_type", str, "CAUSAL_LM") != "CAUSAL_LM":
            self.report(f"{lora}task_type", "only language models are trained; write CAUSAL_LM")

    def phase_attention(self) -> None:
        """Translate the coupled phases, which are added to a block here and replace its attention there."""
        if not self.take("model.use_phase_attention", bool, False):
            return
        at, path = "adapter.phase_attention", "model.phase_layer_idx"
        found = self.given(path)
        numbers = found if isinstance(found, list) else [7 if found is None else found]
        if len(numbers) != 1 or type(numbers[0]) is not int:
            self.report(path, f"should be one block, as in [7], not {found!r}")
            return
        how = "beside its attention, not in place of it; a gate that starts at zero adds it"
        self.put(f"{at}.block", numbers[0], path, how)
        for ours, (key, kind, published) in PHASE_ATTENTION.items():
            self.put(f"{at}.{ours}", self.take(f"model.{key}", kind, published), f"model.{key}")
        self.leave_out("model.natural_freq", "a frequency that all phases share changes nothing")
        for key in ("logging.track_phase_dynamics", "logging.phase_log_interval"):
            self.leave_out(key, "R is in metrics.jsonl at every step, as order_parameter")

    def reference(self, kto: bool) -> None:
        """Translate the adapter that the pairs' phase begins with, which is its reference."""
        paths = ("training.reference_model", "training.kto_config.reference_model")
        for path in paths:
            found = self.take(path, str)
            if found is None:
                continue
            if os.path.exists(found):
                self.put(
                    "init_from", found, path, "the policy as the phase begins is the reference"
                )
            elif "v12_lora" in found:
                why = "that adapter was never published, so training begins with a new one: the reference"
                self.result.left_out[path] = f"{why} is the base model"
                self.result.adapted.append(f"{path}: {why} is the base model")
            else:
                self.report(path, f"{found}: no such file or folder")

    def phases(self, kto: bool) -> None:
        two = any(isinstance(self.given(f"training.{key}"), dict) for key in ("phase_a", "phase_b"))
        asked = [self.take(f"{p}.use_gradient_checkpointing", bool) for p in ("model", "training")]
        checkpointing = any(asked)
        names = []
        if two and self.take("training.phase_a.enabled", bool, True):
            method = self.take("training.phase_a.method", str, "lora")
            if method not in ("lora", "sft"):
                self.report("training.phase_a.method", f"should be lora or sft, not {method!r}")
            names.append("sft")
            self.put("phases.sft.objective", "sft", "training.phase_a")
            data = self.data("phases.sft", ("data.phase_a_dataset",), texts=True)
            self.course("phases.sft", "training.phase_a", data, self.rows_of(data))
        if not two or self.take("training.phase_b.enabled", bool, True):
            names.append("dpo")
            self.pairs("training.phase_b" if two else "training", kto)
        if not names:
            self.report("training.phase_b.enabled", "both phases are off; nothing would be trained")
        for name in names if checkpointing else ():
            self.put(f"phases.{name}.grad_checkpoint", True, "model.use_gradient_checkpointing")

    def pairs(self, section: str, kto: bool) -> None:
        at = "phases.dpo"
        why = "DPO + λ·KL; the true KTO of Kahneman and Tversky is objective: kto" if kto else ""
        self.put(f"{at}.objective", "dpo", f"{section}.method", why)
        sources = ("training.preference_dataset", "data.preference_dataset", "data.phase_b_dataset")
        data = self.data(at, sources)
        rows = self.strata(at, data, self.rows_of(data))
        beta = self.take(f"{section}.beta", float)
        if beta is None:
            self.put(f"{at}.beta", 0.1, "", "as published")
        else:
            self.put(f"{at}.beta", beta, f"{section}.beta")
        if kto:
            self.kl(at)
        elif self.kl_weight is not None:
            self.report(f"{section}.method", "a λ needs method: kto; this one has no term λ·KL")
        else:
            for path in ("training.kto_lambda", "training.kto_config"):
                self.leave_out(path, "belongs to method: kto")
        self.course(at, section, data, rows, self.stages(at, data))

    # --- data ---

    def data(self, at: str, paths: Sequence[str], *, texts: bool = False) -> str:
        """Translate the training rows; return where they are, "" if nothing says it."""
        for path in paths:
            found = self.take(path, str)
            if found is None:
                continue
            if found.startswith((BUILTIN, HUB)) or os.path.exists(found):
                self.put(f"{at}.data", found, path)
                return str(found)
            beside = os.path.join(os.path.dirname(self.theirs.place), found)
            if os.path.exists(beside):
                self.put(f"{at}.data", beside, path)
                return beside
            if texts and found.lower() in PUBLISHED_TEXTS:
                self.adapt(
                    f"{at}.data",
                    f"{DIALECTIC}-sft",
                    path,
                    f"{found} is not packaged; the chosen answers of the dialectic set stand for it",
                )
                return f"{DIALECTIC}-sft"
            if os.path.basename(found) in PUBLISHED_DATA:
                self.adapt(
                    f"{at}.data",
                    DIALECTIC,
                    path,
                    f"there is no {found}; the dialectic set of 100 unique pairs stands for it",
                )
                return DIALECTIC
            self.report(path, f"{found}: no such file or folder")
            return ""
        set_ = f"{DIALECTIC}-sft" if texts else DIALECTIC
        self.put(f"{at}.data", set_, "", "none is named")
        return set_

    def rows_of(self, data: str) -> list[JsonObject] | None:
        """Read the training rows, to count steps; None where they cannot be counted here."""
        if data.startswith(BUILTIN):
            seed = self.result.document.tree["seed"]
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

    def strata(self, at: str, data: str, rows: list[JsonObject] | None) -> list[JsonObject] | None:
        """Translate what divides the rows; return those that are trained on."""
        builtin = data.startswith(BUILTIN)
        train = self.take("data.train_split", float)
        share = self.take("data.val_split", float)
        if share is None and train is not None:
            share = 1 - train
        if share:
            if builtin or (data and valid_beside(data)):
                for path in ("data.train_split", "data.val_split"):
                    self.leave_out(path, f"{data} has validation rows of its own")
            elif data:
                self.report(
                    "data.val_split" if self.given("data.val_split") else "data.train_split",
                    f"{data} is not divided; divide it once: forty2 data split -i {data} --output-dir "
                    f"{data.partition('.')[0]} --val-split {share:g}, and name that folder",
                )
        if self.take("data.augmentation.enabled", bool, False):
            self.report("data.augmentation.enabled", "rows are not augmented; set it to false")
        keys = self.take("data.stratify_by", list)
        if keys:
            having = set(rows[0]) if rows else set()
            ours = [key if key in having else ALIASES.get(str(key), key) for key in keys]
            note = ", ".join(f"{a} is {b}" for a, b in zip(keys, ours, strict=True) if a != b)
            self.put(f"{at}.stratify", ours, "data.stratify_by", note)
        domains = self.take("evaluation.held_out_domains", list)
        if domains and self.take("evaluation.test_on_held_out", bool, True):
            ours = [DOMAINS.get(str(name), name) if builtin else name for name in domains]
            note = ", ".join(f"{a} is {b}" for a, b in zip(domains, ours, strict=True) if a != b)
            self.put(f"{at}.hold_out", {"domain": ours}, "evaluation.held_out_domains", note)
            rows = rows and [row for row in rows if row.get("domain") not in ours]
        return rows

    # --- course of a phase ---

    def stages(self, at: str, data: str) -> list[float]:
        """Translate the curriculum; return the share of the rows that each pass uses."""
        section = "training.curriculum_learning"
        stages = self.take(f"{section}.stages", list, [])
        if not stages or not self.take(f"{section}.enabled", bool, True):
            return []
        shares: list[float] = []
        for stage in stages:
            epochs, share = (
                (stage.get("epochs", 1), stage.get("data_fraction"))
                if isinstance(stage, dict)
                else (0, 0)
            )
            other = (
                set(stage) - {"name", "epochs", "data_fraction"} if isinstance(stage, dict) else ()
            )
            if type(epochs) is not int or epochs < 1 or not isinstance(share, int | float) or other:
                self.report(
                    f"{section}.stages",
                    "a stage has a name, whole epochs above 0 and a data_fraction; got "
                    f"{str(stage)[:80]}",
                )
                return []
            shares += [float(share)] * epochs
        by = self.order_key(data, f"{section}.stages")
        self.put(f"{at}.curriculum.by", by, "", "from easy to hard")
        note = "one pass each; the last share is used by all further passes"
        self.put(f"{at}.curriculum.stages", shares, f"{section}.stages", note)
        return shares

    def order_key(self, data: str, path: str) -> str:
        """Choose the row key that says how hard a row is."""
        rows = self.rows_of(data)
        having = set(rows[0]) if rows else {"order"}
        found = next((key for key in ("order", "difficulty", "complexity") if key in having), None)
        if found is None:
            self.report(path, f"the rows of {data} have no order, difficulty or complexity")
        return found or "order"

    def course(
        self,
        at: str,
        section: str,
        data: str,
        rows: list[JsonObject] | None,
        shares: Sequence[float] = (),
    ) -> None:
        """Translate length, batches, learning rate, evaluations and checkpoints of a phase."""

        def setting(key: str, kind: Any) -> tuple[Any, str]:
            for path in dict.fromkeys((f"{section}.{key}", f"training.{key}")):
                if (value := self.take(path, kind)) is not None:
                    return value, path
            return PUBLISHED[key], ""

        def translated(ours: str, key: str, kind: Any) -> Any:
            value, path = setting(key, kind)
            self.put(f"{at}.{ours}", value, path, "" if path else "as published")
            return value

        epochs, path = setting("num_epochs", float)
        if shares and len(shares) != epochs:
            why = f"{epochs:g} would not be the {len(shares)} epochs of the stages"
            self.adapt(f"{at}.epochs", len(shares), path or "training.curriculum_learning", why)
            epochs = len(shares)
        else:
            self.put(f"{at}.epochs", epochs, path, "" if path else "as published")
        size = translated("batch_size", "batch_size", int)
        accumulate = translated("accumulate", "gradient_accumulation_steps", int)
        if self.learning_rate is not None and at != "phases.sft":
            self.put(f"{at}.lr", self.learning_rate, "--lr")
            setting("learning_rate", float)
        else:
            translated("lr", "learning_rate", float)
        translated("weight_decay", "weight_decay", float)
        translated("clip_norm", "max_grad_norm", float)
        schedule, path = setting("lr_scheduler", str)
        self.put(f"{at}.schedule", schedule, path, "" if path else "as published")
        if size < 1 or accumulate < 1 or epochs <= 0:
            self.report(section, "epochs, batch_size and gradient_accumulation_steps are above 0")
            return
        steps = _count_steps(len(rows), epochs, size, accumulate, shares) if rows else None
        ratio, path = setting("warmup_ratio", float)
        if steps is not None:
            note = f"{ratio:g} of {steps} steps"
            self.put(f"{at}.warmup_steps", min(steps, math.ceil(ratio * steps)), path, note)
        elif ratio:
            self.adapt(f"{at}.warmup_steps", 0, path, "a share of steps that are not counted yet")
        for ours, key in (
            ("eval_every_steps", "eval_interval"),
            ("save_every_steps", "save_steps"),
        ):
            self.every(at, ours, f"evaluation.{key}", steps)
        self.best(at, data)

    def every(self, at: str, ours: str, path: str, steps: int | None) -> None:
        """Translate a number of steps between evaluations or checkpoints, if it is ever reached."""
        every = self.take(path, int)
        if every is None:
            return
        if steps is not None and every <= steps:
            self.put(f"{at}.{ours}", every, path)
        elif steps is None:
            self.adapt(
                f"{at}.{ours}",
                None,
                path,
                f"{every} may be beyond the last step; a fifth of all steps instead",
            )
        else:
            why = f"{every} is beyond the last of {steps} steps and would never come; a fifth of them instead"
            self.adapt(f"{at}.{ours}", None, path, why)

    def best(self, at: str, data: str) -> None:
        """Translate the choice of the best adapter."""
        path = "evaluation.save_best_only"
        if not self.take(path, bool, False) or at == "phases.sft":
            return
        named = "evaluation.metric_for_best_model"
        metrics = self.take("evaluation.metrics", list, [])
        metric = self.take(named, str) or next((m for m in metrics if m in METRICS), "loss")
        if metric not in METRICS or not METRICS[metric][0]:
            known = ", ".join(name for name, (ours, _) in METRICS.items() if ours)
            self.report(named, f"{metric!r} cannot choose an adapter; use one of {known}")
            return
        ours, direction = METRICS[metric]
        greater = self.take("evaluation.greater_is_better", bool)
        if greater is not None:
            direction = "max" if greater else "min"
        if not (data.startswith(BUILTIN) or (data and valid_beside(data))) and ours != "perplexity":
            why = "the last step is kept: without validation rows there is no best one"
            self.result.left_out[path] = why
            self.result.adapted.append(f"{path}: {why}")
            return
        best = {"metric": ours, "direction": direction}
        source = named if self.given(named) is not None else path
        note = f"{metric} is better {_HIGHER[direction]}"
        if metric == "perplexity":
            note += "; the model before training counts, too, and few preferences lower it"
        self.put(f"{at}.best", best, source, note)

    def kl(self, at: str) -> None:
        """Translate the penalty λ·KL."""
        config = "training.kto_config"
        found = [
            (path, value)
            for path in ("training.kto_lambda", f"{config}.lambda")
            if (value := self.take(path, float)) is not None
        ]
        path, weight = found[0] if found else ("", 0.1)
        if len({value for _, value in found}) > 1:
            self.report(
                found[0][0], f"is {found[0][1]:g}, and {found[1][0]} {found[1][1]:g}; keep one"
            )
        if self.take(f"{config}.kl_temperature", float, 1.0) != 1.0:
            self.report(f"{config}.kl_temperature", "only 1 is offered")
        if not self.take(f"{config}.enabled", bool, True):
            self.report(f"{config}.enabled", "is off, so this is DPO; write method: dpo")
        kind = self.take(f"{config}.kl_penalty_type", str, "kl")
        if kind not in KL_KINDS:
            self.report(f"{config}.kl_penalty_type", f"{kind!r} is none of {', '.join(KL_KINDS)}")
            return
        schedule = f"{config}.lambda_schedule"
        values = {
            key: self.take(f"{schedule}.{key}", kind_)
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
        if self.kl_weight is not None:
            path, weight = "--lambda", self.kl_weight
        self.put(f"{at}.kl.weight", weight, path, "" if path else "as published")
        which = "KL(policy‖reference)" if kind == "kl" else "named the other way round there"
        note = which if kind in ("kl", "reverse_kl") else ""
        self.put(f"{at}.kl.kind", KL_KINDS[kind], f"{config}.kl_penalty_type", note)
        if changes:
            form, final = values["schedule_type"] or "linear", values["final_lambda"]
            if form not in ("linear", "cosine") or final is None:
                self.report(schedule, "needs final_lambda, and schedule_type linear or cosine")
                return
            self.put(f"{at}.kl.schedule", form, f"{schedule}.schedule_type")
            self.put(f"{at}.kl.to", final, f"{schedule}.final_lambda")
        elif self.given(schedule) is not None:
            self.leave_out(schedule, "is off")

    # --- the rest ---

    def metrics(self) -> None:
        path = "evaluation.metrics"
        for name in self.take(path, list, []):
            if name not in METRICS:
                close = difflib.get_close_matches(str(name), list(METRICS), 1)
                hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(METRICS)}"
                self.report(path, f"{name!r} is no metric of this schema{hint}")
        style = any(name in ("spiral_score", "subtlety") for name in self.take(path, list, []))
        note = "these; held-out rows, perplexity of neutral text and KL are measured in any case"
        self.put("benchmark", {"tasks": ["reply_style"] if style else []}, path, note)

    def tracker(self) -> None:
        """Translate where the metrics are sent."""
        path = "logging.use_wandb"
        if not self.take(path, bool, False):
            return
        if importlib.util.find_spec("wandb") is None:
            why = (
                "W&B is not installed (pip install 'forty2[wandb]'); metrics.jsonl has every metric"
            )
            self.result.left_out[path] = why
            self.result.adapted.append(f"{path}: {why}")
            return
        self.put("report_to", ["wandb"], path)
        if self.take("logging.wandb_project", str):
            self.put("project", self.given("logging.wandb_project"), "logging.wandb_project")

    def folders(self, kto: bool) -> Folders:
        """Return the folders of the run: those of the schema, by track and name."""
        out = self.take("logging.output_dir", str)
        named = self.take("logging.wandb_run_name", str)
        two = "sft" in self.result.document.tree.get("phases", {})
        track = re.search(r"track_([a-z])\b", out or "")
        letter = track[1] if track else "c" if two else "b" if kto else "a"
        run = Path(out).name if out else named or Path(self.theirs.place).stem
        if self.kl_weight is not None:
            run = f"{re.sub(r'_?lambda[0-9.]+$', '', run)}_lambda{self.kl_weight:g}"
        if self.learning_rate is not None:
            run += f"_lr{self.learning_rate:g}"
        run = re.sub(r"[^A-Za-z0-9_.-]+", "-", run)
        place = Path("v14") / f"track_{letter}"
        parent = Path(out).parent if out else "checkpoints" / place
        for path in ("logging.output_dir", "logging.wandb_run_name"):
            self.leave_out(path, f"the run is in {parent / run}")
        return Folders(
            parent / run, "experiments" / place / f"{run}.log", "results" / place / f"{run}.json"
        )

    def rest(self) -> None:
        """Account for every key that nothing has read."""
        for path in ("model.deepspeed_config", "training.deepspeed_config", "training.distributed"):
            value = self.given(path)
            if value and not (isinstance(value, dict) and value.get("enabled") is False):
                self.result.adapted.append(f"{path}: {LEFT_OUT[path]}")
        self.account_for_rest()


_HIGHER = {"max": "higher", "min": "lower"}


def divide_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide overrides into those of their keys, such as training.beta=0.2, and those of ours."""
    theirs: list[str] = []
    ours: list[str] = []
    for override in overrides:
        keys = override.partition("=")[0].strip().split(".")
        (theirs if len(keys) > 1 and keys[0] in SECTIONS else ours).append(override)
    return theirs, ours


def _count_steps(
    rows: int, epochs: float, size: int, accumulate: int, shares: Sequence[float]
) -> int:
    """Count the optimizer steps of a phase over this many rows."""
    used = [max(1, round(share * rows)) for share in shares] or [rows] * int(epochs)
    batches = sum(math.ceil(count / size) for count in used)
    if not shares and epochs % 1:
        batches += math.ceil(max(1, round(epochs % 1 * rows)) / size)
    return max(1, math.ceil(batches / accumulate))
