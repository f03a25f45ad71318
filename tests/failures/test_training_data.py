"""What a model was trained on: a file, or all that a run and those before it read."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from forty2.errors import DataError
from forty2.failures.training_data import TrainingFile, TrainingSearch, about_file, training_files

PROMPTS = ["Where does the old river cross the northern road?", "What is 12 plus 5?", "Why?"]
QUESTIONS = [({"role": "user", "content": text},) for text in PROMPTS]


def run_folder(folder: Path, phases: str, more: str = "") -> Path:
    """Write what is read of a run."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    recipe = f"version: 1\nname: x\nmodel: smollm2\n{more}phases:\n{phases}"
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def phase(name: str, data: str, more: str = "") -> str:
    return f"  {name}: {{objective: sft, data: '{data}', steps: 1, lr: 1e-4{more}}}\n"


def chats(path: Path, *prompts: str) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}]}
        for text in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_file_stands_for_itself(tmp_path: Path) -> None:
    path = chats(tmp_path / "a.jsonl", "Hello?")
    (file,) = training_files(str(path))
    assert file.source == str(path) and len(about_file(file)["sha256"]) == 64


def test_a_run_stands_for_all_that_it_and_those_before_it_read(tmp_path: Path) -> None:
    a, b, v, r = (chats(tmp_path / f"{name}.jsonl", f"{name}?") for name in "abvr")
    first = run_folder(tmp_path / "first", phase("one", str(a)))
    adapter = first / "phase1-one"
    adapter.mkdir()
    lora = {"rank": 2, "scale": 4.0, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    parts = {"lora_a": mx.zeros((4, 2)), "lora_b": mx.zeros((2, 4))}
    weights = {f"model.layers.0.self_attn.q_proj.{name}": part for name, part in parts.items()}
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    replay = f", replay: [{{from: '{r}', share: 0.1}}]"
    valid = f", valid: '{v}'"
    second = run_folder(
        tmp_path / "second",
        phase("two", str(b), valid + replay),
        f"init_from: '{adapter}'\n",
    )
    assert {file.source for file in training_files(str(second))} == {str(p) for p in (a, b, v, r)}


def test_prepared_ids_cannot_be_compared(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    (prepared / "train").mkdir(parents=True)
    (prepared / "train" / "rows.idx").write_bytes(b"")
    (prepared / "train.jsonl").write_bytes(b"")
    run = run_folder(tmp_path / "run", phase("one", str(prepared)))
    with pytest.raises(DataError, match="prepared token ids"):
        training_files(str(run))


def test_a_built_in_set_is_searched(tmp_path: Path) -> None:
    from forty2.data.build import build
    from forty2.data.formats import parse
    from forty2.data.record_texts import prompt_turns

    trained = prompt_turns(parse(dict(build("spark-dpo", seed=7).train[0]), "x"))[-1]
    search = TrainingSearch([({"role": "user", "content": trained},), *QUESTIONS])
    found = search.search(TrainingFile("x", "builtin:spark-dpo", 7))
    assert found.hits == {0: "prompt"} and found.rows > 100


def test_questions_are_found_as_prompts_and_in_benchmark_rows(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps({"question": PROMPTS[0], "choices": ["here", "there"]}) + "\n")
    search = TrainingSearch(QUESTIONS)
    assert search.search(TrainingFile("x", str(path))).hits == {0: "prompt"}
    also = chats(tmp_path / "b.jsonl", "why", "What is 12 plus 55?")
    assert search.search(TrainingFile("x", str(also))).hits == {2: "prompt"}
