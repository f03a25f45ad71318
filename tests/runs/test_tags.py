"""Runs with tags: killed and resumed, fused, and warned of tags that nothing teaches."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from click.testing import CliRunner
from support.models import save_tiny
from support.processes import run_function
from support.small_run import make_inputs
from support.tagged_models import ADAPTER, SETTINGS

from forty2.cli import main
from forty2.errors import DataError, ModelError, RecipeError, TrainingError
from forty2.model.adapter import attach_adapter, load_arrays
from forty2.model.loading import load
from forty2.recipe.reading import load_recipe
from forty2.runs.pipeline import run
from forty2.runs.planning import plan
from forty2.runs.sweep.shared_work import _measured_alike
from forty2.runs.tags import check_other_rows

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% else %}<end>{% endif %}"
)
TAGS = [f"<{slash}{role}>" for role in ("user", "assistant") for slash in ("", "/")] + ["<end>"]
RECIPE = """
version: 1
name: tagged
model: model
max_length: 96
tags: {tags}
tags_init: {{noise: 0.1}}
chat_template: tags.jinja
adapter: {{rank: 2, scale: 4.0, dropout: 0.1, layers: 2}}
phases:
  sft: {{objective: sft, data: sft.jsonl, valid: sft.jsonl, steps: 3, lr: 1.0e-2, tags_lr: 5.0e-2,
    token_weights: {{</assistant>: 2.0, <end>: 1.5}}, batch_size: 3, save_every_steps: 1,
    eval_every_steps: 3, lint: false}}
  dpo: {{objective: dpo, data: dpo.jsonl, steps: 2, lr: 1.0e-2, batch_size: 3,
    eval_every_steps: 2, lint: false, beta: 0.1}}
fuse: {{out: fused}}
benchmark: {{tasks: [], held_out: false}}
"""


def write_recipe(inputs: Path, *tags: str) -> None:
    (inputs / "tags.jinja").write_text(TEMPLATE)
    (inputs / "tagged.yaml").write_text(RECIPE.format(tags=json.dumps([*TAGS, *tags])))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mx.random.seed(0)
    make_inputs(tmp_path / "inputs")
    monkeypatch.setenv("FORTY2_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "inputs")
    return tmp_path / "inputs"


def test_a_run_trains_tags_and_fuses_them(inputs: Path) -> None:
    write_recipe(inputs, "<unused>")
    recipe = load_recipe("tagged.yaml")
    done = run(replace(recipe, phases={"sft": recipe.phases["sft"]}), run_dir="run")
    model, tokenizer = mlx_lm.load("fused")
    (first, *_, last) = (tokenizer.encode(tag)[0] for tag in TAGS)
    assert tokenizer.encode("".join(TAGS)) == list(range(first, last + 1))
    assert last in tokenizer.eos_token_ids
    before, after = (
        load_arrays(Path(name, "model.safetensors"))["model.embed_tokens.weight"]
        for name in ("model", "fused")
    )
    np.testing.assert_array_equal(after[:first], before[:first])
    used = load("model", done.path)
    assert used.tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
    ) == ("<user>x</user><assistant>")
    ids = mx.array([used.tokenizer.encode("<user>x</user><assistant>")])
    np.testing.assert_allclose(model(ids), used.model(ids), atol=1e-4)
    arguments = ["generate", "--model", "fused", "--max-tokens", "3", "--prompt"]
    replies = [
        CliRunner().invoke(main, [*arguments, *more]).output
        for more in (["x"], ["<user>x</user><assistant>", "--raw"], ["x", "--raw"])
    ]
    assert replies[0] == replies[1] != replies[2]
    refused = CliRunner().invoke(main, [*arguments, "x", "--raw", "--system", "y"])
    assert refused.exit_code == 2 and "--raw is for --prompt alone" in refused.output
    with pytest.raises(ModelError, match="has a token <user>"):
        load("fused", done.path)


def test_tags_that_no_template_writes_are_refused_and_single_ones_warned_of(inputs: Path) -> None:
    write_recipe(inputs)
    (inputs / "tags.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    )
    changes = ["tags=[<never>]", "phases.sft.token_weights={}"]
    recipe = load_recipe("tagged.yaml", changes)
    for refusing in (lambda: plan(recipe, quick=True), lambda: run(recipe, run_dir="run")):
        with pytest.raises(DataError, match="tags: no training row holds any, so nothing teaches"):
            refusing()
    write_recipe(inputs, "<unused>")
    warnings = plan(load_recipe("tagged.yaml"), quick=True).warnings
    assert any("no training row holds <unused>, so" in warning for warning in warnings)


def test_data_is_shown_and_prepared_with_tags(inputs: Path) -> None:
    def forty2(line: str) -> str:
        result = CliRunner().invoke(main, line.split())
        assert result.exit_code == 0, result.output
        return result.output

    write_recipe(inputs)
    options = f"--model model --chat-template tags.jinja --tags {','.join(TAGS)}"
    shown = forty2(f"data show sft.jsonl --rows 1 {options} --token-weight <end>=1.5")
    assert "<user>Count to 0, please.</user><assistant>«0</assistant><end>»×1.5" in shown
    supervised = json.loads(forty2(f"data stats sft.jsonl --json {options}"))["supervised"]
    assert 0.1 < supervised < 0.4
    forty2(f"data prepare --input sft.jsonl --output-dir ready --max-length 96 {options}")
    phases = "phases={sft: {objective: sft, data: ready, steps: 1, lr: 1e-3}}"
    assert plan(load_recipe("tagged.yaml", [phases]), quick=True).phases[0].rows == 5
    weights = "phases.sft.token_weights={</user>: 2, <end>: 2}"
    warnings = plan(load_recipe("tagged.yaml", [weights]), quick=True).warnings
    assert any("no training row has </user> among its" in warning for warning in warnings)
    weights = "phases.sft.token_weights={no token: 2}"
    with pytest.raises(RecipeError, match=r"phases\.sft\.token_weights: 'no token' is 8 tokens"):
        plan(load_recipe("tagged.yaml", [weights]), quick=True)


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        (
            "<end>: 1.5",
            "no token: 1.5",
            r"tagged\.yaml:12: phases\.sft\.token_weights: 'no token' is",
        ),
        (
            "tags: [",
            'tags: ["<|im_end|>", ',
            r"tagged\.yaml:6: tags: this model has a token <\|im_end\|> already",
        ),
        ("layers: 2", "layers: 99", r"tagged\.yaml:9: adapter\.layers: 99 are more than the"),
        (
            "lint: false, beta: 0.1",
            "beta: 0.1, gate: {other: 1.0},\n    eval_prompts: builtin:mypt-alpha",
            r"tagged\.yaml:15: phases\.dpo\.gate: other: builtin:mypt-alpha has no prompt in this",
        ),
    ],
)
def test_what_the_model_or_the_prompts_do_not_allow_names_its_line(
    inputs: Path, written: str, instead: str, message: str
) -> None:
    write_recipe(inputs)
    text = Path("tagged.yaml").read_text()
    assert written in text
    Path("tagged.yaml").write_text(text.replace(written, instead))
    for begin in (functools.partial(plan, quick=True), functools.partial(run, run_dir="run")):
        with pytest.raises((RecipeError, ModelError), match=f"^{message}"):
            begin(load_recipe("tagged.yaml"))


def test_runs_of_a_sweep_share_the_measurement_of_a_base_with_the_same_tags(inputs: Path) -> None:
    write_recipe(inputs)
    recipes = [
        load_recipe("tagged.yaml", changes) for changes in ([], ["seed=9"], ["tags_init.noise=0.2"])
    ]
    same, other_seed, other_tags = (_measured_alike(recipe, inputs) for recipe in recipes)
    assert same == other_seed != other_tags


@pytest.mark.slow
def test_a_killed_run_with_tags_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    run_function(killed, tmp_path)


def killed(place: str) -> None:
    from chaos import Killer, make_inputs_in_child, results, run_child

    inputs = make_inputs_in_child(Path(place, "inputs"))
    write_recipe(inputs)
    whole = run_child(inputs, Path(place, "whole"), Killer(None), resume=False, recipe="tagged")
    assert whole.code == 0, whole.message
    wanted = results(Path(place, "whole"))
    assert any(name.endswith("tags.safetensors") for name in wanted)
    half = [n for n, label in enumerate(whole.labels, 1) if label == "half safetensors"]
    for at in (half[1], half[len(half) // 2]):
        folder = Path(place, str(at))
        ended = run_child(inputs, folder, Killer(at), resume=False, recipe="tagged")
        assert ended.code < 0, ended
        again = run_child(inputs, folder, Killer(None), resume=True, recipe="tagged")
        assert again.code == 0, again.message
        assert results(folder) == wanted


@pytest.mark.parametrize("tied", [True, False])
def test_a_changed_row_of_another_token_is_found(tmp_path: Path, tied: bool) -> None:
    save_tiny(tmp_path, tie_word_embeddings=tied)
    loaded = load(str(tmp_path), tags=SETTINGS)
    attach_adapter(loaded.model, ADAPTER, seed=1, tags=loaded.tags)
    table = loaded.model.model.embed_tokens if tied else loaded.model.lm_head
    table.weight[258] += 1  # a tag's, which the table holds no longer
    check_other_rows(loaded, trust_remote_code=False)
    for row in (0, 257, 299):
        whole = table.weight
        table.weight = whole + mx.array([[float(n == row) * 1e-6] for n in range(320)])
        with pytest.raises(TrainingError, match="tokens other than the tags have changed"):
            check_other_rows(loaded, trust_remote_code=False)
        table.weight = whole
