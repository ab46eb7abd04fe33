"""The command as a user gives it: a sweep to its end, again, extended, changed."""

import os
import signal
import subprocess
import sys
from collections import Counter

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.launched import finished as finished_in
from tests.seen import SWEEP as EAGER
from tests.seen import results

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
ONE_WORKER = ("--set", "run.max_concurrent_trials=1")  # each takes seconds to start


@pytest.fixture
def command(tmp_path):
    folder = tmp_path
    token = folder / "token"
    token.write_text("0" * 64)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token), "COLUMNS": "80"}

    def start(bits="[1, 4]", *options, batch_size=32, epochs=2, output=subprocess.PIPE, **how):
        (folder / "tiny.yaml").write_text(SWEEP % (bits, batch_size, epochs))
        # A dashboard takes seconds to start; test_security.py has one.
        line = [sys.executable, "-m", "qdtune.launch", "tiny.yaml", *options, "--no-dashboard"]
        pipes = {"stdout": output, "stderr": subprocess.PIPE if output == subprocess.PIPE else output}
        return subprocess.Popen(line, cwd=folder, env=environment, text=True, **pipes, **how)

    def run(*arguments, **changes):
        process = start(*arguments, **changes)
        out, err = process.communicate(timeout=110)
        return process.returncode, out, err

    run.start, run.folder = start, folder / "runs" / "tiny"
    return run


def finished(command):
    return {path.name: path.stat().st_mtime_ns for path in (command.folder / "trials").glob("*.parquet")}


def optuna_states(folder, name="tiny"):
    """How often each state occurs in the two studies of the journal of a run, as another process reads them."""
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    both = [optuna.load_study(study_name=one, storage=storage) for one in (name, f"{name}-curves")]
    return Counter(trial.state.name for study in both for trial in study.trials)


@pytest.mark.timeout(300)
def test_a_sweep_is_stopped_and_keeps_what_has_ended(seen):
    assert seen.code == 130, (seen.out, seen.err)
    assert "14 configurations x 2 seeds on digits" in seen.out
    assert "1 trial at a time, " in seen.out
    assert "stopped by SIGINT" in seen.out
    assert "trials left to do; the same command goes on from here" in seen.out
    kept = len(results(seen))
    assert 0 < kept < 14
    ended = optuna_states(seen.folder, "eager")
    assert ended["COMPLETE"] + ended["PRUNED"] == 2 * kept
    assert set(ended) <= {"COMPLETE", "PRUNED", "FAIL"}


@pytest.mark.timeout(300)
def test_a_stopped_sweep_is_finished_with_more_and_then_found_done(eager_launch):
    kept, whole, out = eager_launch.kept, eager_launch.whole, eager_launch.said
    assert 0 < len(kept) < len(whole) == 15
    assert f"{len(kept)} done before" in out
    assert "15/15 done" in out
    assert " of 15 configurations" in out
    assert kept.items() <= whole.items()
    assert pq.read_table(eager_launch.folder / "pareto.parquet").num_rows == 15
    assert len(list((eager_launch.folder / "warmup").glob("*.safetensors"))) == 4  # each trained once

    code, again, err = run_launch(eager_launch)
    assert (code, err) == (0, "")
    assert "all done before" in again
    assert "Ray" not in again
    assert finished_in(eager_launch.home) == whole
    front, front_again = (text[text.index("Pareto front") : text.index("more: ")] for text in (out, again))
    assert front == front_again

    code, out, err = run_launch(eager_launch, "--set", "train.batch_size=64")
    assert (code, out) == (2, "")
    assert "runs/eager holds results that are not comparable (train.batch_size: 48 there, 64 now)" in err
    assert len(err.splitlines()) == 1


def run_launch(launched, *options):
    """Exit code, standard output and standard error of a launch where the sweep was finished."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    line = [sys.executable, "-m", "qdtune.launch", str(EAGER), *options, "--no-dashboard"]
    how = {"cwd": launched.home, "env": environment | {"COLUMNS": "80"}, "timeout": 110}
    done = subprocess.run(line, capture_output=True, text=True, check=False, **how)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow  # test_kills.py has more moments
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
    assert "16 of 16 trials left to do" in out
    assert set(optuna_states(command.folder)) <= {"FAIL"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_reader_that_goes_away_does_not_end_the_sweep(command):
    with command.start() as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=110) == 0
    assert len(finished(command)) == 4


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_spent_time_budget_leaves_nothing_running(command):
    code, out, err = command(
        "[1, 4]", "--set", "run.time_budget_s=1e-3", *ONE_WORKER
    )  # less than the first worker needs
    assert (code, err) == (3, "")
    assert "the time budget is spent: 4 of 4 trials left to do; the same command goes on from here" in out
    assert set(optuna_states(command.folder)) <= {"FAIL"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_runs_up_to_its_cap_and_then_gives_its_front_more_seeds(command):
    search = ("--set", "method=nsga2", "--set", "duplicates=resample")
    code, out, err = command("[1, 2, 3, 4]", *search, "--set", "run_cap=3")
    assert (code, err) == (0, "")
    assert "3 configurations x 2 seeds on synthetic" in out
    first = finished(command)
    assert len(first) == 3
    assert optuna_states(command.folder)["COMPLETE"] == 2 * 3

    more = ("--set", "run_cap=5", "--set", "replicate={front: 3, within: 0}")
    code, out, err = command("[1, 2, 3, 4]", *search, *more)
    assert (code, err) == (0, "")
    assert "3 done before" in out
    assert first.items() <= finished(command).items()
    table = pq.read_table(command.folder / "pareto.parquet").to_pylist()
    assert len(table) == 5
    seeds = {row["is_pareto"]: set() for row in table}
    for row in table:
        seeds[row["is_pareto"]].add(row["n_seeds"])
    assert seeds[True] == {3}
    assert seeds.get(False, {2}) <= {2, 3}
    assert len(finished(command)) == 5 + sum(row["n_seeds"] == 3 for row in table)  # a file of its own for the third
    assert set(optuna_states(command.folder)) <= {"COMPLETE", "FAIL", "PRUNED"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_was_stopped_early_is_summed_up_and_runs_again_without_the_rule(command):
    perfect = "early_terminate={type: threshold, lower: 1}"  # nobody is, so that all end with their first QAT epoch
    code, out, err = command("[1, 4]", "--set", perfect)
    assert (code, err) == (0, "")
    assert "4 trials stopped early by threshold: 50% of all QAT epochs saved; see the column `pruned_by`" in out
    assert "4/4 done, 0 running, 4 stopped" in out
    assert "Pareto front" not in out
    table = pq.read_table(command.folder / "pareto.parquet").to_pylist()
    assert [(row["state"], row["pruned_by"], row["pareto_rank"]) for row in table] == [
        ("pruned", "threshold", None)
    ] * 4
    assert optuna_states(command.folder) == {"PRUNED": 2 * 4}

    code, out, err = command("[1, 4]", "--set", perfect)
    assert (code, err) == (0, "")
    assert "all done before" in out

    code, out, err = command("[1, 4]")
    assert (code, err) == (0, "")
    assert "0 done before" in out
    assert " of 4 configurations" in out
    table = pq.read_table(command.folder / "pareto.parquet").to_pylist()
    assert [(row["state"], row["pruned_by"]) for row in table] == [("ok", None)] * 4
    assert optuna_states(command.folder) == {"COMPLETE": 2 * 4}


def test_node_that_leaves_or_joins_is_told_with_how_many_trials_run_now(monkeypatch, capsys):
    from qdtune.sweep import watches
    from qdtune.sweep.placement import Node, Placement
    from qdtune.terminal import console

    there = {"10.0.0.1 (aaaaaa)": Node(2), "10.0.0.2 (bbbbbb)": Node(2, 1)}
    monkeypatch.setattr(watches, "nodes_now", lambda: dict(there))
    monkeypatch.setattr(watches, "LOOK_S", 0.0)
    watch = watches.NodeWatch(dict(there), Placement(0.25, 1, per_gpu=4, concurrent=3, notes=()), 3, console())

    def seen():
        watch.on_step_begin(0, [])
        return capsys.readouterr().out

    assert seen() == ""
    there["10.0.0.3 (cccccc)"] = Node(8, 1)
    assert seen() == "node 10.0.0.3 (cccccc) has joined: 3 trials at a time now\n", "six fit, three are allowed"
    del there["10.0.0.3 (cccccc)"], there["10.0.0.1 (aaaaaa)"]
    left = "node 10.0.0.1 (aaaaaa) has left, node 10.0.0.3 (cccccc) has left: 2 trials at a time now\n"
    assert (seen(), seen()) == (left, "")
    there.clear()
    gone = "node 10.0.0.2 (bbbbbb) has left: 0 trials at a time now, until a node has room for one\n"
    assert seen() == gone


def test_a_killed_nodes_last_log_is_not_printed():
    """Ray sends it to every driver, `log_to_driver` or not; how it filters is read when it is imported."""
    code = """
from qdtune.sweep.cluster import set_environment
set_environment("somewhere:1")
from ray._private.worker import print_to_stdstream
dead = "The node with node id: 12 and address: 127.0.0.2 has been marked dead\\n (2) state-dump"
for text in ("Raylet is terminated. Termination is unexpected.\\n    [state-dump] x", dead, "another message"):
    print_to_stdstream({"lines": [text], "pid": "raylet", "is_err": False}, ignore_prefix=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "another message" in done.stdout
    assert "state-dump" not in done.stdout


@pytest.mark.slow
def test_a_sweep_that_nobody_can_read_ends_in_its_table(command):
    """The disk of the log is full, and standard error is closed: 4 files of results could be written into instead."""
    with open("/dev/full", "wb") as full:
        process = command.start(output=full, preexec_fn=lambda: os.close(2))
    assert process.wait(110) == 0
    assert len(finished(command)) == 4
    assert (command.folder / "pareto.parquet").exists()
