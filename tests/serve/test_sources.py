"""What is served is found by all that a user may call a run, a phase, an adapter or a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.served_run import SYSTEM

from forty2.errors import ModelError
from forty2.model.chat_template import TemplateSettings
from forty2.serve.sources import find_sources


@pytest.fixture
def own(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, adapters/shop in the working directory."""
    shutil.copytree(shop, tmp_path / "adapters" / "shop")
    monkeypatch.chdir(tmp_path)
    return Path("adapters") / "shop"


def test_a_run_is_its_base_its_phases_and_its_fused_model(own: Path) -> None:
    (Path("mine")).mkdir()
    Path("mine", "recipe.yaml").write_text("version: 1\nname: shop\n")
    for name in ("shop", "mine", own, own.absolute()):
        sources = find_sources(name)
        assert sources.ids == ("base", "sft", "dpo", "fused")
        assert (sources.name, sources.system, sources.notes) == ("shop", SYSTEM, ())
    assert [s.adapter and s.adapter.name for s in sources.models] == [
        None,
        "phase1_sft",
        "phase2_dpo",
        None,
    ]
    assert [s.shares_base for s in sources.models] == [True, True, True, False]


def test_a_phase_an_adapter_and_a_model_are_served_alone(own: Path) -> None:
    base = json.loads((own / "run.json").read_text())["model"]
    for name in ("shop/sft", own / "phase1_sft"):
        sources = find_sources(name)
        assert sources.ids == ("base", "sft")
        assert (sources.models[0].model, sources.system) == (base, None)
    shutil.copytree(own / "phase2_dpo", "mine")
    assert find_sources(base, "mine").ids == ("base", "mine")
    assert find_sources(base).ids == ("base",)
    fused = json.loads((own / "fused.json").read_text())["path"]
    assert find_sources(fused).ids == ("fused",)


def test_a_phase_that_is_called_as_another_model_goes_by_its_folder(own: Path) -> None:
    (own / "phase1_sft").rename(own / "phase1_base")
    (own / "phase2_dpo").rename(own / "phase2_fused")
    assert find_sources("shop").ids == ("base", "phase1_base", "phase2_fused", "fused")


def test_what_is_unfinished_or_gone_is_not_served(own: Path) -> None:
    (own / "fused.json").write_text(json.dumps({"path": "gone"}))
    (own / "phase2_dpo" / "adapter_config.json").unlink()
    sources = find_sources("shop")
    assert sources.ids == ("base", "sft")
    assert sources.notes == ("the fused model is not served: it is not in gone",)
    (own / "phase1_sft" / "adapter_config.json").unlink()
    with pytest.raises(ModelError, match="no finished phase"):
        find_sources("shop")


def test_the_run_s_settings_of_the_template_are_those_of_its_base_too(own: Path) -> None:
    day, turned = "2026-01-02", {"enable_thinking": False}
    recorded = TemplateSettings(options=turned, date=day)
    (own / "template.json").write_text(json.dumps(recorded.to_json()))
    base, *_, fused = find_sources("shop").models
    assert (base.template.options, base.template.date) == (turned, day)
    assert (fused.template.options, fused.template.date) == ({}, day)  # it has the options in it
    given = find_sources("shop", template=TemplateSettings(date="2026-03-04")).models
    assert {source.template.date for source in given} == {"2026-03-04"}
