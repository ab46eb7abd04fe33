"""A sweep whose front is over bytes and multiplications, from its file to its report, trained on Ray.

The same without training: the tables in tests/store/test_costs.py, a change of objectives in
tests/store/test_versions.py, the figures in tests/report/test_front_figure.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qdtune.analysis.run import load_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SWEEP = Path(__file__).parents[2] / "sweeps" / "three_objectives.yaml"
SHORT = ["seeds=[0, 1]", "train.warmup.epochs=1", "train.qat.epochs=3", "parameters.hidden={value: 12}"]


def qdtune(folder, *argv):
    command = [sys.executable, "-m", "qdtune", *argv]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def launch(folder, *more):
    settings = [word for one in (*SHORT, *more) for word in ("--set", one)]
    return qdtune(folder, "launch", str(SWEEP), "--no-dashboard", *settings)


def dominates(one, other):
    pairs = [(one[name], other[name]) for name in ("size_bytes", "macs")]
    pairs += [(-one["val_accuracy"], -other["val_accuracy"])]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def test_a_front_over_two_costs_from_launch_to_report(tmp_path):
    told = launch(tmp_path)
    assert "Pareto front on digits over bytes and MACs: " in told
    run = load_run(tmp_path / "runs" / "three_objectives")
    rows = run.pareto.to_pylist()
    assert (len(rows), run.left) == (8, 0)
    finished = [row for row in rows if row["state"] == "ok"]
    for row in finished:
        assert row["is_pareto"] == (not any(dominates(other, row) for other in finished))
    by_id = {row["trial_id"]: row for row in rows}
    for row in rows:
        if row["state"] == "pruned":  # only who exceeds it in no cost may stop it
            rival = by_id[row["pruned_by"]]
            assert rival["size_bytes"] <= row["size_bytes"]
            assert rival["macs"] <= row["macs"]
    assert "all whole" in qdtune(tmp_path, "verify", "runs/three_objectives")
    assert "<dt>MACs</dt>" in (tmp_path / "runs" / "three_objectives" / "report.html").read_text()

    told = launch(tmp_path, "objectives=[val_accuracy, activation_bytes]", "early_terminate={type: none}")
    assert "the front is drawn anew, over activation bytes instead of bytes and MACs" in told
    run = load_run(tmp_path / "runs" / "three_objectives")
    assert run.states == {"ok": 8}
    told = qdtune(
        tmp_path, "replay", "runs/three_objectives", "--pruner", "pareto", "--orders", "2", "--at-once", "1"
    )
    assert "8 trials on digits" in told
