"""`LoadedRun.export`: its arguments are those of a call in Python, and a front is read once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import qdtune
from qdtune.commands import trained_models
from qdtune.commands.loaded_run import LoadedRun, _read_options
from qdtune.messages import SpecError
from qdtune.model.formats.format import FormatOption
from qdtune.model.formats.known import PACKED
from tests.golden import trees


@pytest.fixture(scope="module")
def run() -> LoadedRun:
    return qdtune.load(trees.RUN)


def test_a_front_within_a_budget_is_exported_in_one_go(
    run: LoadedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_run = [], trained_models.open_run
    monkeypatch.setattr(trained_models, "open_run", lambda where: opened.append(where) or open_run(where))
    monkeypatch.setenv("HOME", str(tmp_path))
    small = run.within(max(run.front()["size_bytes"].to_pylist()) - 1)
    names = [f"{trial_id}{PACKED.suffix}" for trial_id in small.front()["trial_id"].to_pylist()]
    assert 1 < len(names) < run.front().num_rows
    assert small.export(front=True, out="~/models") == [tmp_path / "models" / name for name in names]
    assert {name for name in os.listdir(tmp_path / "models") if name.endswith(PACKED.suffix)} == set(names)
    assert opened == [str(trees.RUN)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "export takes a trial or front=True, one of them"),
        ({"trial": "a", "front": True}, "export takes a trial or front=True, one of them"),
        ({"trial": "-nix"}, "holds no trial '-nix' of its sweep"),
        ({"front": True, "format": "pakced"}, "unknown format 'pakced'; did you mean 'packed'? (packed, onnx, c)"),
        (
            {"front": True, "sed": "1"},
            "unknown argument 'sed'; did you mean 'seed'? (trial, out, front, format, seed)",
        ),
        ({"front": True, "format": "c", "measure": "yes"}, "measure must be True or False, got 'yes'"),
        ({"front": True, "help": "me"}, "unknown argument 'help' (trial, out, front, format, seed)"),
        ({"front": True, "out": "s3://bucket/x"}, "out must be a folder on this machine, got s3://bucket/x"),
    ],
)
def test_a_wrong_argument_is_told(run: LoadedRun, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as raised:
        run.export(**{"out": tmp_path / "out"} | arguments)
    assert message in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_options_of_a_format_are_arguments_by_name() -> None:
    options = (FormatOption("--for-chip", "m0", "where it runs", ("m0", "m4")), FormatOption("--note", "", "a text"))
    toy = replace(PACKED, options=options)
    assert _read_options(toy, {}) == {"--for-chip": "m0", "--note": ""}
    assert _read_options(toy, {"for_chip": "m4", "note": "-x"}) == {"--for-chip": "m4", "--note": "-x"}
    with pytest.raises(SpecError, match=r"unknown for_chip 'm7'.* \(m0, m4\)"):
        _read_options(toy, {"for_chip": "m7"})
    with pytest.raises(
        SpecError, match=r"unknown argument 'chip'.* \(trial, out, front, format, seed, for_chip, note\)"
    ):
        _read_options(toy, {"chip": "m4"})
