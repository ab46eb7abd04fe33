"""`qdtune.run` and what it returns: a sweep from Python, shown, told, drawn and exported; and how it is stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qdtune
from qdtune.analysis.run import RunError
from qdtune.commands import api, sweep_process
from qdtune.commands.loaded_run import LoadedRun
from qdtune.messages import Place, Problem, SpecError
from qdtune.model.formats.known import PACKED
from qdtune.report.figures import figures
from qdtune.report.plot_data import sheet
from qdtune.store.folder import RunInUse
from qdtune.store.store import Store
from qdtune.sweep.prepared import LaunchOptions
from tests.launched import Launched, environment_for_ray, surroundings
from tests.pages import BLOCKS, RUN_MARKER
from tests.trained import train_here

(EXAMPLE,) = [block.text for block in BLOCKS if block.page == "python-api.md" and block.marker == RUN_MARKER]
pytestmark = pytest.mark.timeout(600)  # the first test waits for two launches
STOP_S = 200  # for a stop in order on a busy machine, which takes two seconds on an idle one
SWEEP: dict[str, Any] = {
    "version": 1,
    "name": "mine",
    "parameters": {"depth": {"values": [1, 2]}, "weight_bits": {"values": [1, 2, 4, 8]}},
    "seeds": [0],
    "data": {"factory": "mine:waves", "val_size": 100},
    "model": {"hidden": [8]},
    "train": {"batch_size": 4, "warmup": {"epochs": 1}, "qat": {"epochs": 2000}},
    "run": {"compile": "never"},
}
MINE = """
import numpy as np

def waves(root):
    x = np.random.default_rng(0).integers(0, 256, (500, 16), dtype=np.uint8)
    y = (x[:, 0] > 127).astype(np.int64)
    return x[:400], y[:400], x[400:], y[400:]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all tests, with a module of the user's own and an environment for Ray."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "mine.py").write_text(MINE)
    with environment_for_ray(folder), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def example(place: Path) -> tuple[LoadedRun, dict[str, Any], str]:
    """The example of the docs, whose trials are trained here: its run, its names, what it printed."""
    names: dict[str, Any] = {}
    launch = api._run_process

    def find_all_done(options: LaunchOptions, has_dashboard: bool) -> None:
        train_here(options)
        launch(options, has_dashboard)

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(api, "_run_process", find_all_done)
        exec(compile(EXAMPLE, "python-api.md", "exec"), names)
    return names["run"], names, said.getvalue()


@pytest.fixture
def run(example: tuple[LoadedRun, dict[str, Any], str]) -> LoadedRun:
    return example[0]


def test_a_call_trains_the_rest_of_a_sweep_and_prints_how_it_goes(eager_launch: Launched) -> None:
    run, said = eager_launch.run, eager_launch.said
    assert eager_launch.before == eager_launch.after
    assert "eager: 15 configurations x 2 seeds on digits" in said
    assert "15/15 done" in said
    assert "Ray dashboard" not in said
    assert (run.states, run.left) == ({"ok": 13, "pruned": 2}, 0)
    assert sorted(set(run.history["phase"].to_pylist())) == ["qat", "warmup"]


def test_the_example_prints_its_answers(example: tuple[LoadedRun, dict[str, Any], str]) -> None:
    run, _, said = example
    assert "first: 4 configurations x 2 seeds on digits" in said
    assert said.endswith(f"{run.answers()}\n")
    assert (run.where, run.states, run.left) == ("runs/first", {"ok": 4}, 0)
    assert run.spec.train.qat.epochs == 4


def test_a_second_call_finds_everything_done(
    example: tuple[LoadedRun, dict[str, Any], str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, names, _ = example
    before = surroundings()
    again = qdtune.run(names["SWEEP"] | {"seeds": [5]}, overrides={"train.qat.epochs": 4}, seeds=range(2))
    assert surroundings() == before
    out = capsys.readouterr().out
    assert "all done before" in out
    assert "Ray" not in out
    assert again.trials.equals(run.trials)


def test_a_call_may_ask_for_a_run_folder_of_its_own(
    example: tuple[LoadedRun, dict[str, Any], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(api, "_run_process", lambda options, has_dashboard: asked.append(options.is_fresh))
    for fresh in (True, False):  # what that does is tested in sweep/with_ray/test_own_code.py
        qdtune.run(example[1]["SWEEP"], fresh=fresh)
    assert asked == [True, False]


def test_a_run_shows_its_front(run: LoadedRun) -> None:
    bundle = run._repr_mimebundle_()
    assert list(bundle) == ["text/plain", "text/html", "application/vnd.vegalite.v6+json"]
    chart = bundle["application/vnd.vegalite.v6+json"]
    assert len(chart["datasets"]["configurations"]) == 4
    sizes = [f"{size:,}" for size in run.front()["size_bytes"].to_pylist()]
    lines = bundle["text/plain"].splitlines()
    assert lines[0] == "first: finished: 4 ok (runs/first)"
    assert [line.split()[0] for line in lines[4:]] == sizes
    assert [size in bundle["text/html"] for size in sizes] == [True] * len(sizes)
    assert "data:image/svg+xml;base64," in bundle["text/html"]
    json.dumps(bundle)


def test_answers_are_shown_as_sentences(run: LoadedRun) -> None:
    answers = run.answers()
    said = repr(answers)
    assert answers.best.sentence in said
    assert answers.sentences["best"] == (answers.best.sentence,)
    assert f"{len(answers.depth)} comparisons: " in said
    assert said.startswith("Which depth")
    assert answers._repr_markdown_().startswith("**Which depth")
    small = min(run.pareto["size_bytes"].to_pylist())
    assert f"within {small:,} bytes" in repr(run.answers(budget=small))


def test_every_figure_of_the_page_can_be_plotted(run: LoadedRun) -> None:
    names = [figure.name for figure in figures(sheet(run))]
    assert {"front", "bits", "heatmap", "curves"} <= set(names)
    for name in names:
        assert len(run.plot(name).to_dict()["datasets"]["configurations"]) == 4
    assert run.plot().to_dict()["datasets"] == run.plot("front").to_dict()["datasets"]
    with pytest.raises(ValueError, match=rf"the figures of first are {', '.join(names)}, got 'nix'"):
        run.plot("nix")


def test_export_writes_what_the_command_writes(run: LoadedRun, tmp_path: Path) -> None:
    front = run.front()["trial_id"].to_pylist()
    paths = run.export(front=True, out=tmp_path / "front")
    assert paths == [tmp_path / "front" / f"{trial_id}{PACKED.suffix}" for trial_id in front]
    assert run.export(front[0][:8], out=tmp_path / "one")[0].read_bytes() == paths[0].read_bytes()
    least = min(run.front()["size_bytes"].to_pylist())
    small = run.within(least)
    assert isinstance(small, LoadedRun)
    assert [path.name for path in small.export(front=True, out=tmp_path / "small")] == [paths[0].name]
    other = run.export(front[0], out=tmp_path / "onnx", format="onnx", seed=1)
    assert [path.suffix for path in other] == [".onnx"]
    with pytest.raises(SpecError, match="a trial or front=True, one of them"):
        run.export(out=tmp_path)
    with pytest.raises(SpecError, match=r"unknown argument 'sed'; did you mean 'seed'\? "):
        run.export(front=True, out=tmp_path, sed="1")
    with pytest.raises(SpecError, match="holds no trial 'nix'"):
        run.export("nix", out=tmp_path)


@pytest.mark.parametrize(
    ("changes", "keywords", "message"),
    [
        ({"seed": [0]}, {}, "sweep: unknown key 'seed'; did you mean 'seeds'?"),
        ({}, {"overrides": {"train.qat.epochs": 0}}, "overrides: train.qat.epochs: 0 is not allowed"),
        ({}, {"data_dirr": "x"}, "unknown argument 'data_dirr'; did you mean 'data_dir'? (version, name, "),
        ({}, {"overides": {}}, "unknown argument 'overides'; did you mean 'overrides'? (version, name, "),
        ({}, {"sead": 1}, "unknown key 'sead'; did you mean 'seeds'?"),
        ({}, {"sead": 1, "overrides": {"train.qat.epochs": 5}}, "unknown key 'sead'; did you mean 'seeds'?"),
        ({}, {"seeds": [-1]}, "seeds[0]: -1 is not allowed"),
        ({}, {"seeds": [0], "overrides": {"train.qat.epochs": 0}}, "overrides: train.qat.epochs: 0 is not allowed"),
        ({}, {"seeds": [0], "overrides": {"seeds": [1]}}, "overrides: seeds: is given twice"),
        ({"seeds": [0, {1}]}, {}, "sweep: seeds[1]: must be text, a number, true, false, null, a list or a"),
        ({"parameters": {"depth": {"values": (1, 0)}}}, {}, "sweep: parameters.depth.values[1]: 0 is not al"),
    ],
)
def test_a_mistake_is_one_message_with_its_key(
    place: Path, changes: dict[str, Any], keywords: dict[str, Any], message: str
) -> None:
    before = sorted(os.listdir())
    with pytest.raises(SpecError) as raised:
        qdtune.run(SWEEP | changes, **keywords)
    assert str(raised.value).splitlines()[0].startswith(message)
    assert sorted(os.listdir()) == before


def test_numbers_of_numpy_and_ranges_are_numbers() -> None:
    given = {"a": np.arange(2), "b": range(2), "c": np.float32(0.5), "d": (None, True, "x")}
    assert json.loads(api._to_json(given, ())) == {"a": [0, 1], "b": [0, 1], "c": 0.5, "d": [None, True, "x"]}


def test_what_the_other_process_refuses_is_raised_here(place: Path, run: LoadedRun) -> None:
    with pytest.raises(SpecError, match=r"^sweep: data.factory: mine:waves .* the call says plugins=.mine.$"):
        qdtune.run(SWEEP)
    with Store(run.where).lock(), pytest.raises(RunInUse):
        qdtune.run(run.spec.to_dict())


def test_errors_are_the_same_after_their_way_through_the_file() -> None:
    assert sweep_process.error_of(b"") is None
    for kind in sweep_process._known_errors():
        told = {"kind": kind.__name__, "text": "what", "problems": [[["a.yaml", 3, 0], ["seeds", 1], "what"]]}
        found = sweep_process.error_of(json.dumps(told).encode())
        assert type(found) is kind
        line = "error: a.yaml:3: seeds[1]: what" if kind is SpecError else "what"
        assert str(found) == line
    problem = Problem(Place("a.yaml", 3), ("seeds", 1), "what")
    assert json.loads(json.dumps(problem, default=sweep_process._fields_of)) == [
        ["a.yaml", 3, 0],
        ["seeds", 1],
        "what",
    ]


def test_what_a_run_prints_is_wrapped_on_a_terminal_and_as_it_is_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "the best of 20 configurations, " * 10
    api._print_lines(io.BytesIO(text.encode()))
    assert capsys.readouterr().out == f"{text}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    api._print_lines(io.BytesIO(text.encode()))
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(line.strip() for line in lines) == text.strip()
    assert max(map(len, lines)) <= 80


def test_a_process_that_dies_is_a_run_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="the sweep ended with exit code 1"):
        qdtune.run(SWEEP)


@contextmanager
def killed_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that does not outlive its test."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], text: str) -> str:
    """What a process prints up to the line with `text`."""
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(f"it ended without {text!r}: {said}")


@pytest.mark.slow
def test_an_interrupt_stops_in_order_and_is_raised(place: Path) -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored, and a process inherits this.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; import qdtune; qdtune.run({SWEEP!r}, plugins=['mine'])"
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with killed_at_last(subprocess.Popen([sys.executable, "-c", code], **out)) as script:
        lines_until(script, " starting")  # a trial has begun
        script.send_signal(signal.SIGINT)
        said, _ = script.communicate(timeout=STOP_S)
    assert "stopping: what is finished is kept" in said
    assert "stopped by SIGINT: 8 of 8 trials left to do; the same command goes on from here" in said
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert script.returncode == -signal.SIGINT
    with Store("runs/mine").lock():  # nobody holds it any more
        pass


@pytest.mark.slow
def test_the_sweep_stops_when_its_caller_is_gone(place: Path) -> None:
    content = json.dumps(SWEEP | {"name": "left"}).encode()
    options = LaunchOptions(sweep="sweep", plugins=["mine"], content=content)
    with open("outcome", "wb") as outcome:
        line = [sys.executable, "-m", "qdtune.commands.sweep_process", str(outcome.fileno())]
        process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[outcome.fileno()]
        )
    assert process.stdin is not None
    with killed_at_last(process):
        process.stdin.write(sweep_process.request_of(options, False).decode())
        process.stdin.flush()
        lines_until(process, " starting")
        begin = time.monotonic()
        said, _ = process.communicate(timeout=STOP_S)  # closes standard input
    assert "stopped by SIGTERM: 8 of 8 trials left to do" in said
    assert process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 60
