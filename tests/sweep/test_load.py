"""Very many configurations through planner, queue, study and store, with trials that take no time."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store import packs
from qdtune.store.store import Store
from tests import fake
from tests.sweep.test_kills import rows_of

SWEEP = """
version: 1
name: load
parameters:
  depth: {values: [1, 2, 3, 4, 5]}
  weight_bits: {values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}
  activation: {values: [identity, relu, gelu, tanh, hardtanh]}
  qat_lr: {values: %s}
seeds: [0]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 3}}
early_terminate: {type: pareto, risk: null}
"""
# The peak of this process alone: `ru_maxrss` begins with that of the process from which it was forked.
MEASURED = """
import re, sys, time
began = time.monotonic()
from tests import fake
from qdtune.spec.sweep_file import load
queue, table = fake.launch(sys.argv[1], load(sys.argv[2]))
rss = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
print(len(queue.results), table.num_rows, time.monotonic() - began, rss)
"""


def sweep(folder, count):
    path = folder / "load.yaml"
    path.write_text(SWEEP % [round(0.001 * (n + 1), 6) for n in range(count // 250)])
    return path


def files(folder):
    return len(os.listdir(folder / "trials")), len(os.listdir(folder / "history"))


@pytest.mark.slow
def test_five_hundred_configurations_end_in_few_files_and_one_table(tmp_path, monkeypatch):
    """The same table whatever is packed, and whatever was there before."""
    path, chance = sweep(tmp_path, 500), random.Random(0)
    spec = load(path)
    monkeypatch.setattr(packs, "PACK_SIZE", 100_000)
    queue, loose = fake.launch(tmp_path / "loose", spec)
    assert (len(queue.results), loose.num_rows) == (500, 500)
    assert files(tmp_path / "loose") == (500, 500)
    monkeypatch.setattr(packs, "PACK_SIZE", 100)
    trials = plan(spec).trials
    store = Store(tmp_path / "packed")
    with store.lock():
        for trial in chance.sample(trials, 150):  # some were there before
            rows, history = fake.outcome(trial, 3, lambda *_: None)
            store.write(trial.trial_id, rows, history, {})
    assert files(tmp_path / "packed") == (51, 51)
    _, packed = fake.launch(tmp_path / "packed", spec)
    assert files(tmp_path / "packed") == (55, 55)  # fewer than 100 stay as they are
    assert packed.num_rows == 500
    before = rows_of(tmp_path / "loose")
    with Store(tmp_path / "loose").lock():
        assert Store(tmp_path / "loose").pack_files()
    assert files(tmp_path / "loose") == (5, 5)
    assert rows_of(tmp_path / "loose") == before


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_configurations_in_a_minute_and_half_a_gigabyte(tmp_path):
    """On a quiet machine 49 and 10 s, 365 MB; the figures are printed (pytest -s)."""
    path = sweep(tmp_path, 10_000)
    line = [sys.executable, "-c", MEASURED, str(tmp_path / "run"), str(path)]
    for launch, limit in (("first", 180), ("second", 45)):
        done = subprocess.run(line, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
        results, rows, seconds, rss = map(float, done.stdout.split())
        print(f"{launch} launch: {results:.0f} results in {seconds:.1f} s, {rss:.0f} MB")
        assert (results, rows) == (10_000, 10_000)
        assert seconds < limit
        assert rss < 500
    assert files(tmp_path / "run") == (20, 20)
