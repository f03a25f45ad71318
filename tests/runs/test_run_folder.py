"""What a user meets around a run: refusals that leave nothing behind, notices, what is replaced."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner, Result
from support.small_run import make_inputs

from forty2.cli import main
from forty2.errors import TrainingError
from forty2.export.fusing import fuse
from forty2.files import read_json
from forty2.model.adapter import load_arrays
from forty2.model.loading import LoadedModel, load
from forty2.recipe.reading import load_recipe
from forty2.runs.pipeline import run
from forty2.runs.planning import RunForecast, plan

OLD = Path(__file__).parents[1] / "old_runs" / "sealed"
RECIPE = """
version: 1
name: mine
model: model
max_length: {length}
adapter: {{rank: 2, scale: 4.0, layers: 2}}
phases:
  sft: {{objective: sft, data: sft.jsonl, steps: 2, lr: 1.0e-2}}
  dpo: {{objective: dpo, data: dpo.jsonl, steps: 2, lr: 1.0e-2, beta: 0.1}}
fuse: {{}}
benchmark: null
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mx.random.seed(0)
    folder = make_inputs(tmp_path / "inputs")
    (folder / "mine.yaml").write_text(RECIPE.format(length=96))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    return folder


def forty2(line: str) -> Result:
    return CliRunner().invoke(main, line.split())


def done(line: str) -> str:
    result = forty2(line)
    assert result.exit_code == 0, result.output
    return result.output


def refused(line: str) -> str:
    result = forty2(line)
    assert result.exit_code == 2, result.output
    return result.output


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("adapter.layers=100", "more than the 3 blocks"),
        ("adapter.keys=[self_attn.q_proj, mlp.upproj]", "did you mean mlp.up_proj"),
        ("phases.dpo.best={metric: loss, direction: min}", "there are none"),
        ("phases.sft.data=dpo.jsonl", "is a preference pair"),
    ],
)
@pytest.mark.parametrize("measured", [False, True])
def test_what_was_refused_does_not_hold_the_run_s_place(
    mistake: str, said: str, measured: bool, here: Path
) -> None:
    """Nor is the base measured first, for minutes."""
    if measured:
        text = RECIPE.format(length=96).replace("null", "{n: 2, questions: questions.json}")
        (here / "mine.yaml").write_text(text)
    result = CliRunner().invoke(main, ["run", "mine.yaml", "--set", mistake])
    assert result.exit_code == 2 and said in result.output
    assert not list(here.glob("adapters/mine/benchmarks/*"))
    if not measured:
        done("run mine.yaml")
        assert "go on with --resume" in refused("run mine.yaml")


def test_keys_that_name_no_layer_are_refused_by_the_plan_too(here: Path) -> None:
    for keys, said in (
        ("[self_attn.q_proj,mlp.upproj]", "adapter.keys: 'mlp.upproj' names no layer"),
        ("[input_layernorm]", "input_layernorm is a RMSNorm, which takes no adapter"),
    ):
        assert said in refused(f"plan mine.yaml --set adapter.keys={keys}")
        assert said in refused(f"run mine.yaml --set adapter.keys={keys}")
    assert not list(here.glob("adapters/mine/phase*"))


def test_the_plan_counts_what_each_adapter_trains_and_stores(here: Path) -> None:
    def planned(adapter: str) -> RunForecast:
        return plan(load_recipe("mine.yaml", [f"adapter={adapter}"]), quick=True)

    lora, dora, embedding = (
        planned(f"{{rank: 2, {more}}}")
        for more in (
            "layers: 2",
            "layers: 2, type: dora",
            "layers: 2, keys: [self_attn.q_proj, model.embed_tokens]",
        )
    )
    outputs = 32 + 16 + 16 + 32 + 64 + 64 + 32
    assert dora.trainable == lora.trainable + 2 * outputs
    assert dora.peak_memory_gb > lora.peak_memory_gb + 4 * 4 * 2 * outputs / 1e9
    assert lora.phases[1].stored_gb == dora.phases[1].stored_gb > 0
    assert embedding.phases[1].stored_gb == 0
    assert not any("adapter.rank" in warning for warning in lora.warnings)
    assert any("adapter.rank is 64, but" in w for w in planned("{rank: 64, layers: 2}").warnings)


KINDS = [
    "{type: dora, rank: 2, scale: 4.0, layers: 2, dropout: 0.1}",
    "{type: dora, rank: 2, scale: 4.0, keys: [self_attn.q_proj, model.embed_tokens]}",
    "{rank: 2, scale: 4.0, layers: 1, keys: [mlp.up_proj, model.embed_tokens], dropout: 0.1}",
]


@pytest.mark.parametrize("adapter", KINDS)
def test_any_adapter_is_resumed_bit_for_bit_fused_exactly_and_read_by_mlx_lm(
    adapter: str, here: Path
) -> None:
    changes = [f"adapter={adapter}", "phases.dpo.steps=5", "phases.dpo.save_every_steps=2"]
    recipe = load_recipe("mine.yaml", [*changes, "fuse.quantize=8"])
    whole = run(recipe, run_dir="whole")

    class Stop(Exception):
        pass

    def stop(stage: str, done: int, total: int, info: object) -> None:
        if stage == "phase2_dpo" and done == 3:
            raise Stop

    with pytest.raises(Stop):
        run(recipe, run_dir="parts", progress=stop)
    parts = run(recipe, run_dir="parts", resume=True)
    for name in ("phase1_sft", "phase2_dpo"):
        for file in ("adapters.safetensors", "adapter_config.json"):
            assert (whole.path / name / file).read_bytes() == (
                parts.path / name / file
            ).read_bytes()
    fused = read_json(whole.path / "fused.json")
    assert fused["parity_kl"] < 1e-6 < fused["adapter_kl"]
    assert 0.5 < fused["quantised"]["cosine"] <= 1
    ids = mx.array([[5, 7, 200, 31, 9]])
    stock, _ = mlx_lm.load("model", adapter_path=str(whole.adapter))[:2]
    ours = load("model", whole.adapter).model
    assert mx.array_equal(stock(ids), ours(ids))
    assert not mx.allclose(ours(ids), load("model").model(ids), atol=1e-3)
    assert whole.fused is not None
    assert mx.allclose(load(str(whole.fused)).model(ids), ours(ids), atol=1e-4)


def test_a_resume_that_finds_no_run_is_refused_and_names_close_ones(here: Path) -> None:
    """A typing error must not start a new run of some hours."""
    line = "run mine.yaml --resume --run-dir adapters/mien"
    assert "adapters/mien: there is no run to resume; there are no runs in adapters" in refused(
        line
    )
    shutil.copytree(OLD, here / "adapters" / "mine")
    assert "there is no run to resume; did you mean adapters/mine?" in refused(line)
    assert not (here / "adapters" / "mien").exists()
    (here / "file").write_text("")
    assert "file: is a file; name another --run-dir" in refused("run mine.yaml --run-dir file")


def test_a_run_that_stopped_before_its_first_file_is_resumed(here: Path) -> None:
    folder = here / "adapters" / "mine"
    folder.mkdir(parents=True)
    (folder / "run.lock").touch()
    done("run mine.yaml --resume")
    assert (folder / "phase2_dpo" / "phase.json").exists()


def test_the_error_that_ended_a_run_is_recorded_until_it_goes_on(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TrainingError("phases.sft: the loss is not finite")

    with monkeypatch.context() as patched:
        patched.setattr("forty2.runs.pipeline.finish_phase", fail)
        assert "the loss is not finite" in refused("run mine.yaml")
    failed = here / "adapters" / "mine" / "failed.json"
    assert read_json(failed)["error"] == "TrainingError: phases.sft: the loss is not finite"
    done("run mine.yaml --resume")
    assert not failed.exists()


def test_each_run_has_a_fused_model_of_its_own(here: Path) -> None:
    done("run mine.yaml")
    done("run mine.yaml --run-dir adapters/other --set seed=2")
    weights = [
        (here / "fused_models" / name / "model.safetensors").read_bytes()
        for name in ("mine", "other")
    ]
    assert weights[0] != weights[1]
    found = refused("run mine.yaml --run-dir adapters/third --set fuse.out=fused_models/mine")
    assert "fused_models/mine: holds the model fused with adapters/mine/phase2_dpo" in found
    assert not list(here.glob("adapters/third/phase*"))


def test_a_run_ends_with_what_to_look_at(here: Path) -> None:
    (here / "mine.yaml").write_text(RECIPE.format(length=46))
    planned, ran = done("plan mine.yaml"), done("run mine.yaml --set phases.dpo.lr=1e-9")
    for output in (planned, ran):
        assert "warning: dpo:" in output and "lose" in planned and "lost" in ran


def test_a_plan_refuses_what_the_run_would(here: Path) -> None:
    for line, said in (
        ("--set phases.dpo.best.metric=loss --set phases.dpo.best.direction=min", "there are none"),
        ("--set phases.sft.eval_prompts=dpo.jsonl", "dpo.jsonl"),
    ):
        assert said in refused(f"plan mine.yaml {line}")
        assert said in refused(f"run mine.yaml {line}")


def test_an_adapter_on_other_weights_is_told_of(here: Path) -> None:
    done("run mine.yaml")
    prompt = "-p hi --max-tokens 2"
    assert "warning" not in done(f"generate -m model -a adapters/mine {prompt}")
    line = f"-m forty2 generate -m fused_models/mine -a adapters/mine {prompt}"
    ran = subprocess.run([sys.executable, *line.split()], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "warning: adapters/mine/phase2_dpo was trained on model" in ran.stderr
    assert "door.py" not in ran.stderr


def test_texts_that_cannot_be_scored_are_named(here: Path) -> None:
    (here / "latin.txt").write_bytes("Käse".encode("latin-1"))
    (here / "empty.txt").write_text("")
    assert "latin.txt: not UTF-8" in refused("benchmark perplexity -m model latin.txt")
    assert "empty.txt: no text of two" in refused("benchmark perplexity -m model empty.txt")
    assert "Invalid value for '--seed'" in refused("generate -m model -p hi --seed -1")


def test_a_model_that_overflows_has_no_perplexity(here: Path) -> None:
    weights = load_arrays(here / "model" / "model.safetensors")
    huge = mx.full(weights["model.norm.weight"].shape, 3e38)  # finite, unlike its products
    mx.save_safetensors("model/model.safetensors", weights | {"model.norm.weight": huge})
    (here / "text.txt").write_text("Some words, and then some more.")
    found = refused("benchmark perplexity -m model text.txt -o out.json")
    assert "the model is broken" in found and not (here / "out.json").exists()


def test_fusing_in_16_bits_is_not_refused_for_its_rounding(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small adapter's effect is no more than what rounding the sum to 16 bits makes of it."""
    done("run mine.yaml --set phases.sft.lr=1e-4 --set phases.dpo.lr=1e-4 --set fuse=null")
    in_32 = fuse("model", "adapters/mine", "in_32")
    assert in_32.parity_kl < 1e-7 and not in_32.warnings

    def in_16(*arguments: Any, **others: Any) -> LoadedModel:
        loaded = load(*arguments, **others)
        for module in loaded.model.modules():
            own = {k: v for k, v in module.items() if isinstance(v, mx.array) and "lora" not in k}
            module.update({k: v.astype(mx.bfloat16) for k, v in own.items()})
        return loaded

    monkeypatch.setattr("forty2.export.fusing.load", in_16)
    fused = fuse("model", "adapters/mine", "in_16")
    assert fused.parity_kl > 0.05 * fused.adapter_kl
    assert "rounding to 16 bits moves the model" in fused.warnings[0]


def test_eval_prompts_of_two_models_are_compared(here: Path) -> None:
    done("run mine.yaml")
    for name, adapter in (("base", ""), ("tuned", "-a adapters/mine")):
        done(f"benchmark eval-prompts -m model {adapter} -p prompts.json -o {name}.json")
    told = done("compare base.json tuned.json")
    assert "passed: count" in told and "prompts.json, 6 questions" in told
    result: dict[str, Any] = json.loads((here / "tuned.json").read_text())
    result["items"][0]["passed"] = not result["items"][0]["passed"]
    (here / "tuned.json").write_text(json.dumps(result))
    assert "passed is stored as" in refused("compare base.json tuned.json")


def test_tables_fit_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done("run mine.yaml")
    done("benchmark behaviour -m model -o before.json")
    done("benchmark behaviour -m model -a adapters/mine -o after.json")
    for command in ("plan mine.yaml", "compare before.json after.json", "recipe list"):
        wide = [line for line in done(command).splitlines() if len(line) > 80]
        assert not wide, f"{command}: {wide}"


def test_python_s_names_stay_what_they_are() -> None:
    """No module takes a function's place when it is imported."""
    script = (
        "import importlib, pkgutil, types, forty2\n"
        "for found in pkgutil.walk_packages(forty2.__path__, 'forty2.'):\n"
        "    if '.workers' not in found.name and '__main__' not in found.name:\n"
        "        importlib.import_module(found.name)\n"
        "print([n for n in forty2.__all__ if isinstance(getattr(forty2, n), types.ModuleType)])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout.strip() == "[]", ran.stderr


def test_a_template_s_end_of_turn_ends_replies_of_the_run_s_models(here: Path) -> None:
    """The model's own end of text is another token, at which no turn in the rows ends."""
    config = here / "model" / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"eos_token": "~"}
    config.write_text(json.dumps(settings))
    model = here / "model" / "config.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"eos_token_id": None}))
    notice = "the chat template ends turns with <|im_end|>, at which generation from model does not"
    assert notice in done("plan mine.yaml")
    assert notice in done("run mine.yaml --run-dir run --set fuse.out=fused")
    tokenizer = load("fused").tokenizer
    ends = {tokenizer.convert_ids_to_tokens(i) for i in tokenizer.eos_token_ids}
    assert ends == {"~", "<|im_end|>"}
    assert ends == {
        tokenizer.convert_ids_to_tokens(i) for i in load("model", "run").tokenizer.eos_token_ids
    }


def test_keys_of_rows_that_nothing_reads_are_listed_before_training(here: Path) -> None:
    rows = [json.loads(line) for line in (here / "sft.jsonl").read_text().splitlines()]
    (here / "sft.jsonl").write_text("".join(json.dumps(row | {"id": 1}) + "\n" for row in rows))
    said = done("train mine.yaml --phase sft --run-dir run --set phases.sft.steps=1")
    assert "sft: ignored: id (6 rows)" in said
