"""The last screen of a launch: what was stopped early, what was released, and what came of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qdtune.spec.sweep_file import loads
from qdtune.sweep.summary import _explain_live, _print_losses
from qdtune.terminal import console
from tests.store.test_releases import table

SWEEP = b"""
version: 1
name: a
parameters: {depth: {values: [1, 2, 3, 4]}}
data: {dataset: digits, val_size: 100}
train: {qat: {epochs: 10}}
early_terminate: {type: pareto}
"""


def losses(capsys: pytest.CaptureFixture[str], ends: list[tuple[str, bool, int]], unjudged: set[str]) -> list[str]:
    """What is printed of trials: the state of each, whether it was released, and its epochs."""
    results = {str(i): SimpleNamespace(state=state, curve=range(n)) for i, (state, _, n) in enumerate(ends)}
    known = {str(i): [{"released": released, "error": None}] for i, (_, released, _) in enumerate(ends)}
    queue = SimpleNamespace(results=results, twice=0, unjudged=unjudged)
    run: Any = SimpleNamespace(spec=loads(SWEEP, "a.yaml"), queue=queue, known=known)
    pareto = table(*((i + 1, state, released, released) for i, (state, released, _) in enumerate(ends)))
    states: Any = {"ok": 0, "pruned": sum(state == "pruned" for state, *_ in ends)}
    _print_losses(run, states, pareto, console())
    return capsys.readouterr().out.splitlines()


def test_what_was_stopped_and_released_is_counted_over_all_launches(capsys: pytest.CaptureFixture[str]) -> None:
    ends = [("ok", False, 10), ("pruned", False, 2), ("ok", True, 10), ("pruned", True, 3)]
    assert losses(capsys, ends, set()) == [
        "3 trials stopped early by pareto: 38% of all QAT epochs saved; see the column `pruned_by`",
        "1 stopped trial was released and trained to its end; it joined the front: d3",
    ]


def test_releases_for_lack_of_finished_trials_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    ends = [("ok", False, 10), ("ok", True, 10), ("ok", True, 10)]
    why = "released because fewer than 9 trials had finished that they could be compared with"
    assert losses(capsys, ends, {"1", "2"})[-1] == f"all of them were {why}"
    assert losses(capsys, ends, {"1"})[-1] == f"1 of them was {why}"
    assert "released" not in "".join(losses(capsys, [("ok", False, 10), ("pruned", False, 2)], set()))


@pytest.mark.parametrize(
    ("budget", "states", "said"),
    [
        ("budget: 3", {"ok": 4}, "the budget allows no more trainings"),
        ("budget: 3", {"ok": 4, "failed": 1}, "wait for the trials that failed"),
        ("budget: null", {"ok": 4}, None),
    ],
)
def test_live_comparisons_are_explained(budget: str, states: dict[str, int], said: str | None) -> None:
    text = SWEEP.decode().replace("{type: pareto}", "{type: none}") + f"replicate: {{until: decided, {budget}}}\n"
    why = _explain_live(loads(text.encode(), "a.yaml"), states)
    assert said in why if said else why == ""
