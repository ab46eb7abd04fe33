"""What a launch says of the run folder that it has locked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.columns import find_partition
from qdtune.store.store import Store
from qdtune.sweep.held_run import HeldRun, hold_run
from qdtune.terminal import console

SWEEP = b"version: 1\nname: a\nparameters: {depth: {value: 1}}\ndata: {dataset: digits, val_size: 100}\nseeds: [0]\n"


@pytest.fixture
def spec() -> Spec:
    return loads(SWEEP, "a.yaml").resolve("digits")


def hold(spec: Spec, folder: Path) -> HeldRun:
    store = Store(folder)
    with store.lock():
        run = hold_run(spec, plan(spec), store, folder, console())
        run.queue.study.close()
    return run


@pytest.mark.parametrize(("name", "part"), [("depth=1", "depth=1"), ("Depth=1", "Depth=1"), ("a=1", None)])
def test_a_folder_that_names_a_column_is_warned_of(
    spec: Spec, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, part: str | None
) -> None:
    hold(spec, tmp_path / name / "a")
    said = re.findall(r"^warning: (\S+): DuckDB reads .* hive_partitioning = false$", capsys.readouterr().out, re.M)
    assert said == ([part] if part else [])
    assert find_partition(f"s3://bucket/{name}/a") == part
