"""What is said of a sweep to Prometheus: by the driver alone, in few time series, and right."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.util.metrics import Counter, Gauge

from qdtune.pareto import hypervolume
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.columns import STATES
from qdtune.store.pareto_table import aggregate
from qdtune.store.store import Store
from qdtune.sweep import metrics
from qdtune.sweep.metrics import AGAIN_S, GAUGES, SweepMetrics
from qdtune.sweep.pace import Start
from qdtune.sweep.progress import SweepProgress
from qdtune.sweep.recorder import Recorder
from qdtune.terminal import console
from tests.fake import launch, outcome
from tests.schemas import TRIALS

ROOT = Path(__file__).parents[2]
SWEEP = b"""
version: 1
name: told
method: grid
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 4, 8]}}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1, lr: 0.1}, qat: {epochs: 3, lr: 0.03}}
"""
SPEC = loads(SWEEP, "told.yaml").resolve("synthetic")


class Series(dict):
    """A metric that keeps its values by tags, as strict as Ray's own."""

    def __init__(self, name, what, tag_keys):
        assert re.fullmatch(r"qdtune_[a-z0-9_]+", name)
        assert what
        self.tag_keys = set(tag_keys)

    def set_default_tags(self, tags):
        self.tags = tags

    def set(self, value, tags=()):
        tags = {**self.tags, **dict(tags)}
        assert set(tags) == self.tag_keys
        assert all(isinstance(tag, str) for tag in tags.values())
        assert math.isfinite(value)
        self[tuple(tags.values())[1:]] = value

    def inc(self, value=1):
        assert value > 0
        self.set(self.get((), 0) + value)


@pytest.fixture
def told(monkeypatch):
    """A function that gives the metrics of a sweep file, and what they have said: values by name and tags."""
    monkeypatch.setattr(metrics, "GAUGES", {name: (Series, *rest) for name, (_, *rest) in GAUGES.items()})

    def start(spec):
        made = SweepMetrics(spec, plan(spec).trials)
        return made, made._of

    return start


def test_metrics_have_few_time_series():
    values = {"sweep": 1, "state": len(STATES) + 2, "weight_bits": 17}  # 1 to 16, or 32
    for kind, _, tags in GAUGES.values():
        assert kind in (Counter, Gauge)
        assert math.prod(values[tag] for tag in tags) <= 17
    assert "trial_id" not in (ROOT / "qdtune" / "sweep" / "metrics.py").read_text()


def test_metrics_count_epochs_and_replicas_that_were_trained(told):
    made, said = told(SPEC)
    entry = {"train_loss": 1.0, "val_accuracy": 0.5, "seconds": 0.1}
    history = []
    for phase, epoch, seeds in [("warmup", 1, (0, 1)), ("qat", 1, (0, 1)), ("qat", 2, (1,))]:  # seed 0 has diverged
        history += [entry | {"phase": phase, "epoch": epoch, "seed": seed} for seed in seeds]
        made.trained({"phase": phase, "epoch": epoch, "history": list(history)})
    made.trained({"phase": "qat", "epoch": 0, "history": history})  # all had diverged: no epoch
    made.trained({"state": "failed", "error": "ValueError: no"})
    assert said["qdtune_epochs"] == {(): 3}
    assert said["qdtune_replica_epochs"] == {(): 5}
    assert said["qdtune_gpu_memory_peak"] == {}


def test_metrics_tell_states_best_accuracies_and_the_front(told, tmp_path):
    queue, table = launch(tmp_path / "told", SPEC)
    made, said = told(SPEC)
    states = [result.state for result in queue.results.values()]
    made.stand(iter(states), table)
    made.moved(2, 5)
    counts = {(state,): states.count(state) for state in STATES} | {("running",): 2, ("waiting",): 3}
    assert said["qdtune_trials"] == counts
    rows = [row for row in table.to_pylist() if row["pareto_rank"]]
    best = {(str(b),): max(r["val_accuracy"] for r in rows if r["weight_bits"] == b) for b in (1, 4, 8)}
    assert said["qdtune_best_val_accuracy"] == best
    chance, largest = -1 / SPEC.data.info.classes, max(row["fp32_bytes"] for row in _rows(tmp_path))
    costs = [(-row["val_accuracy"], math.log2(row["size_bytes"])) for row in rows]
    assert said["qdtune_hypervolume"] == {(): pytest.approx(hypervolume(costs, (chance, math.log2(largest))))}
    assert said["qdtune_hypervolume"][()] > 0


def _rows(folder):
    return Store(folder / "told").trials().to_pylist()


def test_metrics_stand_an_empty_table(told):
    made, said = told(SPEC)
    made.stand([], aggregate(TRIALS.empty_table()))
    assert set(said["qdtune_trials"].values()) == {0}
    assert said["qdtune_hypervolume"] == {(): 0}


def test_metrics_say_their_gauges_again_before_ray_forgets_them(told, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    made, said = told(SPEC)
    made.moved(2, 5)
    made.trained({"phase": "qat", "epoch": 1, "history": [], "gpu_memory_peak": 0.5})
    made.again()
    for step, due in [(0.5 * AGAIN_S, False), (0.5 * AGAIN_S, True), (0.9 * AGAIN_S, False), (9 * AGAIN_S, True)]:
        for series in said.values():
            series.clear()
        now[0] += step
        made.again()
        gauges = {"qdtune_trials": {("running",): 2, ("waiting",): 3}, "qdtune_gpu_memory_peak": {(): 0.5}}
        assert {name: series for name, series in said.items() if series} == (gauges if due else {})


def test_metrics_of_a_gpu_are_absent_without_one(told):
    made, said = told(SPEC)
    made.granted(0)
    assert said["qdtune_gpu_share"] == {}
    made.granted(0.125)
    for peak in (0.25, 0.5, 0.25):
        made.trained({"phase": "qat", "epoch": 1, "history": [], "gpu_memory_peak": peak})
    assert (said["qdtune_gpu_share"], said["qdtune_gpu_memory_peak"]) == ({(): 0.125}, {(): 0.5})


def recording(folder):
    """A recorder of the sweep, without Ray."""
    store = Store(folder / "told")
    store.create(SPEC.to_yaml())
    queue = Queue(SPEC, plan(SPEC).trials, Study(SPEC, folder / "study.journal"), [])
    warmups = SimpleNamespace(release=SimpleNamespace(remote=lambda trial_id: None))
    progress = SweepProgress(console(), queue.total, Start(), set(), {"warmup": 1, "qat": 3})
    return Recorder(queue, store, progress, warmups, {}, [])


def test_recorder_tells_what_tune_tells_it(told, tmp_path, monkeypatch):
    made, said = told(SPEC)
    monkeypatch.setattr("qdtune.sweep.recorder.SweepMetrics", lambda *arguments: made)
    recorder = recording(tmp_path)
    queue, progress = recorder.queue, recorder.progress
    trial, pending = recorder.next(), recorder.next()
    assert list(queue.running) == [trial.trial_id, pending.trial_id]
    tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
    recorder.on_trial_start(0, [], tuned)
    waiting = queue.total - 1
    assert said["qdtune_trials"] == {("running",): 1, ("waiting",): waiting}
    assert "1 running" in progress.summary()
    recorder.on_trial_recover(0, [], tuned)
    assert said["qdtune_trials"] == {("running",): 0, ("waiting",): queue.total}
    assert "0 running" in progress.summary()
    recorder.on_trial_start(0, [], tuned)
    rows, history = outcome(trial, 1, queue.study.report)
    recorder.on_trial_result(
        0, [], tuned, {"phase": "qat", "epoch": 1, "history": history, "rows": rows, "done": True}
    )
    assert said["qdtune_epochs"] == {(): 1}
    standing = dict.fromkeys([(state,) for state in STATES], 0) | {("ok",): 1, ("running",): 0, ("waiting",): waiting}
    assert said["qdtune_trials"] == standing
    said["qdtune_trials"].clear()
    recorder.on_step_begin(1, [])
    assert said["qdtune_trials"] == standing
    queue.study.close()


def test_trial_that_starts_again_is_named_with_its_node_whether_or_not_it_had_reported(
    told, tmp_path, capsys, monkeypatch
):
    made, _ = told(SPEC)
    monkeypatch.setattr("qdtune.sweep.recorder.SweepMetrics", lambda *arguments: made)
    recorder = recording(tmp_path)
    recorder.progress.trains = True  # the first epoch of a launch gets a line
    for first in (None, "a"):
        trial = recorder.next()
        tuned = SimpleNamespace(config={"trial_id": trial.trial_id}, num_failures=0)
        for losses, node in enumerate((first, "b", "b")):
            tuned.num_failures = losses
            recorder.on_trial_start(0, [], tuned)
            report = {"phase": "qat", "epoch": 1, "history": [], "val_accuracy": [0.5, 0.5], "done": False}
            if node:
                recorder.on_trial_result(0, [], tuned, report | {"node": node * 28, "node_ip": f"10.0.0.{node}"})
                recorder.on_trial_result(0, [], tuned, report | {"node": node * 28, "node_ip": f"10.0.0.{node}"})
            recorder.on_trial_recover(0, [], tuned)
        name, b = f"{trial.label} ({trial.trial_id})", "node 10.0.0.b (bbbbbb)"
        how = f"moved from node 10.0.0.a (aaaaaa) to {b}" if first else f"starts again on {b}"
        assert re.sub(r"\s+", " ", capsys.readouterr().out).strip() == f"{name} {how}"
    recorder.queue.study.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_metrics_come_out_of_ray_under_the_names_that_the_board_asks_for(tmp_path):
    code = f"""
import json, time, urllib.request
import pyarrow as pa
import ray
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.spec.tasks import ACCURACY
from qdtune.store.columns import trials_schema
from qdtune.store.pareto_table import aggregate
from qdtune.sweep.metrics import SweepMetrics

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
spec = loads({SWEEP!r}, "told.yaml").resolve("synthetic")
made = SweepMetrics(spec, plan(spec).trials)
made.granted(0.125)
history = [{{"phase": "qat", "epoch": 1, "seed": 0}}]
end = {{"seed": 0, "state": "ok", "val_accuracy": 0.5, "test_accuracy": 0.5}}
rows = [trial.columns | end for trial in plan(spec).trials]
made.stand(["ok"], aggregate(pa.Table.from_pylist(rows, schema=trials_schema(ACCURACY, ()))))
made.moved(1, 2)
port = ray.nodes()[0]["MetricsExportPort"]
for second in range(90):
    made.again()
    made.trained({{"phase": "qat", "epoch": 1, "history": history, "gpu_memory_peak": 0.5}})
    time.sleep(1)
    text = urllib.request.urlopen(f"http://127.0.0.1:{{port}}/metrics").read().decode()
    names = {{line.split("{{")[0] for line in text.splitlines() if line.startswith("ray_qdtune")}}
    if second > 30 and len(names) == 7:  # three times as long as Ray remembers a gauge
        break
print(json.dumps(sorted(names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert set(json.loads(done.stdout.splitlines()[-1])) == exported()


def exported():
    """The names of the metrics as Prometheus gets them."""
    return {f"ray_{name}" + ("_total" if kind is Counter else "") for name, (kind, _, _) in GAUGES.items()}


def test_the_board_asks_for_every_metric_and_no_other():
    board = json.loads((ROOT / "docker" / "grafana" / "qdtune.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"]]
    assert {name for query in queries for name in re.findall(r"ray_\w+", query)} == exported()
    for query in queries:
        assert query.count("(") == query.count(")")
        for name in re.findall(r"ray_qdtune_\w+_total", query):
            assert f"rate({name}" in query, "a counter says something by its rate alone"
