"""What a launch decides: each step once, whether it is a dry run or not, and anew only where the data set changes."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.messages import SpecError
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.folder import LocationError
from qdtune.store.store import Store
from qdtune.sweep import prepare, prepared
from qdtune.sweep.prepare import prepare_launch, read_data
from qdtune.sweep.prepared import LaunchOptions, Prepared, Unread
from qdtune.terminal import console
from qdtune.training import own_model
from tests.judged import make_spec

SWEEP = """\
version: 1
name: a
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 4]}}
seeds: [0, 1]
data: {dataset: [mnist, digits], val_size: 100}
model: {hidden: [8]}
"""
MINE = """\
import numpy as np
import torch
from torch import nn


def data(root):
    with open(root / "calls", "a") as file:
        file.write("x")
    x, y = np.arange(1200, dtype=np.uint8).reshape(200, 6), np.arange(200) % 3
    return x, y, x, y


def net(inputs, hidden, classes, *, seed):
    return nn.Sequential(nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], classes))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a sweep file and a module of the user's, which no other test is granted."""
    (tmp_path / "a.yaml").write_text(SWEEP)
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QDTUNE_DATA", str(tmp_path))
    monkeypatch.setattr(plugins, "_grants", [])
    monkeypatch.setattr(plugins, "_sources", {})
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("qdtune.datasets.load.download", no_network)
    yield tmp_path
    sys.modules.pop("mine", None)


def no_network(*_: object) -> None:
    raise OSError("no network")


def count_calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each step is taken from now on."""
    calls: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        step = getattr(module, name)

        def call(*arguments: Any) -> Any:
            calls[name] += 1
            return step(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(prepared, "load")
    for name in ("plan", "check_comparable", "place_trials", "call_own_data"):
        counted(prepare, name)
    for name in ("describe_own_model", "try_own_model"):
        counted(own_model, name)
    return calls


@pytest.mark.parametrize("is_dry", [True, False])
def test_every_step_is_taken_once(folder: Path, monkeypatch: pytest.MonkeyPatch, is_dry: bool) -> None:
    own = {"overrides": ["data={factory: 'mine:data', val_size: 50}", "model={factory: 'mine:net', hidden: [8]}"]}
    earlier = prepare_launch(LaunchOptions("a.yaml", plugins=["mine"], is_dry=True, **own))
    Store(folder / "runs" / "a").create(earlier.spec.to_yaml())
    (folder / "calls").unlink()
    calls = count_calls(monkeypatch)
    prepared = prepare_launch(LaunchOptions("a.yaml", plugins=["mine"], is_dry=is_dry, **own))
    again, data, notes = read_data(prepared, console())
    assert calls == dict.fromkeys(
        ("load", "plan", "check_comparable", "place_trials", "call_own_data", "describe_own_model", "try_own_model"),
        1,
    )
    assert (folder / "calls").read_text() == "x"
    assert (again, notes) == (prepared, [])
    assert data is prepared.data
    assert prepared.spec.model.sha256 == hashlib.sha256(MINE.encode()).hexdigest()
    assert len(prepared.plan.trials) == 4


def test_a_launch_elsewhere_forecasts_nothing_and_a_dry_run_supposes_this_machine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdtune.sweep.preflight.knock", lambda address: None)
    assert prepare_launch(LaunchOptions("a.yaml", address="10.0.0.1:6379")).forecast is None
    assert prepare_launch(LaunchOptions("a.yaml", address="10.0.0.1:6379", is_dry=True)).forecast is not None
    assert prepare_launch(LaunchOptions("a.yaml")).forecast is not None


def test_a_data_set_that_cannot_be_had_is_decided_anew_on_the_one_that_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare_launch(LaunchOptions("a.yaml"))
    assert prepared.data == Unread(("mnist", "digits"), on_disk="digits")
    assert prepared.plan.trials[0].dataset == "mnist"
    calls = count_calls(monkeypatch)
    settled, data, notes = read_data(prepared, console())
    assert capsys.readouterr().out == f"mnist is not in {folder}: downloading it\n"
    assert (data.name, settled.spec.data.names, settled.plan.trials[0].dataset) == ("digits", ("digits",), "digits")
    assert notes == [
        f"mnist could not be had (not in {folder}, download failed: no network): training on digits instead"
    ]
    assert calls == {"plan": 1}, "what was decided on digits before is not decided again"


def test_what_the_file_changes_on_the_data_set_that_stands_in_is_said(folder: Path) -> None:
    (folder / "a.yaml").write_text(SWEEP + "fallback: {seeds: [5], parameters: {depth: {value: 3}}}\n")
    prepared = prepare_launch(LaunchOptions("a.yaml"))
    assert (prepared.replaced, prepared.plan.trials[0].seeds) == ([], (0, 1))
    settled, _, _ = read_data(prepared, console())
    said = ["on digits, fallback of the sweep file replaces parameters, seeds"]
    assert settled.replaced == said
    chosen = prepare_launch(LaunchOptions("a.yaml", overrides=["data.dataset=digits"]))
    assert (chosen.replaced, chosen.plan.trials, chosen.fallbacks) == (said, settled.plan.trials, {})
    assert [(trial.depth, trial.seeds) for trial in settled.plan.trials] == [(3, (5,))] * 2


@pytest.mark.parametrize("is_dry", [True, False])
def test_a_fallback_that_leaves_nothing_to_run_is_told_while_the_first_data_set_can_be_had(
    folder: Path, is_dry: bool
) -> None:
    (folder / "a.yaml").write_text(SWEEP + "fallback: {constraints: [size_bytes <= 10]}\n")
    told = (
        r"a.yaml: fallback: on digits, nothing is left to run: 0 of 4 points excluded, 4 left out by size_bytes <= 10"
    )
    with pytest.raises(SpecError, match=told):
        prepare_launch(LaunchOptions("a.yaml", is_dry=is_dry))


def begin_run(folder: Path, dataset: str) -> Store:
    """A run folder with the result of one trial."""
    spec = load("a.yaml").resolve(dataset)
    store, trial = Store(folder / "runs" / "a"), plan(spec).trials[0]
    with store.lock():
        store.create(spec.to_yaml())
        rows = [trial.columns | {"seed": seed, "state": "ok", "val_accuracy": 0.5} for seed in trial.seeds]
        store.write(trial.trial_id, rows, [], {})
    return store


def test_results_on_a_data_set_that_could_not_be_had_are_told_with_the_reason(folder: Path) -> None:
    begin_run(folder, "mnist")
    prepared = prepare_launch(LaunchOptions("a.yaml"))
    assert prepared.comparable == {"mnist"}
    with pytest.raises(
        SpecError, match=r"mnist could not be had .*; runs/a holds results on mnist: point --data-dir"
    ):
        read_data(prepared, console())
    with pytest.raises(
        SpecError, match=rf"mnist is not in {folder}; runs/a holds results on mnist: point --data-dir"
    ):
        prepare_launch(LaunchOptions("a.yaml", is_dry=True))


def test_results_on_a_fallback_are_not_gone_on_from_with_the_wanted_data_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(folder, "digits")
    prepared = prepare_launch(LaunchOptions("a.yaml"))
    assert prepared.comparable == {"digits"}
    mnist = SimpleNamespace(name="mnist")
    monkeypatch.setattr("qdtune.datasets.load.load", lambda *_: (mnist, []))
    with pytest.raises(SpecError, match=r"runs/a holds results that are not comparable \(data.dataset: "):
        read_data(prepared, console())


@pytest.mark.parametrize("is_dry", [True, False], ids=["dry run", "launch"])
def test_a_run_that_has_warm_ups_only_is_said_to_have_no_results(folder: Path, is_dry: bool) -> None:
    store = Store(folder / "runs" / "a")
    store.create(load("a.yaml").resolve("digits").to_yaml())
    store.folder.write_file("warmup/0123456789ab.safetensors", b"weights")
    told = r"runs/a has no results yet, but other settings \(train.batch_size: 64 there, 32 now\): "
    changes = ["data.dataset=digits", "train.batch_size=32"]
    with pytest.raises(SpecError, match=f"{told}choose another name, or set it aside with --fresh"):
        prepare_launch(LaunchOptions("a.yaml", changes, is_dry=is_dry))
    begin_run(folder, "digits")
    with pytest.raises(SpecError, match=r"runs/a holds results that are not comparable \(train.batch_size"):
        prepare_launch(LaunchOptions("a.yaml", changes, is_dry=is_dry))


def test_a_run_without_results_on_a_data_set_that_is_missing_says_so(folder: Path) -> None:
    Store(folder / "runs" / "a").create(load("a.yaml").resolve("mnist").to_yaml())
    told = rf"mnist is not in {folder}; runs/a has no results yet and is for mnist: point --data-dir"
    with pytest.raises(SpecError, match=told):
        prepare_launch(LaunchOptions("a.yaml", is_dry=True))


def test_results_of_an_own_model_are_compared_once_its_source_is_known(folder: Path) -> None:
    options = LaunchOptions("a.yaml", ["model={factory: 'mine:net', hidden: [8]}"], ["mine"])
    spec = prepare_launch(options).asked.resolve("digits")
    Store(folder / "runs" / "a").create(spec.to_yaml())
    assert prepare_launch(options).comparable == {"digits"}
    Store(folder / "runs" / "a").create(spec.changed("model", sha256="a" * 64).to_yaml())
    with pytest.raises(SpecError, match=rf"model.sha256: {'a' * 64} there, {spec.model.sha256} now"):
        prepare_launch(options)


def test_looks_are_fixed_by_results_of_a_later_one(folder: Path) -> None:
    looks = ["replicate={until: decided, looks: [2, 4]}"]
    spec = prepare_launch(LaunchOptions("a.yaml", looks)).spec
    store, trial = Store(folder / "runs" / "a"), replace(plan(spec).trials[0], seeds=(2, 3))
    with store.lock():
        store.create(spec.to_yaml())
        rows = [trial.columns | {"seed": s, "state": "ok", "val_accuracy": 0.5} for s in trial.seeds]
        store.write(trial.trial_id, rows, [], {})
    assert prepare_launch(LaunchOptions("a.yaml", looks)).spec == spec
    with pytest.raises(SpecError, match=r"replicate.looks: \[2, 4\] there, \[2, 6\] now"):
        prepare_launch(LaunchOptions("a.yaml", ["replicate={until: decided, looks: [2, 6]}"]))


def test_data_in_memory_are_handed_on_as_they_are(folder: Path) -> None:
    own = ["data={factory: 'mine:data', val_size: 50}"]
    prepared = prepare_launch(LaunchOptions("a.yaml", own, ["mine"]))
    assert isinstance(prepared.data, Samples)
    assert prepared.data.name == "mine:data"


@pytest.mark.parametrize("is_dry", [True, False], ids=["dry run", "launch"])
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_dir": Path("a.yaml")}, "--data-dir must be a folder, or one that can be made, got a.yaml"),
        ({"data_dir": Path("a.yaml/x")}, "or one that can be made, got a.yaml/x: .*/a.yaml is a file"),
        ({"runs_dir": "a.yaml"}, r"a.yaml must be a folder, got a file \(choose another --runs-dir or name\)"),
        ({"runs_dir": "a.yaml/x/y"}, r"a.yaml must be a folder, got a file"),
        ({"runs_dir": "/proc/x"}, r"cannot write to /proc/x/a: No such file or directory \(choose another"),
        ({"runs_dir": ""}, "--runs-dir must name a folder, got an empty name"),
        ({"runs_dir": "a\udcffb"}, r"--runs-dir must have a name in UTF-8, which Ray needs, got a\\udcffb \(choose"),
        ({"plugins": ["a b"]}, "--allow-plugin must be the name of a module, such as .*, got 'a b'"),
        ({"plugins": ["mine", "mine."]}, "--allow-plugin must be the name of a module, such as .*, got 'mine.'"),
    ],
)
def test_a_dry_run_refuses_what_a_launch_refuses(
    folder: Path, is_dry: bool, changes: dict[str, Any], told: str
) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises((SpecError, LocationError), match=told) as caught:
        prepare_launch(LaunchOptions("a.yaml", is_dry=is_dry, **changes))
    assert str(caught.value).count("\n") == 0
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("task", "metric", "test_y", "notes"),
    [
        (
            "regression",
            "mae",
            [[0.0, 1], [2, 1]],
            ["test_r2: null, because a target is the same in all rows of the test"],
        ),
        ("regression", "r2", [[0.0, 1]], ["test_r2: null, because a target is the same"]),
        ("regression", "r2", [[0.0, 1], [1, 0]], []),
        ("binary", "auc", [[1.0], [1]], ["test_auc: null, because a target is the same"]),
        ("binary", "f1", [[1.0], [1]], []),
        ("autoencoder", "mse", [[0.0], [0]], ["test_auc: null, because a target is the same"]),
        ("autoencoder", "mse", [[0.0], [1], [1]], ["test_mse: of all test rows, 2 anomalies among 3"]),
    ],
)
def test_what_the_test_set_cannot_say_is_told_before_training(task, metric, test_y, notes):
    spec, rows = make_spec(task, metric), np.zeros((1, 8), np.float32)
    data = Samples("a", rows, rows, rows, rows, rows, np.array(test_y, np.float32), 8, 2)
    options = LaunchOptions("a.yaml")
    prepared = Prepared(options, spec, spec, plan(spec), data, Path(), "run", None, frozenset(), None)
    assert [line[: len(note)] for line, note in zip(prepared.test_notes, notes, strict=True)] == notes
