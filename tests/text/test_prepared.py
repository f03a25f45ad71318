"""Prepared data is what tokenising on the spot gives; packed rows do not see each other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner
from mlx.utils import tree_flatten
from support.models import ARCHITECTURES, tiny_model
from support.runs import short_checks

import forty2
from forty2.cli import main
from forty2.data.formats import parse
from forty2.data.library import isotopes
from forty2.data.sources import dumps, read_rows
from forty2.errors import DataError
from forty2.inference.logprobs import supported_shortcuts
from forty2.model.kv_cache import can_pack
from forty2.model.loading import LoadedModel, load_tokenizer
from forty2.text.encoder import Encoder
from forty2.text.prepared import Prepared, open_prepared, tokenizer_key
from forty2.text.preparing import Preparation, prepare
from forty2.text.rows import Row
from forty2.training.batched_loss import ConversationLoss
from forty2.training.batches import sft_batch


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "chats.jsonl"
    path.write_text(dumps([{"messages": row["messages"]} for row in isotopes()[:120]]))
    return path


@pytest.fixture(scope="module")
def ready(source: Path, starter: LoadedModel) -> dict[str, Path]:
    folders = {}
    for name, pack in (("plain", False), ("packed", True)):
        folders[name] = source.parent / name
        written(source, folders[name], starter, workers=1, max_length=512, pack=pack)
    return folders


def written(
    source: Path, folder: Path, starter: LoadedModel, workers: int | None = None, **how: Any
) -> dict[str, Any]:
    preparation = Preparation(**how)
    return prepare(source, folder, starter.name, load_tokenizer, preparation, workers=workers)


def opened(folder: Path, starter: LoadedModel) -> dict[str, Prepared]:
    return open_prepared(folder, tokenizer_key(starter.tokenizer), 512)


def test_prepared_rows_are_the_encoders(
    source: Path, ready: dict[str, Path], starter: LoadedModel
) -> None:
    encoder = Encoder(starter.tokenizer)
    wanted = {(tuple(r.ids), tuple(r.mask)) for r in _rows(source, encoder)}
    splits = opened(ready["plain"], starter)
    got = [(tuple(row.ids), tuple(row.mask)) for rows in splits.values() for row in rows]
    assert set(got) == wanted and len(got) == 120
    assert [len(row.ids) for row in splits["train"]] == splits["train"].lengths
    origins = (ready["plain"] / "valid" / "origins.txt").read_text().splitlines()
    assert len(origins) == len(splits["valid"]) == 12
    first = next(r for r in _rows(source, encoder) if r.origin == origins[0])
    assert first.ids == splits["valid"][0].ids


def _rows(source: Path, encoder: Encoder) -> list[Row]:
    return [encoder.encode_sft_record(parse(row, origin))[0] for origin, row in read_rows(source)]  # type: ignore[arg-type]


def test_packs_hold_the_same_rows_in_less_room(
    ready: dict[str, Path], starter: LoadedModel
) -> None:
    plain, packs = (opened(ready[name], starter)["train"] for name in ("plain", "packed"))
    assert len(packs) < 0.4 * len(plain)
    assert sum(packs.lengths) == sum(plain.lengths) > 0.9 * 512 * (len(packs) - 1)
    apart = []
    for row in packs:
        for segment in sorted(set(row.segments or [0])):
            at = [i for i, s in enumerate(row.segments or [0] * len(row.ids)) if s == segment]
            assert at == list(range(at[0], at[-1] + 1)) and not row.mask[at[0]]
            apart.append(tuple(row.ids[i] for i in at))
    assert sorted(apart) == sorted(tuple(row.ids) for row in plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_train_as_rows_apart(architecture: str) -> None:
    """Loss and gradients; gemma2 takes no mask per row and must be found out."""
    model = tiny_model(architecture)
    assert can_pack(model) == (architecture != "gemma2")
    if not can_pack(model):
        return
    generator = random.Random(3)
    rows = [
        Row([generator.randrange(1, 300) for _ in range(n)], [i > n // 3 for i in range(n)], "r")
        for n in (9, 5, 14, 3)
    ]
    joined = Row(
        [i for row in rows for i in row.ids],
        [m for row in rows for m in row.mask],
        "pack",
        [n for n, row in enumerate(rows) for _ in row.ids],
    )

    def gradients(rows: list[Row]) -> tuple[float, dict[str, np.ndarray]]:
        objective = ConversationLoss(rows, supported_shortcuts(model))
        arrays = objective.arrays(sft_batch(rows, range(len(rows))))
        total, grads = mx.value_and_grad(
            lambda parameters: _loss(model, parameters, objective, arrays)
        )(model.trainable_parameters())
        return float(np.asarray(total)), {k: np.asarray(v) for k, v in tree_flatten(grads)}

    (together, packed_grads), (apart, grads) = gradients([joined]), gradients(rows)
    assert together == pytest.approx(apart, rel=1e-5)
    for name, grad in grads.items():
        np.testing.assert_allclose(packed_grads[name], grad, atol=1e-4, err_msg=name)


def _loss(
    model: Any, parameters: Any, objective: ConversationLoss, arrays: list[mx.array]
) -> mx.array:
    model.update(parameters)
    return objective.loss(model, arrays).total


def test_a_recipe_trains_on_a_prepared_folder(
    ready: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"""version: 1
name: packed
model: smollm2
max_length: 512
adapter: {{rank: 4, scale: 2.0, layers: 2}}
phases:
  sft: {{objective: sft, data: {ready["packed"]}, steps: 2, batch_size: 1, lr: 1e-4,
    eval_every_steps: 2}}
fuse: null
benchmark: {{tasks: [], held_out: false}}
"""
    )
    with short_checks():
        result = forty2.run(forty2.load_recipe(recipe))
    rows = [row for _, row in read_rows(result.path / "metrics.jsonl")]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    assert 0 < losses[-1] < losses[0]


def test_the_command_reports_what_it_wrote(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ready"
    args = ["data", "prepare", "--input", str(source), "--output_dir", str(folder)]
    result = CliRunner().invoke(main, [*args, "--val_split", "0.1", "--pack", "256"])
    assert result.exit_code == 0, result.output
    assert "108 training rows and 12 validation rows" in result.output
    assert "packs" in result.output and "supervised" in result.output


def test_a_dropped_row_is_named_and_the_rest_keep_their_places(
    starter: LoadedModel, tmp_path: Path
) -> None:
    rows = [{"prompt": f"q{n}", "completion": "word " * (3 if n != 4 else 300)} for n in range(9)]
    source = tmp_path / "rows.jsonl"
    source.write_text(dumps(rows))
    manifest = written(source, tmp_path / "p", starter, valid_share=0, max_length=64)
    assert manifest["dropped"] == [f"{source}:5"] and manifest["written"] == {"train": 8}
    origins = (tmp_path / "p" / "train" / "origins.txt").read_text().splitlines()
    assert origins == [f"{source}:{n}" for n in (1, 2, 3, 4, 6, 7, 8, 9)]


def test_another_tokenizer_or_a_damaged_file_is_refused(
    source: Path, starter: LoadedModel, tmp_path: Path
) -> None:
    written(source, tmp_path / "p", starter, max_length=512)
    with pytest.raises(DataError, match="another tokenizer"):
        open_prepared(tmp_path / "p", "0" * 64, 512)
    with pytest.raises(DataError, match="max_length is 100"):
        open_prepared(tmp_path / "p", tokenizer_key(starter.tokenizer), 100)
    tokens = tmp_path / "p" / "train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-4])
    with pytest.raises(DataError, match="prepare it again"):
        opened(tmp_path / "p", starter)


def test_several_processes_write_what_one_does(
    source: Path, starter: LoadedModel, ready: dict[str, Path], tmp_path: Path
) -> None:
    written(source, tmp_path / "two", starter, workers=2, max_length=512)
    for name in ("tokens.bin", "mask.bin", "rows.idx", "origins.txt"):
        one = (ready["plain"] / "train" / name).read_bytes()
        assert (tmp_path / "two" / "train" / name).read_bytes() == one
