"""What came of the trials that were stopped early and then trained to their end all the same."""

from __future__ import annotations

from qdtune.messages import format_count, list_first
from qdtune.spec.axes import find_varying, short_label
from qdtune.store.tables import Table


def describe_releases(pareto: Table) -> str:
    """How many stopped trials were released, and which of them joined the front; empty if none was released.

    Args:
        pareto: the Pareto table.
    """
    rows = pareto.to_pylist()
    released = [row for row in rows if row["released"] and row["state"] != "pruned"]
    if not released:
        return ""
    varying = find_varying(rows)
    joined = [short_label(row, varying) for row in released if row["is_pareto"]]
    were = "was released and trained to its end" if len(released) == 1 else "were released and trained to their end"
    which = f"{len(joined)} of them joined the front: {list_first(joined)}" if joined else "none joined the front"
    return f"{format_count(len(released), 'stopped trial')} {were}; {which}"
