"""Training configurations of MyPT, one JSON file a stage, translated to recipes of one phase.

A file names neither rows nor model: its scripts took them as flags, which are keys here, so that
`--set dataset_dir=DIR` gives them. Paths are relative to the working directory, as in its scripts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from forty2.errors import RecipeError
from forty2.files import read_json
from forty2.recipe.document import Document, listed
from forty2.recipe.paths import NO_FILES, STARTER
from forty2.recipe.translation import Translation, Translator
from forty2.run_paths import HOME

OF_FLAGS = ("model_name", "dataset_dir", "init_from_model", "eval_prompts_file")
"""Values that its scripts took as flags."""
_SHAPE = "the shape is the model's own"
_DTYPE = "the weights keep the model's own precision"
_ROWS_IN_ALL = "every pass uses each row once, in an order drawn by the seed"
LEFT_OUT: Mapping[str, str] = {
    "description": "a remark",
    **dict.fromkeys(("vocab_size", "n_embd", "n_head", "n_layer", "bias", "tie_weights"), _SHAPE),
    **dict.fromkeys(("pos_encoding", "mlp_type", "norm_type", "rope_theta", "rope_scale"), _SHAPE),
    **dict.fromkeys(("use_amp", "amp_dtype"), _DTYPE),
    **dict.fromkeys(("batch_sampling_mode", "epoch_shuffle"), _ROWS_IN_ALL),
    "use_loss_mask": "replies alone are learned, always",
    "pad_token_id": "padding is never learned",
    "episode_min_tokens": "rows of any length are used; forty2 data lint finds empty ones",
    "epoch_drop_last": "the last batch of a pass is used, too, though it may be smaller",
    "eval_iters": "every validation row is read",
    "eval_seed": "every validation row is read",
    "eval_sets": "the validation rows and eval prompts of all phases are measured at every stage",
    "log_file": "the log is RUN/metrics.jsonl",
    "lr_decay_iters": "the learning rate falls until the last step",
    "decay_lr": "see schedule",
}
"""Keys without a counterpart."""


def is_mypt(tree: Mapping[str, object]) -> bool:
    """Return whether a recipe is one of its configurations."""
    return "phases" not in tree and "max_iters" in tree and "learning_rate" in tree


def translate(
    document: Document, *, lr: float | None = None, kl_weight: float | None = None
) -> Translation:
    """Translate a configuration.

    Args:
        document: the file, with `--set` already applied to its own keys.
        lr: value of the flag `--lr`.
        kl_weight: value of the flag `--lambda`, for which there is no term here.

    Raises:
        RecipeError: listing every key that is unknown, of a wrong type, or cannot be had.
    """
    translator = _Translator(document)
    found = translator.translate(lr, kl_weight)
    if translator.problems:
        raise RecipeError(listed(translator.problems))
    return found


def divide_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide overrides into those of its keys, such as max_iters=600, and those of ours."""
    theirs: list[str] = []
    ours: list[str] = []
    for override in overrides:
        key = override.partition("=")[0].strip()
        (theirs if key in (*OF_FLAGS, *_TRANSLATED, *LEFT_OUT) else ours).append(override)
    return theirs, ours


_TRANSLATED = (
    *(
        "batch_size",
        "block_size",
        "dropout",
        "learning_rate",
        "min_lr",
        "max_iters",
        "weight_decay",
    ),
    *(
        "eval_interval",
        "save_interval",
        "warmup_iters",
        "grad_accum_steps",
        "grad_clip",
        "epoch_seed",
    ),
)


class _Translator(Translator):
    left_out_keys = LEFT_OUT
    absent = "none is given"

    def translate(self, lr: float | None, kl_weight: float | None) -> Translation:
        self.put("version", 1, "")
        path = "model_name" if self.take("model_name", str) else "name"
        if path == "model_name":
            self.leave_out("name", "model_name names the run")
        name = self.take(path, str) or Path(self.theirs.place).stem
        slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")[:64] or "mypt"
        self.put("name", slug, path)
        self.model()
        self.put("seed", self.take("epoch_seed", int, 42), "epoch_seed")
        self.put("max_length", self.take("block_size", int, 1024), "block_size")
        self.put(
            "adapter.dropout",
            self.take("dropout", float, 0.0),
            "dropout",
            "of the adapter's inputs; the model's own weights do not change",
        )
        self.phase(f"phases.{slug}", lr)
        if kl_weight is not None:
            self.report("max_iters", "a λ needs a phase of preferences; this one learns from chats")
        self.account_for_rest()
        return self.result

    def model(self) -> None:
        """Translate the checkpoint that training begins with: a model's folder, or a run of ours."""
        path = "init_from_model"
        found = self.take(path, str)
        run = found and next(
            (one for one in (found, str(HOME / found)) if (Path(one) / "run.json").exists()), None
        )
        if found is None:
            self.put("model", STARTER, "", "none is named")
        elif run:
            self.put("model", read_json(Path(run) / "run.json")["model"], "", f"that of {run}")
            self.put("init_from", run, path)
        elif os.path.exists(os.path.join(found, "config.json")):
            self.put("model", found, path)
        else:
            why = f"{found} is neither a model's folder nor a run; the starter model stands for it"
            self.adapt("model", STARTER, path, why)

    def phase(self, at: str, lr: float | None) -> None:
        self.put(f"{at}.objective", "sft", "")
        self.file(f"{at}.data", "dataset_dir", required=True)
        self.file(f"{at}.eval_prompts", "eval_prompts_file")
        steps = self.take("max_iters", int)
        self.put(f"{at}.steps", steps, "max_iters")
        self.put(f"{at}.batch_size", self.take("batch_size", int, 4), "batch_size")
        self.put(f"{at}.accumulate", self.take("grad_accum_steps", int, 1), "grad_accum_steps")
        rate = self.take("learning_rate", float)
        self.put(f"{at}.lr", rate if lr is None else lr, "learning_rate" if lr is None else "--lr")
        if self.take("min_lr", float) is not None:
            self.adapt(f"{at}.schedule", "cosine", "min_lr", "the rate falls to zero instead")
        self.put(f"{at}.weight_decay", self.take("weight_decay", float, 0.0), "weight_decay")
        self.put(f"{at}.clip_norm", self.take("grad_clip", float, 1.0), "grad_clip")
        for ours, path in (
            ("warmup_steps", "warmup_iters"),
            ("eval_every_steps", "eval_interval"),
            ("save_every_steps", "save_interval"),
        ):
            self.count(f"{at}.{ours}", path, steps)
        if self.take("use_loss_mask", bool, True) is False:
            self.report("use_loss_mask", "replies alone are learned; set it to true")
        if self.take("batch_sampling_mode", str, "epoch") != "epoch":
            self.report("batch_sampling_mode", f"{_ROWS_IN_ALL}; write epoch")

    def file(self, at: str, path: str, *, required: bool = False) -> None:
        """Translate a path, which a flag of its scripts gave."""
        found = self.take(path, str)
        if found is None and required:
            self.report(path, f"missing; name the rows: `overrides` {path}=DIR")
        elif found is not None and not found.startswith(NO_FILES) and not os.path.exists(found):
            self.report(path, f"{found}: no such file or folder")
        elif found is not None:
            self.put(at, found, path)

    def count(self, at: str, path: str, steps: int | None) -> None:
        """Translate a number of steps; one that is never reached becomes ours by default."""
        every = self.take(path, int)
        if every is None or steps is None:
            return
        if every <= steps:
            self.put(at, every, path)
        else:
            why = f"{every} is beyond the last of {steps} steps and would never come"
            self.result.left_out[path] = why
            self.result.adapted.append(f"{path}: {why}")
