"""One configuration from initial weights to rows: shared warm-ups, divergence, same seed same numbers."""

import ctypes
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch

from qdtune.datasets.load import load
from qdtune.model import networks
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.tasks import ACCURACY, CLASSIFICATION
from qdtune.training import train
from qdtune.training.losses import chance_of
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.training_log import TrainingLog
from tests.schemas import HISTORY, TRIALS
from tests.training.test_cohort import CPU
from tests.training.test_cohort import a_short_trial as a_trial


class Kept(dict):
    """Warm-ups in memory, and how often one was trained."""

    trained = 0

    def claim(self, key):
        return self.get(key)

    def keep(self, key, blob):
        self.trained += 1
        self[key] = blob


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["synthetic"], tmp_path_factory.mktemp("data"), 128)
    return Tensors.of(loaded, CPU)


def last(trial, data, warmups=None):
    *_, report = train_configuration(trial, data, Kept() if warmups is None else warmups)
    return report


def numbers(report):
    moving = ("seconds", "started_at", "finished_at")
    strip = lambda row: {k: v for k, v in row.items() if k not in moving}  # noqa: E731
    return [strip(row) for row in report["rows"]], [strip(entry) for entry in report["history"]]


def test_reports_come_epoch_by_epoch_and_the_last_is_done(data):
    reports = list(train_configuration(a_trial(), data, Kept()))
    assert [(r["phase"], r["epoch"]) for r in reports] == [("warmup", 1), ("warmup", 2), ("qat", 1), ("qat", 2)]
    assert all(len(r["val_accuracy"]) == 3 for r in reports)
    assert [r.get("done") for r in reports] == [None, None, None, True]
    assert [("rows" in r) for r in reports] == [False, False, True, True]
    assert [len(r["history"]) for r in reports] == [3, 6, 9, 12]  # all epochs so far, not added to afterwards
    assert all(r["history"] == reports[-1]["history"][: len(r["history"])] for r in reports)
    rows, history = reports[-1]["rows"], reports[-1]["history"]
    assert {row["seed"] for row in rows} == {0, 1, 2}
    driver = {"attempt", "pruned_by", "p_reach", "released"}  # it knows these
    assert all(set(row) | driver == set(TRIALS.names) for row in rows)
    assert all(set(entry) | {"trial_id"} == set(HISTORY.names) for entry in history)
    assert all(row["state"] == "ok" and row["epochs"] == 4 and row["error"] is None for row in rows)
    assert [row["val_accuracy"] for row in rows] == reports[-1]["val_accuracy"]


def test_rows_of_an_earlier_epoch_are_those_of_a_shorter_training_but_for_the_test_set(data):
    stopped = next(
        report
        for report in train_configuration(a_trial(qat=Qat(epochs=3, lr=0.03)), data, Kept())
        if "rows" in report
    )
    short = last(a_trial(qat=Qat(epochs=1, lr=0.03)), data)
    rows, history = numbers(stopped)
    expected, whole = numbers(short)
    assert history == whole
    assert {row["test_accuracy"] for row in rows} == {None}
    moving = ("trial_id", "test_accuracy")
    assert [{**row, **dict.fromkeys(moving)} for row in rows] == [
        {**row, **dict.fromkeys(moving)} for row in expected
    ]


@pytest.mark.parametrize("bits", [1, 4, 32])
def test_training_learns(data, bits):
    trial = a_trial(depth=1, weight_bits=bits, warmup=Warmup(epochs=8, lr=0.3), qat=Qat(epochs=4, lr=0.03))
    assert min(row["test_accuracy"] for row in last(trial, data)["rows"]) > 0.8  # of four classes


def test_the_same_trial_gives_the_same_numbers(data):
    assert numbers(last(a_trial(), data)) == numbers(last(a_trial(), data))


def test_a_shared_warmup_gives_the_numbers_of_an_own_one(data):
    warmups = Kept()
    last(a_trial(weight_bits=1), data, warmups)
    shared = last(a_trial(weight_bits=4), data, warmups)
    assert warmups.trained == 1
    assert numbers(shared) == numbers(last(a_trial(weight_bits=4), data))
    assert all(row["seconds"] == pytest.approx(sum(e["seconds"] for e in shared["history"]
               if e["seed"] == row["seed"] and e["phase"] == "qat")) for row in shared["rows"])  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [{"depth": 3}, {"activation": "tanh"}, {"factor_init": "default"}, {"hidden": (9,)}, {"seeds": (5,)},
     {"warmup": Warmup(epochs=2, lr=0.05)}, {"batch_norm": True}, {"batch_norm": "factors"}],
    ids=str,
)  # fmt: skip
def test_what_changes_the_warmup_trains_another(data, changes):
    warmups = Kept()
    last(a_trial(qat=Qat(epochs=1, lr=0.01), batch_size=128), data, warmups)
    last(a_trial(qat=Qat(epochs=1, lr=0.01), batch_size=128, **changes), data, warmups)
    assert warmups.trained == 2


def test_shifted_training_starts_from_the_same_warmup_and_is_judged_on_images_as_they_are(data):
    warmups = Kept()
    plain, shifted = (
        last(a_trial(qat=Qat(epochs=2, lr=0.03, augment=augment)), data, warmups) for augment in ("none", "shift")
    )
    assert warmups.trained == 1
    assert [row["augment"] for row in shifted["rows"]] == ["shift"] * 3
    still = last(a_trial(qat=Qat(epochs=2, lr=1e-12, augment="shift")), data, warmups)  # nothing is learned
    assert [row["val_accuracy"] for row in still["rows"]] == [
        row["val_accuracy"] for row in last(a_trial(qat=Qat(epochs=2, lr=1e-12)), data, warmups)["rows"]
    ]
    assert [row["train_loss"] for row in shifted["rows"]] != [row["train_loss"] for row in plain["rows"]]


def test_svd_shares_the_undivided_warmup_between_depths(data):
    warmups = Kept()
    for depth in (1, 2, 3):
        report = last(a_trial(factor_init="svd", depth=depth, activation="identity"), data, warmups)
        assert min(row["float_val_accuracy"] for row in report["rows"]) > 0.5
    assert warmups.trained == 1


def test_svd_of_a_warmup_that_diverged_is_diverged(data):
    trial = a_trial(factor_init="svd", activation="identity", warmup=Warmup(epochs=3, lr=1e30))
    warmups = Kept()
    assert len(last(trial, data, warmups)["history"]) == 3  # one epoch each: nobody is left to train
    tensors = safetensors.torch.load(warmups[trial.warmup_id])
    tensors["0.factors.0.weight"].fill_(float("nan"))  # of which there are no singular values
    warmups[trial.warmup_id] = safetensors.torch.save(tensors)
    assert [row["state"] for row in last(trial, data, warmups)["rows"]] == ["diverged"] * 3


def test_a_damaged_warmup_is_trained_again(data):
    warmups = Kept()
    whole = last(a_trial(), data, warmups)
    (key,) = warmups
    warmups[key] = warmups[key][:100]
    assert numbers(last(a_trial(), data, warmups)) == numbers(whole)
    assert warmups.trained == 2


def test_a_kept_warmup_is_safetensors(data):
    warmups = Kept()
    last(a_trial(), data, warmups)
    (blob,) = warmups.values()
    assert {name for name in safetensors.torch.load(blob) if name[0] == "/"} == {"/points", "/owners"}


@pytest.mark.parametrize("phase", ["warmup", "qat"])
def test_a_replica_that_diverges_keeps_its_row_and_its_curve(data, phase):
    huge = {"warmup": Warmup(epochs=2, lr=1e30)} if phase == "warmup" else {"qat": Qat(epochs=3, lr=1e30)}
    trial = a_trial(weight_bits=32, **huge)
    reports = list(train_configuration(trial, data, warmups := Kept()))
    rows, history = reports[-1]["rows"], reports[-1]["history"]
    assert [row["state"] for row in rows] == ["diverged"] * 3
    assert all(row["val_accuracy"] is row["test_accuracy"] is row["train_loss"] is None for row in rows)
    assert all(f"loss not finite in {phase} epoch 1" == row["error"] for row in rows)
    assert len(history) == 3 * (1 if phase == "warmup" else 3)
    assert history[-1]["train_loss"] is None
    assert numbers(list(train_configuration(trial, data, warmups))[-1]) == numbers(
        reports[-1]
    )  # from the kept warm-up too


def test_one_diverged_replica_does_not_touch_the_others(data, monkeypatch):
    whole = last(a_trial(), data)
    build = networks.build_mlp

    def poisoned(*args, seed, **kwargs):
        model = build(*args, seed=seed, **kwargs)
        if seed == 1:
            model[-1].bias.data[0] = float("inf")
        return model

    monkeypatch.setattr(networks, "build_mlp", poisoned)
    report = last(a_trial(), data)
    assert [row["state"] for row in report["rows"]] == ["ok", "diverged", "ok"]
    for k in (0, 2):
        assert numbers(report)[0][k] == numbers(whole)[0][k]


def test_a_warmup_that_ended_at_chance_is_told(data):
    report = last(a_trial(warmup=Warmup(epochs=1, lr=1e-12), factor_init="default", depth=4), data)
    assert any("warm-up ended at chance" in (row["error"] or "") for row in report["rows"])
    assert all(row["state"] == "ok" for row in report["rows"])


def test_no_warmup_at_all_starts_from_the_first_weights(data):
    report = last(a_trial(warmup=Warmup(epochs=0)), data)
    assert [row["epochs"] for row in report["rows"]] == [2, 2, 2]
    assert {entry["phase"] for entry in report["history"]} == {"qat"}


def test_log_ends_a_replica_at_its_first_bad_loss():
    log = TrainingLog((7, 8))
    assert log.add("qat", 1, [1.0, float("nan")], [0.5, 0.1], 2.0)["val_accuracy"] == [0.5, None]
    assert log.add("qat", 2, [0.9, 0.4], [0.6, 0.9], 2.0)["val_accuracy"] == [0.6, None]
    assert [(e["seed"], e["epoch"], e["train_loss"]) for e in log.entries] == [(7, 1, 1.0), (8, 1, None), (7, 2, 0.9)]
    assert log.add("qat", 3, [float("-inf"), 1.0], [0.1, 0.1], 2.0)["train_loss"] == [None, None]


def test_the_test_set_changes_nothing_but_its_own_column(data):
    blind = replace(data, test_y=(data.test_y + 1) % 4)
    seen, unseen = numbers(last(a_trial(), data)), numbers(last(a_trial(), blind))
    assert seen[1] == unseen[1]
    for a, b in zip(seen[0], unseen[0], strict=True):
        assert a["test_accuracy"] != b["test_accuracy"]
        assert {k: v for k, v in a.items() if k != "test_accuracy"} == {
            k: v for k, v in b.items() if k != "test_accuracy"
        }


def test_tensors_leave_read_only_arrays_alone(tmp_path):
    loaded, _ = load(["digits"], tmp_path, 100)
    for array in (loaded.train_x, loaded.val_x):
        array.setflags(write=False)
    tensors = Tensors.of(loaded, CPU)
    assert np.array_equal(tensors.train_x.numpy(), loaded.train_x)
    assert chance_of(CLASSIFICATION, ACCURACY, tensors.val_y) == np.bincount(loaded.val_y).max() / 100


@pytest.mark.parametrize(
    ("compile", "epochs", "compiler", "expected"),
    [
        ("auto", 312, True, False),  # 8 steps an epoch
        ("auto", 313, True, True),
        ("auto", 313, False, False),
        ("never", 313, True, False),
        ("always", 1, True, True),
    ],
)
def test_long_phases_are_compiled_and_the_user_can_overrule(data, monkeypatch, compile, epochs, compiler, expected):
    asked = {}

    class Noted(train.Cohort):
        def __init__(self, *arguments):
            asked[arguments[4]] = arguments[-1]
            super().__init__(*arguments[:-1], False)

        def train(self, epoch):
            return [1.0] * len(self.generators)

    monkeypatch.setattr(train, "Cohort", Noted)
    monkeypatch.setattr(train, "has_compiler", lambda: compiler)
    trial = a_trial(qat=Qat(epochs=epochs, lr=0.1), batch_size=len(data.train_x) // 8)
    for _ in train_configuration(trial, data, Kept(), compile):
        pass
    assert asked["qat"] is expected
    assert asked["warmup"] is (compile == "always")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_a_process_of_trials_keeps_the_memory_that_it_frees():
    code = """if True:
        import resource, sys, torch
        from qdtune.training.device import set_up_process
        if sys.argv[1] == "yes":
            set_up_process(1)
        pages = []
        for _ in range(20):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(2**24).fill_(1)  # 64 MB
            pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        print(min(pages))
    """
    fewest = [int(subprocess.check_output([sys.executable, "-c", code, kept])) for kept in ("no", "yes")]
    assert fewest[0] > 100 * max(1, fewest[1])
