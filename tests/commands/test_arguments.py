"""Arguments of `qdtune.run`, `qdtune.load` and `export`: a wrong one is named in one line, and nothing starts."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdtune
from qdtune.analysis.run import RunError
from qdtune.commands import api
from qdtune.commands.arguments import ARGUMENTS, check_arguments
from qdtune.commands.loaded_run import LoadedRun
from qdtune.messages import SpecError, name_caller, name_option, python_names
from qdtune.store.folder import LocationError
from qdtune.sweep.cluster import NoClusterError
from tests.golden import trees

SWEEP: dict[str, Any] = {
    "version": 1,
    "name": "mine",
    "parameters": {"depth": {"values": [1]}},
    "seeds": [0],
    "data": {"dataset": "digits", "val_size": 300},
    "model": {"hidden": [8]},
    "train": {"batch_size": 32, "warmup": {"epochs": 1}, "qat": {"epochs": 1}},
}
OVERRIDES = "overrides must be a dict with dotted keys, such as {'train.qat.epochs': 3}"
ENDLESS: dict[str, Any] = {}
ENDLESS["self"] = ENDLESS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(api, "_run_process", start)


def test_every_argument_has_a_rule() -> None:
    taken = {
        name
        for call in (qdtune.load, qdtune.run, LoadedRun.export)
        for name, parameter in inspect.signature(call).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert taken == {one.name for one in ARGUMENTS}


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": 5}, "address must be text such as 'HOST:PORT', or None, got 5"),
        ({"fresh": "no"}, "fresh must be True or False, got 'no'"),
        ({"fresh": None}, "fresh must be True or False, got None"),
        ({"dashboard": 1}, "dashboard must be True or False, got 1"),
        ({"plugins": [5]}, "plugins must be names of modules, such as ['mine'], got a list"),
        ({"plugins": None}, "plugins must be names of modules, such as ['mine'], got None"),
        ({"plugins": ""}, "plugins must be names of modules, such as ['mine'], got ''"),
        (
            {"overrides": ["a=1"]},
            f"{OVERRIDES}, got a list",
        ),
        (
            {"overrides": "a=1"},
            f"{OVERRIDES}, got 'a=1'",
        ),
        ({"overrides": []}, f"{OVERRIDES}, got a list"),
        (
            {"overrides": {5: 1}},
            f"{OVERRIDES}, got a mapping",
        ),
        ({"overrides": {"a=b": 1}}, OVERRIDES),
        ({"overrides": {"": 1}}, OVERRIDES),
        (
            {"overrides": {"train.qat.epochs": object()}},
            "overrides: train.qat.epochs: must be text, a number, ",
        ),
        ({"overrides": {"train": ENDLESS}}, "overrides: train: must not hold itself"),
        ({"runs_dir": None}, "runs_dir must be a path or a URL, got None"),
        ({"runs_dir": ""}, "runs_dir must be a path or a URL, got ''"),
        ({"runs_dir": "a\0b"}, "runs_dir must be a path or a URL, got 'a\\x00b'"),
        ({"runs_dir": "~nobodyx/y"}, "runs_dir: ~nobodyx is no known home folder"),
        ({"data_dir": 5}, "data_dir must be a path or None, got 5"),
        ({"data_dir": "~nobodyx/y"}, "data_dir: ~nobodyx is no known home folder"),
        ({"sweep": b"x.yaml"}, "sweep must be the path of a sweep file, or its content as a dict, got b'x.yaml'"),
        ({"sweep": ""}, "sweep must be the path of a sweep file, or its content as a dict, got ''"),
        ({"sweep": None}, "sweep must be the path of a sweep file, or its content as a dict, got None"),
        ({"sweep": ENDLESS}, "sweep: must not hold itself"),
        ({"keys": 1}, "unknown key 'keys'"),
    ],
)
def test_a_wrong_argument_of_run_is_named_and_nothing_starts(
    folder: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SpecError) as raised:
        qdtune.run(**{"sweep": SWEEP} | arguments)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(message)
    assert os.listdir(folder) == []


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        check_arguments({"seed": True, "out": 5, "target": 1})
    assert str(raised.value).splitlines() == [
        "error: seed must be a whole number or None, got True",
        "error: out must be the path of a folder, got 5",
        "error: target must be text, got 1",
    ]
    check_arguments(
        {"seed": np.int64(3), "out": Path("x"), "plugins": "mine", "address": None, "overrides": {"a.b": 1}}
    )


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("", "run must be a path or a URL, got ''"),
        (5, "run must be a path or a URL, got 5"),
        (b"runs", "run must be a path or a URL, got b'runs'"),
        ("~nobodyx/y", "run: ~nobodyx is no known home folder (for a folder of this name write ./~nobodyx/y)"),
    ],
)
def test_a_wrong_run_is_a_run_error(run: Any, message: str) -> None:
    with pytest.raises(RunError) as raised:
        qdtune.load(run)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"front": "no"}, "front must be True or False, got 'no'"),
        ({"trial": ""}, "trial must be the id of a trial, or how it begins, got ''"),
        ({"trial": 5}, "trial must be the id of a trial, or how it begins, got 5"),
        ({"front": True, "out": None}, "out must be the path of a folder, got None"),
        ({"front": True, "out": __file__}, f"out must be a folder on this machine, got {__file__}"),
        ({"front": True, "out": "~nobodyx"}, "out: ~nobodyx is no known home folder"),
        ({"front": True, "seed": "1"}, "seed must be a whole number or None, got '1'"),
        ({"front": True, "seed": 99}, "seed must be one of 0, 1 for trial "),
        ({"front": True, "format": 5}, "format must be the name of a format, got 5"),
    ],
)
def test_a_wrong_argument_of_export_is_named(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        qdtune.load(trees.RUN).export(**{"out": tmp_path / "out"} | arguments)
    assert str(raised.value).startswith(message)
    assert os.listdir(tmp_path) == []


def test_an_address_that_does_not_answer_is_the_error_of_the_docs(folder: Path) -> None:
    with pytest.raises(NoClusterError) as raised:
        qdtune.run(SWEEP, address="127.0.0.1:1")
    assert str(raised.value).startswith("no Ray cluster answers at 127.0.0.1:1: ")
    assert str(raised.value).endswith("(leave out address, or unset RAY_ADDRESS, to start Ray here)")


def test_a_place_that_cannot_hold_runs_is_the_error_of_the_docs(folder: Path) -> None:
    Path("file").touch()
    with pytest.raises(LocationError) as raised:
        qdtune.run(SWEEP, runs_dir="file")
    assert str(raised.value) == "file must be a folder, got a file (choose another runs_dir or name)"


def test_options_have_the_names_of_the_caller() -> None:
    def names() -> list[str]:
        flags = ("--runs-dir", "--fresh", "--set")
        return [*map(name_option, flags), name_option("--allow-plugin", "mine"), name_caller()]

    at_command_line = ["--runs-dir", "--fresh", "--set", "--allow-plugin mine", "command"]
    assert names() == at_command_line
    with python_names():
        assert names() == ["runs_dir", "fresh=True", "overrides", "plugins='mine'", "call"]
    assert names() == at_command_line
