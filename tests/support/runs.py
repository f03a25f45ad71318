"""Values for tests of run folders."""

from __future__ import annotations

from forty2.runs.records import Provenance

PROVENANCE = Provenance(
    name="test", model="a model", model_path="/models/a", model_sha256="0" * 64, versions={}
)
