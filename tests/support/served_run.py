"""A run to serve: a tiny random model, two phases with random adapters, and their fused model."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx

from forty2.export.fusing import fuse
from forty2.model.adapter import adapter_weights, attach_adapter, save_adapter
from forty2.model.loading import load
from forty2.recipe.schema import Adapter
from forty2.serve.http_server import ModelServer
from forty2.serve.sources import find_sources
from support.runs import short_checks
from support.small_run import make_inputs

SYSTEM = "You count."
"""System message of most rows of the last phase."""
PHASES = {"sft": "phase1_sft", "dpo": "phase2_dpo"}


def make_run(place: Path) -> Path:
    """Write a run into a folder's adapters/shop, its model beside it, and return the run's folder."""
    mx.random.seed(1)
    inputs = make_inputs(place / "inputs")
    run = place / "adapters" / "shop"
    run.mkdir(parents=True)
    base = inputs / "model"
    record = {"name": "shop", "model": str(base), "model_path": str(base)}
    (run / "run.json").write_text(json.dumps(record))
    adapter = Adapter(rank=4, scale=8.0)
    for seed, (name, folder) in enumerate(PHASES.items()):
        model = load(str(base)).model
        attach_adapter(model, adapter, seed=seed)
        weights = adapter_weights(model)
        model.load_weights([(n, mx.random.normal(w.shape)) for n, w in weights.items()], False)
        (run / folder).mkdir()
        save_adapter(model, adapter, run / folder)
        phase = {"name": name, "system": SYSTEM if name == "dpo" else None}
        (run / folder / "phase.json").write_text(json.dumps(phase))
    with short_checks():
        fused = fuse(str(base), run / PHASES["dpo"], place / "fused_models" / "shop")
    (run / "fused.json").write_text(json.dumps(fused.to_json()))
    return run


@contextlib.contextmanager
def serving(target: Path, **options: Any) -> Iterator[ModelServer]:
    """Serve a run at a free port of this machine."""
    server = ModelServer(find_sources(target), **{"port": 0, **options})
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.end()
