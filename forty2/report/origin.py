"""Where a report's numbers come from: the model, and the versions of the software."""

from __future__ import annotations

from collections.abc import Sequence

from forty2.report.markdown import Table
from forty2.report.run_types import ProvenanceRecord


def origin_table(provenance: ProvenanceRecord, rows: Sequence[tuple[str, str]]) -> Table:
    """Make the table of versions and hashes, with these rows after the model's."""
    return Table(
        ("Source", "Value"),
        [
            ("model", provenance.model),
            ("model weights, sha256", provenance.model_sha256),
            *provenance.init_from.items(),
            *rows,
            *provenance.versions.items(),
        ],
    )
