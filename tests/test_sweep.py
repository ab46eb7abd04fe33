"""The command as a user gives it: a sweep to its end, again, extended, changed."""

import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

SWEEP = """
version: 1
name: tiny
parameters:
  depth: {values: [1, 2]}
  weight_bits: {values: %s}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: %d, warmup: {epochs: 1}, qat: {epochs: %d}}
"""


@pytest.fixture
def command(tmp_path):
    folder = tmp_path
    token = folder / "token"
    token.write_text("0" * 64)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "COLUMNS": "80"}

    def start(bits="[1, 4]", *options, batch_size=32, epochs=2):
        (folder / "tiny.yaml").write_text(SWEEP % (bits, batch_size, epochs))
        line = [sys.executable, "-m", "qdtune.launch", "tiny.yaml", *options]
        return subprocess.Popen(
            line, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def run(*arguments, **changes):
        process = start(*arguments, **changes)
        out, err = process.communicate(timeout=110)
        return process.returncode, out, err

    run.start, run.folder = start, folder / "runs" / "tiny"
    return run


def finished(command):
    return {path.name: path.stat().st_mtime_ns for path in (command.folder / "trials").glob("*.parquet")}


@pytest.mark.timeout(300)
def test_a_sweep_runs_to_its_table_and_then_runs_only_what_is_missing(command):
    code, out, err = command()
    assert (code, err) == (0, "")
    assert "4 configurations x 2 seeds on synthetic" in out
    assert "trials at a time, " in out
    assert "Ray dashboard: http://127.0.0.1:" in out
    assert "4/4 done" in out
    assert "Pareto front of 4 configurations" in out
    first = finished(command)
    assert len(first) == 4
    table = pq.read_table(command.folder / "pareto.parquet")
    assert table.num_rows == 4
    assert len(list((command.folder / "warmup").glob("*.safetensors"))) == 2  # one per depth

    code, again, err = command()
    assert (code, err) == (0, "")
    assert "4 done before" in again
    assert "Ray" not in again
    assert finished(command) == first
    assert again[again.index("Pareto front") :] == out[out.index("Pareto front") :]

    code, out, err = command("[1, 4, 2]")
    assert (code, err) == (0, "")
    assert "4 done before" in out
    assert first.items() <= finished(command).items()
    assert len(finished(command)) == 6
    assert pq.read_table(command.folder / "pareto.parquet").num_rows == 6

    code, out, err = command(batch_size=64)
    assert (code, out) == (2, "")
    assert command("[1]", "--dry-run", batch_size=64)[0] == 2
    assert "runs/tiny holds results that are not comparable (train.batch_size: 32 there, 64 now)" in err
    assert len(err.splitlines()) == 1

    code, out, err = command("[1]", "--fresh")
    assert (code, err) == (0, "")
    assert "runs/tiny is now in runs/tiny.1" in out
    assert len(finished(command)) == 2


@pytest.mark.timeout(300)
def test_ctrl_c_before_the_first_trial_is_not_lost(command):
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=200)
    assert process.stdout is not None
    for line in process.stdout:
        if "trials at a time" in line:  # our handlers are set, Tune's are not
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, (out, err)
    assert "16 of 16 configurations left to do" in out


@pytest.mark.timeout(300)
def test_a_reader_that_goes_away_does_not_end_the_sweep(command):
    with command.start() as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=110) == 0
    assert len(finished(command)) == 4


@pytest.mark.timeout(300)
def test_ctrl_c_ends_in_order_and_the_same_command_finishes(command):
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=40)
    deadline = time.monotonic() + 100
    while not finished(command) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)  # until a first result is there to be kept
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "stopped by SIGINT" in out
    assert "configurations left to do; the same command goes on from here" in out
    kept = finished(command)
    assert 0 < len(kept) < 16
    code, out, _ = command("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=40)
    assert code == 0
    assert f"{len(kept)} done before" in out
    assert kept.items() <= finished(command).items()
    assert len(finished(command)) == 16
