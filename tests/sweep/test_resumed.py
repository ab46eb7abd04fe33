"""What a launch finds in its run folder: checkpoints, warm-ups, results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qdtune.model.signed_file import PROGRESS, TRIAL, sign_file
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.open_folder import open_folder
from qdtune.store.store import Store
from qdtune.sweep.held_run import hold_run
from qdtune.sweep.resumed import describe_checkpoints, find_checkpoints, find_start
from qdtune.terminal import console

SMOKE = Path(__file__).parents[2] / "sweeps" / "smoke.yaml"


def keep(run: Path, trial_id: str, epoch: int) -> Path:
    """A checkpoint as a trial keeps it, without its tensors."""
    metadata = {TRIAL: trial_id, PROGRESS: json.dumps({"epoch": epoch})}
    path = run / "paused" / f"{trial_id}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sign_file({"__metadata__": metadata}, b""))
    return path


def test_whole_checkpoints_are_found_with_their_epoch(tmp_path: Path) -> None:
    assert find_checkpoints(open_folder(str(tmp_path))) == {}
    for trial_id, epoch in (("a", 3), ("b", 7), ("c", 5)):
        keep(tmp_path, trial_id, epoch)
    paused = tmp_path / "paused"
    damaged = paused / "b.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (paused / "A.safetensors").mkdir()  # comes before the others
    (paused / "e.safetensors").write_bytes((paused / "a.safetensors").read_bytes())  # of another trial
    other_version = {"__metadata__": {TRIAL: "f", PROGRESS: "[3]"}}
    (paused / "f.safetensors").write_bytes(sign_file(other_version, b""))
    folder = open_folder(str(tmp_path))
    assert find_checkpoints(folder) == {"a": 3, "c": 5}
    assert find_checkpoints(folder, ["a", "d"].__contains__) == {"a": 3}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"a": 4}, "1 trial goes on from its checkpoint, at epoch 4 of 10"),
        ({"a": 4, "b": 4}, "2 trials go on from their checkpoints, at epoch 4 of 10"),
        ({"a": 4, "b": 7, "c": 5}, "3 trials go on from their checkpoints, at epochs 4 to 7 of 10"),
    ],
)
def test_checkpoints_are_said_in_one_line(found: dict[str, int], said: str) -> None:
    assert describe_checkpoints(found, 10) == said


def test_a_launch_begins_with_the_epochs_of_checkpoints_and_kept_warmups(tmp_path: Path) -> None:
    spec = load(SMOKE).resolve("digits")
    planned, store = plan(spec), Store(tmp_path / "run")
    first, other = planned.trials[0], next(t for t in planned.trials if t.warmup_key != planned.trials[0].warmup_key)
    keep(tmp_path / "run", first.trial_id, 2)
    run = hold_run(spec, planned, store, tmp_path, console())
    warmup = spec.train.warmup.epochs
    start = find_start(run)
    assert start.checkpoints == {first.trial_id: 2}
    assert start.trained == 2 + warmup
    before = start.warmups
    (tmp_path / "run" / "warmup").mkdir()
    (tmp_path / "run" / "warmup" / f"{other.warmup_id}.safetensors").write_bytes(b"")
    start = find_start(run)
    assert (start.trained, start.warmups) == (2 + 2 * warmup, before - 1)
    run.queue.study.close()
