"""Configurations of MyPT's stages become recipes of one phase, every key accounted for."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from forty2.cli import main
from forty2.errors import RecipeError
from forty2.recipe.reading import load_recipe, load_translation

ALPHA: dict[str, Any] = {
    "name": "GPT-750M-Phase3a1-Alpha",
    "description": "format lock",
    **{"batch_size": 16, "block_size": 512, "vocab_size": 50304, "n_embd": 1280, "n_head": 20},
    **{"n_layer": 32, "dropout": 0.05, "bias": False, "tie_weights": True, "learning_rate": 7e-5},
    **{"max_iters": 3500, "eval_interval": 100, "warmup_iters": 150, "use_amp": True},
    **{"amp_dtype": "bf16", "use_loss_mask": True, "batch_sampling_mode": "epoch"},
    **{"pad_token_id": None, "episode_min_tokens": 10, "epoch_seed": 4501, "epoch_shuffle": True},
    **{"epoch_drop_last": True, "weight_decay": 0.05, "eval_sets": None, "eval_seed": 1337},
    "log_file": "logs/train/phase3a1_alpha.jsonl",
}
"""The keys and values of 750M_phase3a1_alpha.json."""
DATA = "dataset_dir=builtin:spark-sft"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)

    def write(**changes: Any) -> str:
        Path("alpha.json").write_text(json.dumps({**ALPHA, **changes}, indent=2))
        return "alpha.json"

    return write


def test_a_configuration_is_the_phase_that_it_describes(written: Any) -> None:
    with pytest.warns(UserWarning, match="16 keys have no counterpart"):
        recipe = load_recipe(written(), [DATA])
    assert (recipe.name, recipe.model, recipe.seed) == (ALPHA["name"], "smollm2", 4501)
    assert (recipe.max_length, recipe.adapter.dropout) == (512, 0.05)
    (phase,) = recipe.phases.values()
    assert (phase.objective, phase.steps, phase.batch_size, phase.lr) == ("sft", 3500, 16, 7e-5)
    assert (phase.warmup_steps, phase.eval_every_steps, phase.weight_decay) == (150, 100, 0.05)
    assert phase.schedule == "constant"


def test_every_key_is_translated_or_left_out_for_a_reason(written: Any) -> None:
    found = load_translation(
        written(eval_sets={"format": "data/alpha"}, grad_accum_steps=2), [DATA]
    )
    assert found is not None
    said = {note.partition(":")[0] for note in found.notes.values()} | {*found.left_out}
    said -= {"none is named", "none is given"}  # of keys that the file leaves out
    given = {key for key, value in ALPHA.items() if value is not None}
    assert given | {"eval_sets", "grad_accum_steps", "dataset_dir"} == said
    assert all(found.left_out.values())


def test_flags_of_the_script_are_keys_and_ours_apply_after_them(written: Any) -> None:
    prompts = {"prompts": {"say_1": "Say it."}, "expected_outputs": {"say_1": "it"}}
    Path("prompts.json").write_text(json.dumps(prompts))
    sets = [DATA, "model_name=alpha", "eval_prompts_file=prompts.json", "max_iters=80"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe = load_recipe(written(), [*sets, "phases.alpha.gate={say: 0.9}"], lr=1e-4)
    phase = recipe.phases["alpha"]
    assert (phase.steps, phase.lr, phase.eval_prompts) == (80, 1e-4, "prompts.json")
    assert phase.gate == {"say": 0.9}
    assert phase.warmup_steps == 0 and phase.eval_every_steps is None  # beyond the last step


def test_a_stage_goes_on_from_a_run_or_from_a_model(written: Any) -> None:
    run = Path("adapters/phase3a1_alpha")
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"model": "models/base"}')
    found = load_translation(written(init_from_model="phase3a1_alpha"), [DATA])
    assert found is not None
    assert found.document.tree["init_from"] == "adapters/phase3a1_alpha"
    assert found.document.tree["model"] == "models/base"
    model = Path("domain_v5")
    model.mkdir()
    (model / "config.json").write_text("{}")
    found = load_translation(written(init_from_model="domain_v5"), [DATA])
    assert found is not None and found.document.tree["model"] == "domain_v5"
    found = load_translation(written(init_from_model="elsewhere"), [DATA])
    assert found is not None and "elsewhere is neither" in found.adapted[0]


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"learning_rte": 1},
            "learning_rte: not a key of this schema; did you mean learning_rate?",
        ),
        ({"max_iters": "many"}, "max_iters: should be a whole number, not 'many'"),
        ({"use_loss_mask": False}, "use_loss_mask: replies alone are learned; set it to true"),
        ({"batch_sampling_mode": "random"}, "batch_sampling_mode: every pass uses each row once"),
        ({"dataset_dir": "nowhere"}, "dataset_dir: nowhere: no such file or folder"),
        ({"dataset_dir": None}, "dataset_dir: missing; name the rows"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    written: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(written(**{"dataset_dir": "builtin:spark-sft", **changes}))
    assert message in str(error.value) and str(error.value).count("\n") == 0


def test_the_command_prints_a_recipe_of_ours(written: Any) -> None:
    line = ["recipe", "convert", written(min_lr=1e-6), "--set", DATA]
    shown = CliRunner().invoke(main, line)
    assert shown.exit_code == 0, shown.output
    assert "# min_lr: the rate falls to zero instead" in shown.output
    assert "n_layer: the shape is the model's own" in shown.output
    Path("ours.yaml").write_text(shown.output)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_recipe("ours.yaml") == load_recipe("alpha.json", [DATA])
    missing = CliRunner().invoke(main, ["recipe", "convert", written()])
    assert missing.exit_code == 2 and "--set dataset_dir=DIR" in missing.output
