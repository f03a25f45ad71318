"""The base, the run and the stage of a folder are those that were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forty2.errors import ModelError
from forty2.export.origin import fused_folder, licence_of, origin_of_adapter, origin_of_model
from forty2.model.starter import STARTER

RUN = Path("adapters/mine")


def name_base(name: str, path: str) -> None:
    """Let the run record another base."""
    record = json.loads((RUN / "run.json").read_text("utf-8"))
    record |= {"model": name, "model_path": path, "model_from_run": "../none"}
    (RUN / "run.json").write_text(json.dumps(record), "utf-8")


def test_each_folder_knows_its_stage_and_its_run(work: Path) -> None:
    model = origin_of_model(Path("fused_models/mine"))
    copy = origin_of_model(Path("fused_models/mine-8bit"))
    adapter = origin_of_adapter(RUN / "phase1_sft")
    assert [one.stage for one in (model, copy, adapter)] == ["fused", "fused 8-bit", "phase1_sft"]
    assert {one.run for one in (model, copy, adapter)} == {RUN.absolute()}
    assert [one.kind for one in (model, copy, adapter)] == ["model", "quantized", "adapter"]
    assert copy.bits == 8


def test_a_folder_as_base_has_a_name_for_readers_and_none_on_the_hub(work: Path) -> None:
    base = origin_of_model(Path("fused_models/mine")).base
    assert (base.name, base.hub) == ("model", None)


def test_a_base_of_the_hub_keeps_its_name(work: Path) -> None:
    name_base("owner/base", str(work / "cache/models--owner--base/snapshots/1"))
    assert origin_of_adapter(RUN / "phase1_sft").base.hub == "owner/base"


def test_the_starter_is_known_by_its_name_and_licence(work: Path) -> None:
    name_base(STARTER, str(work / "cache/smollm2"))
    base = origin_of_model(Path("fused_models/mine")).base
    assert base.hub == "HuggingFaceTB/SmolLM2-135M-Instruct" and base.licence == "apache-2.0"


def test_a_quantized_copy_is_one_only_of_a_named_full_model(work: Path) -> None:
    folder = Path("fused_models/mine-8bit")
    assert origin_of_model(folder).relation == "finetune"
    assert origin_of_model(folder, base="me/full").relation == "quantized"
    assert origin_of_adapter(RUN / "phase2_dpo").relation == "adapter"


def test_what_is_no_name_on_the_hub_is_refused_as_base(work: Path) -> None:
    with pytest.raises(ModelError, match="no name on the hub"):
        origin_of_adapter(RUN / "phase1_sft", base="../base")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: 'x\\n y'\n---\n", None),
        ("---\n: : :\n---\n", None),
        ("no front matter", None),
    ],
)
def test_a_licence_is_taken_from_the_bases_card(
    card: str, licence: str | None, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(card, "utf-8")
    assert licence_of(tmp_path) == licence


def test_a_fused_folder_of_another_run_is_not_this_ones(work: Path) -> None:
    assert fused_folder(RUN) == Path("fused_models/mine")
    record = json.loads(Path("fused_models/mine/fused.json").read_text("utf-8"))
    record["adapter"] = "adapters/others/phase1_sft"
    Path("fused_models/mine/fused.json").write_text(json.dumps(record), "utf-8")
    assert fused_folder(RUN) is None
