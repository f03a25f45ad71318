"""The schema of PhaseGPT v1.4: its sections, its names for our things, and what has no counterpart here."""

from __future__ import annotations

from collections.abc import Mapping

from forty2.data.sources import BUILTIN

SECTIONS = ("model", "training", "data", "evaluation", "logging", "experiment")
PUBLISHED_DATA = ("preferences_v14_100pairs.jsonl", "preferences_v13_10pairs.jsonl")
"""Names of its preference files. The first holds 84 unique pairs, each opened by a marker of its side,
and the second was never published: the dialectic set stands for both."""
PUBLISHED_TEXTS = ("shakespeare", "wikitext2", "wikitext-2")
DIALECTIC = f"{BUILTIN}dialectic"
ALIASES = {"spiral_density": "complexity", "subtlety_level": "subtlety"}
"""Row keys of the dialectic set, by the names of strata in the schema."""
DOMAINS = {"artistic": "arts", "social": "everyday"}
"""Domains of the dialectic set, by their names in the schema."""
MODULES = {
    **{f"{name}_proj": f"self_attn.{name}_proj" for name in "qkvo"},
    **{f"{name}_proj": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}
KL_KINDS = {
    "kl": "reverse",
    "reverse_kl": "forward",
    "js": "js",
    "js_divergence": "js",
}
"""Our kinds of KL by theirs: its "kl" is KL(policy‖reference), which is called reverse here."""
METRICS: Mapping[str, tuple[str, str]] = {
    "spiral_score": ("spiral_score", "max"),
    "subtlety": ("subtlety", "max"),
    "perplexity": ("perplexity", "min"),
    "reward_margin": ("margin", "max"),
    "kl_divergence": ("", ""),
    "loss": ("loss", "min"),
    "eval_loss": ("loss", "min"),
    "accuracy": ("accuracy", "max"),
}
"""Metrics of the schema, each with ours and the direction in which it is better; "": none to choose by."""
PUBLISHED = {
    "learning_rate": 5e-5,
    "num_epochs": 3,
    "batch_size": 4,
    "gradient_accumulation_steps": 8,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler": "cosine",
}
"""Values of its published files, for the keys that a file leaves out."""
LAUNCH = "use mlx.launch, which trains on several machines: docs/training/two-macs.md"
PHASE_ATTENTION: Mapping[str, tuple[str, type, float]] = {
    "oscillators": ("num_oscillators", int, 32),
    "steps": ("n_sync_steps", int, 5),
    "dt": ("dt", float, 0.1),
    "coupling": ("coupling_strength", float, 1.0),
}
"""Our keys of phase attention, each with theirs in `model`, its kind, and its published value."""
LEFT_OUT: Mapping[str, str] = {
    "model.lora_config.bias": "biases are not trained",
    "model.lora_config.task_type": "a language model is all there is",
    "model.use_flash_attention": "attention is fused already",
    **dict.fromkeys(
        [f"model.{key}" for key, *_ in PHASE_ATTENTION.values()]
        + ["model.phase_layer_idx", "model.natural_freq"]
        + ["logging.track_phase_dynamics", "logging.phase_log_interval"],
        "phase attention is off",
    ),
    "training.max_prompt_length": "a prompt is shortened only as far as max_length asks",
    **dict.fromkeys(
        [f"training.{key}" for key in ("fp16", "bf16", "tf32")],
        "weights keep the model's number format, and log-probabilities are fp32",
    ),
    "training.kto_config.enabled": "said by method",
    "training.kto_config.kl_temperature": "it is 1",
    **dict.fromkeys(
        ("training.phase_a.enabled", "training.phase_a.method", "training.phase_b.enabled"),
        "said by the phases themselves",
    ),
    "evaluation.save_best_only": "said by best",
    "evaluation.metric_for_best_model": "no best adapter is chosen",
    "evaluation.greater_is_better": "said by best",
    "training.curriculum_learning.enabled": "said by stages",
    "training.deepspeed_config": f"DeepSpeed is not used; {LAUNCH}",
    "model.deepspeed_config": f"DeepSpeed is not used; {LAUNCH}",
    "training.distributed": f"not part of a recipe; {LAUNCH}",
    **dict.fromkeys(
        [
            f"{part}.{key}"
            for part in ("data", "experiment")
            for key in ("num_workers", "pin_memory")
        ]
        + ["data.prefetch_factor"],
        "rows are in memory",
    ),
    "data.phase_a_seq_len": "max_length is that of all phases",
    "data.augmentation": "rows are used as they are",
    "evaluation.eval_steps": "every validation row is measured",
    "evaluation.save_strategy": "said by save_steps",
    "evaluation.save_total_limit": "a run keeps the checkpoint that it can go on from",
    "evaluation.test_on_held_out": "said by held_out_domains",
    "evaluation.baseline_checkpoint": "every stage is compared with the base model",
    "evaluation.compute_relative_metrics": "every stage is compared with the base model",
    "evaluation.scaling_metrics": "tokens a second and peak memory are in metrics.jsonl",
    "evaluation.zero_shot_tasks": "were never defined; name benchmarks in benchmark.tasks",
    "logging.use_wandb": "nothing is sent anywhere; every metric is in metrics.jsonl",
    "logging.wandb_project": "nothing is sent to W&B",
    **dict.fromkeys(
        [f"logging.{key}" for key in ("logging_steps", "log_kl_components", "log_throughput")]
        + [f"logging.{key}" for key in ("log_reward_components", "log_gpu_memory")],
        "every step is logged, with all its figures",
    ),
    "logging.log_level": "warnings are always shown",
    "experiment.device": "MLX runs on the machine's GPU, or on its CPU",
    "experiment.deterministic": "a run is always the same on one machine",
    "ablation_study": "forty2 sweep phasegpt-track-b compares the values of λ",
    "notes": "text for readers",
    "comparison_table": "text for readers",
}
"""Keys without a counterpart here, with all keys below them, and why."""
