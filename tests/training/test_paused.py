"""Checkpoints: training that another process goes on with ends in the same bits; what is unsound starts over.

As a command it is that other process: `python -m tests.training.test_paused FOLDER COMPILE` goes on from every
checkpoint in the folder and writes the results beside them.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from qdtune.datasets.load import load
from qdtune.model import networks
from qdtune.model.signed_file import sign_file, split_file
from qdtune.spec.groups import Qat, Warmup
from qdtune.store.paused import PausedFolder
from qdtune.training import cohort, paused
from qdtune.training.compiled import make_eager_step, why_eager
from qdtune.training.paused import FIRST_COST_S, STOP_PER_COST, TRAINING_PER_COST, Checkpoints
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU, a_trial

SGD, ADAM = Qat(epochs=3, lr=0.03), Qat(epochs=3, lr=0.005, optimizer="adam", schedule="cosine")
HEAVY = Qat(epochs=3, lr=0.03, momentum=0.9, augment="shift")
CASES = {
    "sgd": {"qat": SGD},
    "momentum and shift": {"qat": HEAVY},
    "adam and cosine": {"qat": ADAM},
    "float": {"qat": ADAM, "weight_bits": 32},
    "normalised": {"qat": SGD, "batch_norm": True},
    "factors and lsq": {"qat": ADAM, "batch_norm": "factors", "scale": "lsq", "granularity": "channel"},
    "quantised inputs": {"qat": ADAM, "scale": "lsq", "act_bits": 3, "weight_bits": 2, "levels": "full"},
    "svd": {"qat": ADAM, "factor_init": "svd", "activation": "identity", "depth": 3},
    "one diverged": {"qat": SGD, "seeds": (0, 13, 2)},  # see `poisoned`
    "no warm-up": {"qat": ADAM, "warmup": Warmup(epochs=0)},
}
COMPILED = {  # without a warm-up, which would be compiled, too
    "compiled momentum": {"qat": HEAVY, "warmup": Warmup(epochs=0)},
    "compiled adam": CASES["factors and lsq"] | {"act_bits": 3, "warmup": Warmup(epochs=0)},
}


MANY_STEPS = ("sgd", "factors and lsq", *COMPILED)  # enough to be played from a tape, which takes time to record


def trial_of(case):
    return a_trial(batch_size=64 if case in MANY_STEPS else 192, **(CASES | COMPILED)[case])


@contextlib.contextmanager
def poisoned():
    """Seed 13 diverges at once: its first weights are not finite."""
    build = networks.build_mlp

    def build_poisoned(*args, seed, **kwargs):
        model = build(*args, seed=seed, **kwargs)
        if seed == 13:
            model[-1].bias.data[0] = float("inf")
        return model

    with mock.patch.object(networks, "build_mlp", build_poisoned):
        yield


class Memory(dict):
    """Checkpoints in memory, by trial_id; all that were ever kept are in `all`."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.all, self.refused = [], []

    def find(self, trial_id):
        return self.get(trial_id)

    def keep(self, trial_id, blob):
        self[trial_id] = blob
        self.all.append(blob)

    def refuse(self, trial_id):
        self.refused.append(trial_id)
        del self[trial_id]


class Always(Checkpoints):
    """Keeps a checkpoint after each epoch."""

    def _pays(self, per_cost):
        return True


class OnlyOnce(NoWarmups):
    """A warm-up that nobody may ask for."""

    def claim(self, key):
        raise AssertionError("a training that goes on needs no warm-up")


def load_data(folder):
    loaded, _ = load(["synthetic"], folder, 128)
    return Tensors.of(loaded, CPU)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(tmp_path_factory.mktemp("data"))


def numbers(report):
    """All that a training gives but its clocks, as text that shows every bit."""
    moving = ("seconds", "finished_at", "started_at")
    parts = [[{k: repr(v) for k, v in row.items() if k not in moving} for row in report[key]] for key in
             ("rows", "history")]  # fmt: skip
    return json.dumps([*parts, report["epoch"], hashlib.sha256(report["weights"] or b"").hexdigest()])


def train(trial, data, store=None, warmups=None, compile="never", kind=Always):
    """The reports of a training, the last one with everything."""
    checkpoints = None if store is None else kind(store)
    warmups = NoWarmups() if warmups is None else warmups
    with poisoned():
        return list(train_configuration(trial, data, warmups, compile, checkpoints=checkpoints))


def go_on_elsewhere(folder, compile):
    """What `main` writes in another process: file -> the numbers."""
    line = [sys.executable, "-m", "tests.training.test_paused", str(folder), compile]
    subprocess.run(line, check=True, timeout=200)
    return {path.stem: path.read_text() for path in folder.glob("*.json")}


def main(folder, compile):
    torch.set_num_threads(1)
    data = load_data(folder)
    for path in sorted(folder.glob("*.safetensors")):
        trial = trial_of(path.stem.split("@")[0])
        store = Memory({trial.trial_id: path.read_bytes()})
        reports = train(trial, data, store, OnlyOnce(), compile)
        assert {report["resumed_at"] for report in reports} == {int(path.stem.split("@")[1])}
        path.with_suffix(".json").write_text(numbers(reports[-1]))


def pause_everywhere(folder, data, cases, compile):
    """Trains the cases, with all their checkpoints in the folder; case -> the numbers of the undisturbed training."""
    whole, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for case in cases:
        trial, store = trial_of(case), Memory()
        reports = train(trial, data, store, compile=compile)
        assert len(store.all) == trial.qat.epochs - 1, "none after the last epoch"
        for epoch, blob in enumerate(store.all, 1):
            (folder / f"{case}@{epoch}.safetensors").write_bytes(blob)
        whole[case] = numbers(reports[-1])
        assert whole[case] == numbers(train(trial, data, compile=compile)[-1]), "keeping changes nothing"
    torch.set_num_threads(threads)
    return whole


@pytest.fixture(scope="module")
def eager(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eager")
    return pause_everywhere(folder, data, CASES, "never"), go_on_elsewhere(folder, "never")


@pytest.mark.parametrize("case", CASES)
def test_another_process_goes_on_to_the_same_bits(eager, case):
    whole, found = eager
    assert [found[f"{case}@{epoch}"] for epoch in (1, 2)] == [whole[case]] * 2


def test_the_cases_are_what_they_say(eager):
    whole, _ = eager
    assert len(set(whole.values())) == len(CASES)
    states = [row["state"] for row in json.loads(whole["one diverged"])[0]]
    assert states == ["'ok'", "'diverged'", "'ok'"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_steps_go_on_to_the_same_bits(data, tmp_path):
    whole = pause_everywhere(tmp_path, data, COMPILED, "always")
    found = go_on_elsewhere(tmp_path, "always")
    assert found == {f"{case}@{epoch}": whole[case] for case in COMPILED for epoch in (1, 2)}
    assert why_eager() is None
    eager = train(trial_of("compiled adam"), data, compile="never")
    assert numbers(eager[-1]) != whole["compiled adam"], "else the test shows nothing of compiled steps"


def test_a_training_that_goes_on_reports_the_epochs_that_are_left_and_knows_all(data):
    trial, store = trial_of("sgd"), Memory()
    whole = train(trial, data, store)
    reports = train(trial, data, Memory({trial.trial_id: store.all[0]}), OnlyOnce())
    assert [(r["phase"], r["epoch"]) for r in reports] == [("qat", 2), ("qat", 3)]
    assert [len(r["history"]) for r in reports] == [4 * 3, 5 * 3]
    first, again = whole[-1]["rows"][0], reports[-1]["rows"][0]
    assert again["started_at"] == first["started_at"] < again["finished_at"]
    old = [e["seconds"] for e in whole[2]["history"] if e["seed"] == 0]  # both warm-up epochs and the first of QAT
    new = [e["seconds"] for e in reports[-1]["history"] if e["seed"] == 0][3:]
    assert again["seconds"] == pytest.approx(sum(old) + sum(new))


def test_the_seconds_of_a_shared_warmup_stay_with_the_trial_that_trained_it(data):
    kept = Memory()
    kept.claim = kept.get
    for trial in (trial_of("sgd"), a_trial(batch_size=64, qat=SGD, weight_bits=2)):
        store = Memory()
        whole = train(trial, data, store, kept)
    again = train(trial, data, store, OnlyOnce())
    for report in (whole[-1], again[-1]):
        own = [e["seconds"] for e in report["history"] if e["seed"] == 0 and e["phase"] == "qat"]
        assert report["rows"][0]["seconds"] == pytest.approx(sum(own))


# --- what is unsound


def metadata_of(blob):
    return split_file(blob)[0]["__metadata__"]


def changed(blob, tensors=None, **metadata):
    """A checkpoint with other content and the right checksum."""
    given = safetensors.torch.load(blob) | (tensors or {})
    return sign_file(*split_file(safetensors.torch.save(given, metadata_of(blob) | metadata)))


def damage(blob):
    half = bytearray(blob)
    half[-100] ^= 1
    return bytes(half)


def remove_tensor(blob):
    given = safetensors.torch.load(blob)
    given.pop(sorted(name for name in given if name.startswith("moments"))[0])
    return sign_file(*split_file(safetensors.torch.save(given, metadata_of(blob))))


UNSOUND = {
    "flipped": damage,
    "truncated": lambda blob: blob[: len(blob) // 2],
    "empty": lambda blob: b"",
    "without a checksum": lambda blob: safetensors.torch.save(safetensors.torch.load(blob), {}),
    "of another trial": lambda blob: changed(blob, **{"qdtune.trial_id": "0" * 12}),
    "of another network": lambda blob: changed(blob, {"params/0.factors.0.weight": torch.zeros(1)}),
    "without a tensor": remove_tensor,
    "without a generator": lambda blob: changed(blob, {"/generators": torch.zeros(1, 5056, dtype=torch.uint8)}),
}


@pytest.mark.parametrize("unsound", UNSOUND)
def test_an_unsound_checkpoint_is_set_aside_and_training_starts_over(data, unsound):
    trial, store = trial_of("adam and cosine"), Memory()
    whole = train(trial, data, store)
    damaged = Memory({trial.trial_id: UNSOUND[unsound](store.all[0])})
    reports = train(trial, data, damaged)
    assert damaged.refused == [trial.trial_id]
    assert (reports[0]["phase"], reports[0]["epoch"]) == ("warmup", 1)
    assert numbers(reports[-1]) == numbers(whole[-1])
    assert not any("resumed_at" in report for report in reports)


@pytest.mark.parametrize("what", ["format", "machine", "threads", "compiled"])
def test_a_checkpoint_of_other_circumstances_is_not_used_and_not_called_damaged(data, what, monkeypatch):
    trial, store = trial_of("sgd"), Memory()
    whole = train(trial, data, store)
    blob, compile = store.all[0], "never"
    if what in ("format", "machine"):
        progress = json.loads(metadata_of(blob)["qdtune.paused"]) | {what: "another"}
        blob = changed(blob, **{"qdtune.paused": json.dumps(progress)})
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    else:
        compile = "always"
        monkeypatch.setattr(paused, "why_eager", lambda: None)
        monkeypatch.setattr(cohort, "compile_step", lambda _, *given: make_eager_step(*given[:3]))
    other = Memory({trial.trial_id: blob})
    reports = train(trial, data, other, compile=compile)
    assert reports[0]["phase"] == "warmup"
    assert other.refused == []
    assert numbers(reports[-1]) == numbers(whole[-1])


# --- when it pays


def kept_after(seconds, cost, epochs, **options):
    """The epochs after which a checkpoint is kept if each takes `seconds`; after the last one it is stopped."""
    now, found, training = [0.0], [], mock.Mock(epoch=0)

    class Store(Memory):
        def keep(self, trial_id, blob):
            now[0] += cost
            found.append(training.epoch)

    checkpoints = Checkpoints(Store(), clock=lambda: now[0], **options)
    with mock.patch.object(paused, "pack_training"):
        for training.epoch in range(1, epochs + 1):
            checkpoints.add_epoch(training, seconds)
        training.epoch += 1
        checkpoints.stop(training, seconds)
    return found


def test_checkpoints_cost_at_most_a_twentieth():
    assert kept_after(1.0, cost=1.0, epochs=50) == [1, 21, 41]
    assert kept_after(1.0, cost=0.01, epochs=5) == [1, 2, 3, 4, 5]
    assert kept_after(0.001, cost=0.001, epochs=int(1000 * TRAINING_PER_COST * FIRST_COST_S) - 2) == []
    assert TRAINING_PER_COST >= 20


def test_a_stopped_training_is_kept_if_it_may_go_on_and_if_that_pays():
    short = STOP_PER_COST * FIRST_COST_S / 2.5
    assert kept_after(short, cost=1.0, epochs=2) == []
    assert kept_after(short, cost=1.0, epochs=2, keeps_stopped=True) == [3]
    assert kept_after(short, cost=1.0, epochs=1, keeps_stopped=True) == []


def test_a_training_that_is_stopped_between_two_epochs_goes_on_there(data):
    trial, store = trial_of("momentum and shift"), Memory()
    with mock.patch.object(paused, "STOP_PER_COST", 0):
        reports = train_configuration(trial, data, NoWarmups(), "never", checkpoints=Checkpoints(store, True))
        assert [next(reports)["epoch"] for _ in range(4)] == [1, 2, 1, 2]
        reports.close()
    again = train(trial, data, store, OnlyOnce())
    assert [report["epoch"] for report in again] == [3]
    assert numbers(again[-1]) == numbers(train(trial, data)[-1])


# --- kill -9

KILLED = Qat(epochs=12, lr=0.005, optimizer="adam")


def train_killed(folder):
    """One launch: a training whose checkpoints lie in a folder, a line for each epoch, and its numbers at the end."""
    torch.set_num_threads(1)
    checkpoints = Always(PausedFolder(str(folder / "paused")))
    with mock.patch("os.fsync"):  # nobody cuts the power, and of a killed process the kernel keeps what was written
        for report in train_configuration(
            a_trial(qat=KILLED), load_data(folder), NoWarmups(), "never", None, checkpoints
        ):
            print(report["phase"], report["epoch"], flush=True)
    print(numbers(report), flush=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_9_at_any_moment_loses_no_epoch_and_changes_no_bit(data, tmp_path):
    whole = train(a_trial(qat=KILLED), data)
    line = [sys.executable, "-m", "tests.training.test_paused", str(tmp_path)]
    blows = reached = 0
    while True:
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            told = [process.stdout.readline().split() for _ in range(2 if reached else 6)]
            if reached:
                assert told[0] in (["qat", str(reached)], ["qat", str(reached + 1)])
            if blows < 2:
                os.kill(process.pid, signal.SIGKILL)
                blows += 1
            rest = process.stdout.read().splitlines()
        told += [line.split() for line in rest if line.startswith("qat") and len(line.split()) == 2]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        reached = int(told[-1][1])
    assert blows == 2
    assert rest[-1] == numbers(whole[-1])


if __name__ == "__main__":
    if len(sys.argv) == 2:
        train_killed(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2])
