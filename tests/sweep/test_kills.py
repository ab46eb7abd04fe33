"""Blows that end a sweep, at any moment: the same command finishes it, and the table is the undisturbed one."""

import contextlib
import fcntl
import os
import pty
import random
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import safetensors.torch

from qdtune.spec.sweep_file import load
from qdtune.store.store import Store
from tests import fake
from tests.sweep.test_driver import ONE_WORKER, command, finished  # noqa: F401 - a fixture

FAKE = """
version: 1
name: fake
parameters:
  depth: {values: [1, 2, 3, 4]}
  weight_bits: {values: [1, 2, 3, 4, 8]}
  activation: {values: [identity, relu, tanh]}
  qat_lr: {values: [0.01, 0.02, 0.03, 0.04, 0.05]}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 3}}
early_terminate: {type: none}
"""
CHANCE = {"seconds", "started_at", "finished_at", "attempt"}  # what may differ from run to run


def rows_of(root):
    """Every cell of the three tables that does not depend on chance, in one order."""
    store = Store(root)
    tables = [store.trials(), store.history(), pq.read_table(Path(root) / "pareto.parquet")]
    assert store.damaged == []
    return [sorted(map(str, t.drop_columns([c for c in CHANCE if c in t.column_names]).to_pylist())) for t in tables]


def left_behind(root):
    """Files of the run folder that are no part of it."""
    return [p for p in Path(root).rglob(".*") if p.name != ".lock"]


@pytest.mark.slow  # store/test_store.py kills what writes; with_ray/test_paused.py kills a worker
@pytest.mark.parametrize("rounds", [5, pytest.param(20, marks=pytest.mark.timeout(900))])
def test_kill_9_again_and_again_ends_in_the_undisturbed_table(tmp_path, rounds):
    path = tmp_path / "fake.yaml"
    path.write_text(FAKE)
    fake.launch(tmp_path / "whole", load(path))
    whole = rows_of(tmp_path / "whole")
    line = [sys.executable, fake.__file__, str(tmp_path / "run"), str(path)]
    blows, chance, known = 0, random.Random(rounds), set()
    while True:
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            told = [process.stdout.readline().strip() for _ in range(chance.randint(1, 240 // rounds))]
            if blows < rounds:
                spin = sum(range(chance.randint(0, 100_000)))  # moves the blow to another moment of the next write
                assert spin >= 0
                process.kill()
                blows += 1
            told += [line.strip() for line in process.stdout if line.endswith("\n")]
        there = Store(tmp_path / "run").ids()
        assert known | set(filter(None, told)) <= there  # what was acknowledged is there, and stays
        known = there
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert blows == rounds
    assert rows_of(tmp_path / "run") == whole
    with Store(tmp_path / "run").lock():
        assert left_behind(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_of_a_real_sweep_ends_in_the_undisturbed_table(command):  # noqa: F811
    bits, how = "[1, 2, 3, 4, 5, 6, 7, 8]", {"epochs": 30}
    assert command(bits, **how)[0] == 0
    whole = rows_of(command.folder)
    command.folder.rename(command.folder.with_name("whole"))
    chance, known, blows = random.Random(0), {}, 0
    while blows < 5:
        process = command.start(bits, **how)
        wanted = len(known) + chance.randint(0, 3)
        while len(finished(command)) < wanted and process.poll() is None:
            time.sleep(chance.random() / 10)
        process.kill()
        process.communicate()
        now = finished(command)
        assert known.items() <= now.items()  # not even touched
        known, blows = now, blows + 1
    code, out, err = command(bits, **how)
    assert (code, err) == (0, "")
    assert f"{len(known)} done before" in out
    assert rows_of(command.folder) == whole
    assert left_behind(command.folder) == []


def checkpoints(command):  # noqa: F811
    """trial_id -> the seconds of the epochs in its checkpoint; no other training has the same."""
    paths = (command.folder / "paused").glob("*.safetensors")
    return {path.stem: safetensors.torch.load(path.read_bytes())["/points"][:, -1].tolist() for path in paths}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_of_a_real_sweep_costs_no_epoch_that_a_checkpoint_holds(command):  # noqa: F811
    options, how = ("[4]", *ONE_WORKER, "--set", "run.compile=never"), {"batch_size": 4, "epochs": 40}
    assert command(*options, **how)[0] == 0
    whole = rows_of(command.folder)
    command.folder.rename(command.folder.with_name("whole"))
    known = {}
    for _ in range(2):
        process, before = command.start(*options, **how), known
        while checkpoints(command) == before and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.communicate()
        known = checkpoints(command)
        assert known != before, "there is more of it"
    code, out, err = command(*options, **how)
    assert (code, err) == (0, ""), out
    assert rows_of(command.folder) == whole
    history = Store(command.folder).history().to_pylist()
    for trial_id, seconds in known.items():
        assert len(seconds) > 2 * 2, "the warm-up and more"
        assert {entry["seconds"] for entry in history if entry["trial_id"] == trial_id} >= set(seconds)
    assert checkpoints(command) == {}
    assert left_behind(command.folder) == []


def until(process, words):
    """Reads the output of a sweep up to a line with these words."""
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"ended before {words!r}: {process.stderr.read()}")


def ended(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out + err


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["synthetic", "while Ray starts", "at a time", "a result"])
def test_a_signal_at_any_moment_ends_in_order_and_is_resumable(command, moment, number):  # noqa: F811
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    until(process, "at a time" if moment in ("at a time", "a result") else "synthetic")
    while moment == "a result" and not finished(command):
        time.sleep(0.05)
    if moment == "while Ray starts":
        while not subprocess.run(["pgrep", "-P", str(process.pid), "raylet"], capture_output=True).stdout:
            time.sleep(0.05)
    process.send_signal(number)
    code, told = ended(process)
    assert code == 128 + number, told
    assert "the same command goes on from here" in told
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_to_the_whole_group_is_143_in_seconds(command):  # noqa: F811
    """As `timeout` and batch systems send it: Ray's own processes end, too, and with them what Tune waits for."""
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20, start_new_session=True)
    until(process, "at a time")
    while not finished(command):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    code, told = ended(process)
    assert code == 143, told
    assert "the same command goes on from here" in told
    kept = finished(command)
    assert kept
    assert Store(command.folder).ids() == {name.removesuffix(".parquet") for name in kept}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_of_a_batch_system_to_the_whole_group_ends_in_order(command, number):  # noqa: F811
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20, start_new_session=True)
    until(process, "at a time")
    while not finished(command):
        time.sleep(0.05)
    os.killpg(process.pid, number)
    code, told = ended(process)
    assert code == 128 + number, told
    assert f"stopped by {signal.Signals(number).name}: " in told


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_head_that_is_lost_is_exit_4_and_resumable(command):  # noqa: F811
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    until(process, "at a time")
    while not finished(command):
        time.sleep(0.05)
    found = subprocess.run(["pgrep", "-P", str(process.pid), "gcs_server"], capture_output=True, text=True)
    os.kill(int(found.stdout), signal.SIGKILL)
    code, told = ended(process)
    assert code == 4, told
    assert "Ray's head is gone; what was finished is kept; the same command goes on from here" in told
    kept = finished(command)
    code, _out, err = command("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    assert (code, err) == (0, "")
    assert kept.items() <= finished(command).items()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_twice_ends_at_once_and_the_same_command_finishes(command):  # noqa: F811
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    until(process, "at a time")
    process.send_signal(signal.SIGINT)
    assert "stopping: what is finished is kept" in process.stderr.readline() + process.stderr.readline()
    process.send_signal(signal.SIGINT)
    code, told = ended(process)
    assert code == 130, told
    code, _out, err = command("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    assert (code, err) == (0, "")
    assert len(finished(command)) == 16


@pytest.fixture
def small_disk(command):  # noqa: F811
    """The runs folder, on a file system of 8 MB of its own."""
    runs = command.folder.parent
    runs.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", runs], capture_output=True).returncode:
        pytest.skip("only root may mount a file system")
    yield runs
    subprocess.run(["umount", "--lazy", runs], check=True)


def fill(folder):
    """Fills the file system of a folder; returns the file to delete."""
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    return folder / "fill"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", ["freed", "full", "signal"])
def test_a_disk_that_is_full_for_longer_than_a_trial_takes(command, small_disk, end):  # noqa: F811
    """No trial runs any more, so that Tune waits in its searcher; 12 trials follow where there is room again."""
    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20)
    until(process, "at a time")
    while not finished(command):
        time.sleep(0.02)
    file, began = fill(small_disk), time.monotonic()
    time.sleep(20)
    if end == "freed":
        file.unlink()
    elif end == "signal":
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=200)
    took = time.monotonic() - began
    assert (process.returncode, "Traceback" in out + err) == (0 if end == "freed" else 4, False), out + err
    assert "(trying again for 120 s)" in out
    assert took < (180 if end == "full" else 120), took
    if end == "freed":
        assert len(finished(command)) == 16
    else:
        assert "No space left on device: mend that and run the same command again, what was finished is kept" in err


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_away_stops_a_sweep_in_order_or_not_at_all_under_nohup(command, ignored):  # noqa: F811
    """The kernel sends SIGHUP to all of the terminal's processes, and every later write to it fails."""
    ours, theirs = pty.openpty()

    def attach():
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = command.start("[1, 2, 3, 4, 5, 6, 7, 8]", epochs=20, output=theirs, preexec_fn=attach)
    os.close(theirs)
    while not finished(command):
        assert os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(120) == (0 if ignored else 129)
    kept = finished(command)
    assert 0 < len(kept) <= 16
    assert len(kept) == 16 or not ignored
    assert (command.folder / "pareto.parquet").exists(), "the sweep ended in order"


TWO_NODES = """
import sys, threading, time
from pathlib import Path
from qdtune.commands import launch
from qdtune.sweep import cluster
cluster.set_environment("auto")
from ray.cluster_utils import Cluster
nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = nodes.add_node(num_cpus=1)
import ray
ray._private.utils.set_sigterm_handler = lambda handler: None  # which only a main thread may set
done = Path("runs/tiny/trials")

def blow():
    while not (done.is_dir() and any(done.iterdir())):
        time.sleep(0.05)
    nodes.remove_node(second, allow_graceful=False)
    there = len(list(done.iterdir()))
    while len(list(done.iterdir())) < there + 2:
        time.sleep(0.05)
    nodes.add_node(num_cpus=1)

threading.Thread(target=blow, daemon=True).start()
code = launch.main(["tiny.yaml", "--address", nodes.address])
nodes.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_node_that_leaves_loses_no_trial_and_one_that_joins_takes_some(command):  # noqa: F811
    bits = "[1, 2, 3, 4, 5, 6, 7, 8]"
    assert command(bits, epochs=30)[0] == 0
    whole = rows_of(command.folder)
    command.folder.rename(command.folder.with_name("whole"))
    line = [sys.executable, "-c", TWO_NODES]
    done = subprocess.run(line, cwd=command.folder.parents[1], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows_of(command.folder) == whole
    assert 2 in Store(command.folder).trials()["attempt"].to_pylist()
