"""What trackers are told: one real sweep, read back from MLflow, W&B and TensorBoard, and what happens around it."""

import os
import shutil
import struct
import threading
import time

import pytest

from qdtune.messages import SpecError
from qdtune.spec.loggers import LOGGER_NAMES, LOGGERS, find_loggers
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY
from qdtune.store.store import Store
from qdtune.sweep import loggers, preflight
from qdtune.sweep.logger_callbacks import (
    CALLBACKS,
    LoggedSweep,
    MlflowRuns,
    TensorBoardRuns,
    events_folder,
    is_logged_in,
)
from qdtune.sweep.loggers import SweepLoggers, epoch_means, read_key, sweep_loggers
from qdtune.sweep.preflight import check_loggers
from tests.launched import planned
from tests.seen import SWEEP as ITS_SWEEP

ITS_SWEEP = ITS_SWEEP.read_text()
# That sweep, and a bit width that it does not have.
SWEEP = ITS_SWEEP.replace("[1, 2, 8]", "[1, 2, 4, 8]").replace(
    "run: {", "run: {loggers: [mlflow, wandb, tensorboard], "
)
NEW = "d1 w4 a4 identity h12 channel hidden shift"  # no launch has trained it
FINAL = {"test_accuracy", "size_bytes", "params"}
# Deprecations within MLflow and SQLAlchemy, which tell their own authors.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Out:
    """A console that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def print(self, line, **style):
        self.lines.append(line)


@pytest.fixture(scope="module")
def folder(eager_launch, tmp_path_factory):
    """A copy of where a sweep was finished with all trackers; its run folder is runs/eager."""
    assert "without it" not in eager_launch.said
    return shutil.copytree(eager_launch.home, tmp_path_factory.mktemp("logged"), dirs_exist_ok=True)


@pytest.fixture(scope="module")
def logged(eager_launch):
    """The configurations that the launch with trackers has trained, by name."""
    return {trial.label: trial for trial in planned() if trial.trial_id not in eager_launch.kept}


@pytest.fixture
def environment(folder, monkeypatch):
    """This process as a later launch in that folder."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(folder)
    return Store("runs/eager")


def mlflow_runs(folder):
    """Runs of the experiment by name: status, params, tags, and every metric as (step, value) pairs."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/runs/eager/mlflow.db")
    experiment = client.get_experiment_by_name("eager")
    found = {}
    for run in client.search_runs([experiment.experiment_id]):
        curves = {
            name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        assert client.list_artifacts(run.info.run_id) == []
        found.setdefault(run.info.run_name, []).append((run.info.status, run.data.params, run.data.tags, curves))
    return found


def wandb_records(path):
    """The records of a .wandb file: a LevelDB log, whose blocks of 32 KiB hold records, whole or in parts."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(raw):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[at : at + 7])
        part += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(part)
            part = b""
            yield record


def wandb_runs(folder):
    """Offline runs by name: project, config, the numbers of each step, the summary; values as JSON."""
    found = {}
    for path in folder.glob("wandb/offline-run-*/*.wandb"):
        curves, summary = {}, {}
        for record in wandb_records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name, project = record.run.display_name, record.run.project
                config = {item.key: item.value_json for item in record.run.config.update}
            elif kind == "history":
                numbers = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                curves[record.history.step.num] = {k: v for k, v in numbers.items() if k[0] != "_"}
            elif kind == "summary":
                summary |= {item.key or item.nested_key[0]: item.value_json for item in record.summary.update}
        found.setdefault(name, []).append((project, config, curves, summary))
    return found


def tensorboard_runs(folder):
    """Folders of events by name: every scalar as (step, value) pairs, and the bytes of the hyperparameters."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = {}
    for place in (folder / "runs/eager/tensorboard").iterdir():
        events = EventAccumulator(str(place)).Reload()
        curves = {
            tag.removeprefix("ray/tune/"): [(event.step, event.value) for event in events.Scalars(tag)]
            for tag in events.Tags()["scalars"]
        }
        texts = events.summary_metadata.get("_hparams_/session_start_info")
        found[place.name.rpartition("-")[0]] = curves, texts.plugin_data.content if texts else b""
    return found


def expected(folder, trial):
    """The mean accuracies after each epoch, the mean test accuracy, and the state, in the run folder."""
    store = Store(folder / "runs/eager")
    history = store.history([trial.trial_id]).to_pylist()
    rows = store.trials([trial.trial_id]).to_pylist()
    curve = [(step, numbers["val_accuracy"]) for step, numbers in epoch_means(history, ACCURACY, 2)]
    (state,) = {row["state"] for row in rows}
    test = sum(row["test_accuracy"] for row in rows) / len(rows) if state == "ok" else None
    return curve, test, state


def spec_and_trials():
    """The sweep with one bit width more, and its configurations by name."""
    return loads(SWEEP.encode(), "eager.yaml"), {trial.label: trial for trial in planned(SWEEP.encode())}


STEPS = [1, 2, 3, 4, 5, 6]  # two epochs of warm-up and four of QAT


def test_mlflow_has_a_run_per_configuration(folder, logged):
    runs = mlflow_runs(folder)
    assert runs.keys() == logged.keys()
    assert len(runs) >= 8  # the largest ones were left to do
    states = set()
    for name, trial in logged.items():
        curve, test, state = expected(folder, trial)
        states.add(state)
        [(status, params, tags, curves)] = runs[name]
        assert (status, tags["state"], tags["qdtune.trial_id"]) == ("FINISHED", state, trial.trial_id)
        assert [params[key] for key in ("weight_bits", "depth", "act_bits", "seeds")] == [
            str(trial.weight_bits),
            str(trial.depth),
            "4",
            "0 1",
        ]
        steps = [step for step, _ in curve]
        assert steps == STEPS[: len(steps)] == [step for step, _ in curves["train_loss"]]
        assert (len(steps) == len(STEPS)) == (state == "ok")
        assert curves["val_accuracy"] == curve
        assert curves.get("test_accuracy") == (None if test is None else [(6, pytest.approx(test))])
        assert curves["size_bytes"] == [(len(steps), trial.sizes.size_bytes)]
    assert states == {"ok", "pruned"}


def test_wandb_has_a_run_per_configuration(folder, logged):
    runs = wandb_runs(folder)
    assert runs.keys() == logged.keys()
    for name, trial in logged.items():
        curve, test, state = expected(folder, trial)
        [(project, config, curves, summary)] = runs[name]
        assert (project, config["weight_bits"]) == ("eager", str(trial.weight_bits))
        assert config["trial_id"] == f'"{trial.trial_id}"'
        assert [(step, float(numbers["val_accuracy"])) for step, numbers in curves.items()] == curve
        assert (set(curves[len(curve)]) >= {"train_loss", *FINAL}) == (state == "ok")
        assert not FINAL & set(curves[2])
        assert (summary["size_bytes"], summary["state"]) == (str(trial.sizes.size_bytes), f'"{state}"')
        if test is not None:
            assert float(summary["test_accuracy"]) == pytest.approx(test)
    assert not [
        path for path in folder.glob("wandb/offline-run-*/files/**/*") if path.is_file()
    ]  # nothing is sent along


def test_tensorboard_has_a_folder_per_configuration(folder, logged):
    runs = tensorboard_runs(folder)
    assert runs.keys() == {name.replace(" ", "-") for name in logged}
    for name, trial in logged.items():
        curve, test, _ = expected(folder, trial)
        curves, parameters = runs[name.replace(" ", "-")]
        assert curves["val_accuracy"] == [(step, pytest.approx(value)) for step, value in curve]
        assert curves.get("test_accuracy") == (None if test is None else [(6, pytest.approx(test))])
        assert curves["size_bytes"] == [(len(curve), trial.sizes.size_bytes)]
        assert b"weight_bits" in parameters
        assert trial.trial_id.encode() in parameters


def test_a_later_launch_replaces_unfinished_runs_and_leaves_the_others(folder, environment):
    spec, trials = spec_and_trials()
    trial, before, out = trials[NEW], mlflow_runs(folder), Out()
    history = [{"seed": 0, "phase": "warmup", "epoch": 1, "train_loss": 2.0, "val_accuracy": 0.25}]
    with sweep_loggers(spec, environment, [], out) as told:  # stopped in the middle
        told.start(trial)
        told.update(trial.trial_id, history)
    [(status, _, tags, _)] = mlflow_runs(folder)[NEW]
    assert (status, tags["state"]) == ("FAILED", "stopped")

    with sweep_loggers(spec, environment, [], out) as told:
        told.start(trial)
        told.update(trial.trial_id, history)
        told.start(trial)  # its worker was lost: it begins again, and tells the same
        told.update(trial.trial_id, history)
        more = [*history, history[0] | {"phase": "qat", "val_accuracy": 0.5}]  # after two epochs of warm-up
        told.finish(trial, [{"test_accuracy": None, "state": "diverged"}], more, "diverged")
    assert out.lines == []

    runs = mlflow_runs(folder)
    assert {name: runs[name] for name in before} == before
    [(status, _, tags, curves)] = runs[NEW]
    assert (status, tags["state"], curves["val_accuracy"]) == ("FINISHED", "diverged", [(1, 0.25), (3, 0.5)])
    runs = wandb_runs(folder)
    assert {len(runs[name]) for name in (*before, NEW)} == {1}
    [(_, _, curves, summary)] = runs[NEW]
    assert ([*curves], summary["state"]) == ([1, 3], '"diverged"')
    curves, _ = tensorboard_runs(folder)[NEW.replace(" ", "-")]
    assert curves["val_accuracy"] == [(1, 0.25), (3, 0.5)]
    assert len(list(folder.glob(f"runs/eager/tensorboard/{NEW.replace(' ', '-')}-*/*"))) == 1


def test_another_run_folder_leaves_these_runs_alone(folder, logged, environment, monkeypatch, tmp_path):
    name, trial = next(iter(logged.items()))
    before = mlflow_runs(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/runs/eager/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "eager")
    other = Store(tmp_path / "eager")
    assert read_key(other) == read_key(other) != read_key(environment)
    mlflow = loads(SWEEP.encode(), "eager.yaml", ["run.loggers=mlflow"])
    with sweep_loggers(mlflow, other, [], Out()) as told:
        told.finish(trial, [], [], "failed")
    after = mlflow_runs(folder)
    assert len(after[name]) == 2
    assert before[name][0] in after[name]


class Failing(MlflowRuns):
    def setup(self):
        raise ConnectionError("no\nserver")


class Hanging(MlflowRuns):
    over: threading.Event

    def setup(self):
        self.over.wait(20)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (Failing, "mlflow failed: ConnectionError: no\\nserver (the sweep goes on without it)"),
        (Hanging, "mlflow is too slow: 6 entries are left (the sweep goes on without it)"),
    ],
)
def test_a_tracker_that_fails_costs_one_line_and_no_time(kind, line, monkeypatch, tmp_path):
    import tensorboardX  # noqa: F401 - which may take longer than the sweep waits

    spec, trials = spec_and_trials()
    two = list(trials.values())[:2]
    monkeypatch.setattr(Hanging, "over", threading.Event(), raising=False)
    monkeypatch.setattr(loggers, "CALLBACKS", (kind, TensorBoardRuns))  # the other one goes on
    monkeypatch.setattr(loggers, "CLOSE_S", 2.0)
    out, began = Out(), time.monotonic()
    with sweep_loggers(spec, Store(tmp_path), [], out) as told:
        for trial in two:
            told.start(trial)
        told.finish(two[0], [], [], "ok")  # two entries; one more ends the other trial, and one ends the thread
    Hanging.over.set()
    assert time.monotonic() - began < 10
    assert out.lines == [line]
    assert len(list(tmp_path.glob("tensorboard/*/events.out.tfevents.*"))) == 2


def test_without_loggers_nothing_is_made(tmp_path):
    spec, trial = loads(ITS_SWEEP.encode(), "eager.yaml"), planned()[0]
    assert "loggers" not in spec.to_yaml()
    with sweep_loggers(spec, Store(tmp_path), [], Out()) as told:
        told.start(trial)
        told.finish(trial, [], [], "ok")
    assert list(tmp_path.iterdir()) == []
    SweepLoggers().start(trial)


def test_means_are_those_of_the_seeds_that_go_on():
    history = [
        {"seed": seed, "phase": phase, "epoch": epoch, "train_loss": loss, "val_accuracy": 0.5}
        for phase, epoch, losses in (("warmup", 1, (1.0, 3.0)), ("qat", 1, (4.0, None)), ("qat", 2, (5.0,)))
        for seed, loss in enumerate(losses)
    ]
    means = [(step, numbers["train_loss"]) for step, numbers in epoch_means(history, ACCURACY, 3)]
    assert means == [(1, 2.0), (4, 4.0), (5, 5.0)]
    assert [step for step, _ in epoch_means(history, ACCURACY, 3, after=4)] == [5]


@pytest.mark.parametrize("logger", LOGGERS, ids=lambda logger: logger.name)
def test_a_missing_package_is_one_line_that_says_what_to_install(logger, monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda module: None if module == logger.modules[0] else object())
    with pytest.raises(SpecError) as error:
        check_loggers(LOGGER_NAMES, "runs")
    what = f"error: run.loggers: {logger.name} is not installed (pip install {logger.package})"
    assert str(error.value) == what


def test_a_launch_with_a_missing_package_makes_nothing(tmp_path, monkeypatch, capsys):
    from qdtune.commands.launch import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "find_spec", lambda module: None)
    (tmp_path / "eager.yaml").write_text(SWEEP)
    assert main(["eager.yaml"]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: eager.yaml: run.loggers: mlflow is not installed (pip install mlflow)\n")
    assert [path.name for path in tmp_path.iterdir()] == ["eager.yaml"]


def test_a_server_needs_no_database_of_its_own(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda module: None if module == "sqlalchemy" else object())
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError, match="pip install mlflow"):
        check_loggers(("mlflow",), "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_loggers(("mlflow",), "runs")
    check_loggers(("mlflow", "wandb"), "s3://bucket/runs")


@pytest.mark.parametrize(
    ("name", "rest"),
    [
        ("mlflow", "(set MLFLOW_TRACKING_URI, choose another --runs-dir, or leave it out)"),
        ("tensorboard", "(choose another --runs-dir, or leave it out)"),
    ],
)
def test_an_object_store_is_refused_before_anything_starts(name, rest, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(SpecError) as error:
        check_loggers((name,), "s3://bucket/runs")
    what = f"error: run.loggers: {name} writes to a run folder on disk, got s3://bucket/runs {rest}"
    assert str(error.value) == what


def test_nobody_is_asked_for_a_key(monkeypatch, tmp_path):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not is_logged_in()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert is_logged_in()
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert is_logged_in()


def test_every_logger_has_a_callback():
    assert tuple(kind.logger for kind in CALLBACKS) == LOGGERS
    assert [logger.name for logger in find_loggers(("tensorboard", "mlflow"))] == ["mlflow", "tensorboard"]


def test_a_long_name_makes_a_folder_that_a_file_system_allows(tmp_path):
    made = events_folder(LoggedSweep("a", "", str(tmp_path)), "conv 8-pool-" * 40, "0123456789ab")
    os.makedirs(made)
    assert made.endswith("-0123456789ab")
