"""What a GPU will run first, tried without one: the networks of the benchmark, and the script that runs all of it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    return gpu


@pytest.mark.parametrize("way", ["eager", "eager, graph"])
def test_the_networks_of_the_benchmark_train(gpu, way, tmp_path):
    data, is_real = gpu.tensors(tmp_path, torch.device("cpu"))
    data = replace(data, train_x=data.train_x[:128], train_y=data.train_y[:128])
    losses = gpu.cohort(data, 2, 3, way).train(0)
    assert not is_real
    assert len(losses) == 3
    assert all(1 < loss < 4 for loss in losses)


def run_all(folder, **environment):
    command = [str(BENCHMARKS / "gpu_all.sh"), str(folder), str(folder / "out")]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def write_tool(folder, name, text):
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def test_without_a_gpu_the_script_says_so(tmp_path):
    write_tool(tmp_path, "nvidia-smi", "exit 6")
    found = run_all(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (found.returncode, found.stderr) == (2, "error: nvidia-smi finds no GPU\n")
    assert not (tmp_path / "out").exists()


def test_one_part_that_fails_is_told_and_the_others_run(tmp_path):
    watch = 'case "$*" in *utilization*) echo "40, 100"; echo "60, 700"; exec sleep 100;; *) echo "a GPU";; esac'
    write_tool(tmp_path, "nvidia-smi", watch)
    seen = f"until grep -q 60 $(ls -t {tmp_path}/out/*.csv | head -n 1); do sleep 0.05; done"
    say = f'case "$*" in -c*) ;; *"-m pytest"*) exit 3;; *gpu:*) {seen}; echo swept;; *) {seen}; echo measured;; esac'
    write_tool(tmp_path, "python", say)
    found = run_all(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHON=str(tmp_path / "python"))
    assert found.returncode == 1, found.stderr
    rows = [line for line in (tmp_path / "out/summary.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(c[0], c[1]) for c in cells[1:]] == [
        ("tests", "3"),
        ("benchmark", "0"),
        ("grid_eighth", "0"),
        ("grid_auto", "0"),
    ]
    assert {tuple(c[3:]) for c in cells[2:]} == {("50 %", "700 MiB")}
    assert "measured" in found.stdout
    assert found.stdout.count("swept") == 2
