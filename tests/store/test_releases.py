"""What is said of stopped trials that were trained to their end all the same."""

from __future__ import annotations

import pyarrow as pa
import pytest

from qdtune.spec.axes import AXES
from qdtune.store.releases import describe_releases
from tests.schemas import PARETO


def table(*rows: tuple[int, str, bool, bool]) -> pa.Table:
    """Rows of depth, state, whether it was released and whether it is on the front."""
    usual = {axis.name: axis.default if axis.column != "string" else str(axis.default) for axis in AXES}
    found = []
    for depth, state, released, is_pareto in rows:
        said = {"depth": depth, "state": state, "released": released, "is_pareto": is_pareto}
        found.append(dict.fromkeys(PARETO.names) | usual | said)
    return pa.Table.from_pylist(found, PARETO)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([(1, "ok", False, True), (2, "pruned", False, False)], ""),
        ([(1, "ok", False, True), (2, "pruned", True, False)], ""),  # it was released and stopped again
        (
            [(1, "ok", False, True), (2, "ok", True, False)],
            "1 stopped trial was released and trained to its end; it did not join the front",
        ),
        (
            [(1, "ok", False, True), (2, "ok", True, True), (3, "diverged", True, False)],
            "2 stopped trials were released and trained to their end; 1 of them joined the front: d2",
        ),
    ],
)
def test_releases_are_counted_and_those_on_the_front_named(
    rows: list[tuple[int, str, bool, bool]], said: str
) -> None:
    assert describe_releases(table(*rows)) == said
