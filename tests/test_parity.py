"""Against other people's code, on the starter model. `make parity` installs it and runs these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from forty2.benchmark.questions import load_questions, sample
from forty2.benchmark.truthfulqa import score
from forty2.fuse import fuse
from forty2.model.adapter import AdapterSpec, attach, save_adapter
from forty2.model.door import LoadedModel, load

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HARNESS = """task: local_{kind}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
output_type: multiple_choice
validation_split: validation
num_fewshot: 0
doc_to_text: "{{{{primer + '\\n\\nQ: ' + question + '\\nA:'}}}}"
doc_to_target: 0
doc_to_choice: "{{{{{kind}_targets.choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


def test_the_harness_scores_every_option_as_we_do(
    starter: LoadedModel, bench_data: Path, tmp_path: Path
) -> None:
    """Its prompt comes from its own task file; our data goes through its local-task door."""
    lm_eval = pytest.importorskip("lm_eval", reason="make parity installs lm-evaluation-harness")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    source = bench_data / "truthfulqa" / "mc_task_v0_817.json"
    questions = sample(load_questions(str(source)), 16, seed=7)
    asked = [item.question for item in questions.items]
    raw = {row["question"]: row for row in json.loads(source.read_text("utf-8"))}
    primer = _primer(Path(lm_eval.__file__).parent)
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        for question in asked:
            row: dict[str, Any] = {"question": question, "primer": primer}
            for kind in ("mc1_targets", "mc2_targets"):
                row[kind] = {"choices": list(raw[question][kind])}
            file.write(json.dumps(row) + "\n")
    for kind in ("mc1", "mc2"):
        task = HARNESS.format(kind=kind, data=data)
        (tmp_path / f"{kind}.yaml").write_text(task)
    model = HFLM(pretrained=starter.name, dtype="float32", device="cpu", batch_size=8)
    result = lm_eval.simple_evaluate(
        model,
        tasks=["local_mc1", "local_mc2"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        bootstrap_iters=0,
    )
    ours = score(starter.model, starter.tokenizer, questions)
    for kind in ("mc1", "mc2"):
        for sampled in result["samples"][f"local_{kind}"]:
            item = ours[asked.index(sampled["doc"]["question"])]
            theirs = [response[0] for response in sampled["filtered_resps"]]
            mine = item[kind]["loglik"]
            np.testing.assert_allclose(mine, theirs, atol=1e-3)
            assert np.argmax(mine) == np.argmax(theirs)


def _primer(package: Path) -> str:
    """The six questions before each, as the harness renders them."""
    import jinja2
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: None)
    file = package / "tasks" / "truthfulqa" / "truthfulqa_mc1.yaml"
    prompt = yaml.load(file.read_text("utf-8"), Loader)["doc_to_text"]
    text = jinja2.Template(prompt).render(question="<<question>>")
    primer, _, rest = text.partition("\n\nQ: <<question>>")
    assert rest == "\nA:"
    return str(primer)


def test_a_fused_model_is_the_same_in_transformers(starter: LoadedModel, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="make parity installs torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapted = load(starter.name)
    spec = AdapterSpec(rank=4, scale=2.0, dropout=0.0, layers=4, keys=None)
    attach(adapted.model, spec, seed=1)
    mx.random.seed(3)
    trained = tree_flatten(adapted.model.trainable_parameters())
    moved = [(name, mx.random.normal(value.shape) * 0.02) for name, value in trained]
    adapted.model.load_weights(moved, strict=False)
    (tmp_path / "adapter").mkdir()
    save_adapter(adapted.model, spec, tmp_path / "adapter")
    fused = fuse(starter.name, tmp_path / "adapter", tmp_path / "fused").path
    text = "The northern lights are caused by particles from the sun."
    tokenizer = AutoTokenizer.from_pretrained(fused)
    ids = tokenizer(text)["input_ids"]
    assert ids == adapted.tokenizer.encode(text)
    model = AutoModelForCausalLM.from_pretrained(fused, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    mine = np.asarray(adapted.model(mx.array([ids])).astype(mx.float32))[0]
    bare = np.asarray(starter.model(mx.array([ids])).astype(mx.float32))[0]
    assert np.abs(mine - bare).max() > 0.5  # the adapter does something
    np.testing.assert_allclose(theirs, mine, atol=0.05)  # weights are stored in 16 bits
