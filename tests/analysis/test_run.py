"""`qdtune.load`: what of a run folder counts, while its sweep runs and after, and what is told where none does."""

import dataclasses
import os
import random
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import qdtune
from qdtune.analysis.run import RunError
from qdtune.commands.replay import with_pruner
from qdtune.report.words import provisional
from qdtune.search.simulation import simulate
from qdtune.spec import sweep_file
from qdtune.spec.plan import plan
from qdtune.store.columns import SCHEMA_VERSION
from qdtune.store.pareto_table import aggregate
from qdtune.store.parquet import VERSION_KEY, add_metadata, complete_table, to_bytes
from qdtune.store.results import results
from qdtune.store.store import Store
from tests.schemas import HISTORY, PARETO, TRIALS

DATA = Path(__file__).parents[1] / "data"
GOLDEN = sorted((DATA / "runs").iterdir())
GRID = Path(__file__).parents[2] / "tests" / "data" / "recorded.yaml"


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """The recorded sweep as a run folder in which nothing has drawn up a Pareto table yet."""
    spec = sweep_file.load(GRID).resolve("mnist")
    store = Store(tmp_path_factory.mktemp("runs") / "grid")
    store.create(spec.to_yaml())
    trials, history = (pq.read_table(DATA / f"mnist_{kind}.parquet") for kind in ("trials", "history"))
    trials, history = complete_table(trials, TRIALS).to_pylist(), history.to_pylist()
    for trial_id in {row["trial_id"] for row in trials}:
        rows, curves = ([e for e in entries if e["trial_id"] == trial_id] for entries in (trials, history))
        store.write(trial_id, rows, curves, {})
    return store


@pytest.fixture
def grid(recording, tmp_path):
    return Store(shutil.copytree(recording.root, tmp_path / "grid"))


def ids(run):
    return set(run.trials["trial_id"].to_pylist())


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda path: path.name)
def test_a_run_of_every_version_is_read_as_its_rows_say(folder):
    run = qdtune.load(folder)
    assert (run.name, run.where, run.planned, run.finished, run.left) == ("tiny", str(folder), 4, 4, 0)
    assert (run.states, run.damaged) == ({"ok": 4}, ())
    assert [t.schema for t in (run.trials, run.history, run.pareto)] == [TRIALS, HISTORY, PARETO]
    assert run.pareto.equals(aggregate(Store(folder).trials(), bootstrap=True))
    assert run.front().num_rows == sum(run.pareto["is_pareto"].to_pylist())
    assert run.front(budget=10).num_rows == 0
    assert run.answers(budget=10).best.row is None
    assert str(run) == "tiny: finished: 4 ok"
    assert len(repr(run)) < 200


def test_the_pareto_table_of_this_version_is_the_one_that_the_launch_wrote():
    folder = DATA / "runs" / f"v{len(GOLDEN)}"
    assert qdtune.load(folder).pareto.equals(pq.read_table(folder / "pareto.parquet").replace_schema_metadata())


def test_a_sweep_that_still_runs_is_read_from_its_rows(grid):
    whole = qdtune.load(grid.root)
    assert not (grid.root / "pareto.parquet").exists()
    assert (whole.planned, whole.finished, whole.left, len(ids(whole))) == (35, 35, 0, 35)
    grid.write_pareto()  # is older than the rows, soon
    for path in sorted((grid.root / "trials").iterdir())[:5]:
        path.unlink()
    run = qdtune.load(str(grid.root))
    assert (run.planned, run.finished, run.left, run.pareto.num_rows) == (35, 30, 5, 30)
    assert set(run.history["trial_id"].to_pylist()) == ids(run)


def test_only_rows_of_the_sweep_as_it_stands_count(grid):
    spec = sweep_file.load(GRID, ["parameters.depth={values: [1, 2]}"]).resolve("mnist")
    grid.create(spec.to_yaml())
    first = next(row for row in grid.trials().to_pylist() if row["depth"] == 1)
    grid.write("0123456789ab", [first | {"trial_id": "0123456789ab"}], [], {})  # its hash is not that of its axes
    run = qdtune.load(grid.root)
    assert set(run.trials["depth"].to_pylist()) == {1, 2}
    assert ids(run) == {t.trial_id for t in plan(spec).trials}
    assert ids(run) == {r.trial.trial_id for r in results(spec, grid.trials(), grid.history())}
    assert (run.planned, run.left) == (15, 0)


def test_states_are_told_and_what_was_stopped_is_left_where_nothing_stops_any_more(grid):
    rows = grid.trials().to_pylist()
    one, two = sorted({row["trial_id"] for row in rows})[:2]
    for trial_id, state in ((one, "pruned"), (two, "oom")):
        (grid.root / "trials" / f"{trial_id}.parquet").unlink()
        mine = [row | {"state": state} for row in rows if row["trial_id"] == trial_id]
        grid.write(trial_id, mine, [], {})
    run = qdtune.load(grid.root)
    assert (run.states, run.finished, run.left) == ({"ok": 33, "oom": 1, "pruned": 1}, 33, 1)
    grid.create(sweep_file.load(GRID, ["early_terminate={type: none}"]).resolve("mnist").to_yaml())
    assert qdtune.load(grid.root).left == 2


def test_what_was_stopped_for_no_lasting_reason_is_left_to_do(recording, tmp_path):
    """As the queue has it, which trains it again in the end."""
    by_size = recording.write_pareto().sort_by("size_bytes").to_pylist()
    smallest = [row["trial_id"] for row in by_size if row["size_bytes"] == by_size[0]["size_bytes"]]
    beaten = [row["trial_id"] for row in by_size if not row["is_pareto"]][-1]
    for spec, left in (({"type": "pareto"}, 1), ({"type": "median", "scope": "all"}, 0)):
        store = Store(shutil.copytree(recording.root, tmp_path / spec["type"]))
        store.create(sweep_file.load(GRID, [f"early_terminate={spec}"]).resolve("mnist").to_yaml())
        rows, epochs = store.trials().to_pylist(), store.history().to_pylist()
        for trial_id in (*smallest, beaten):
            (store.root / "trials" / f"{trial_id}.parquet").unlink()
            mine = [row | {"state": "pruned"} for row in rows if row["trial_id"] == trial_id]
            store.write(trial_id, mine, [epoch for epoch in epochs if epoch["trial_id"] == trial_id], {})
        run = qdtune.load(store.root)
        assert run.states == {"ok": 35 - len(smallest) - 1, "pruned": len(smallest) + 1}
        assert run.left == left * len(smallest)


def test_reading_changes_nothing_in_the_folder(grid):
    def seen():
        return {path: path.stat().st_mtime_ns for path in grid.root.rglob("*")}

    before = seen()
    with grid.lock():  # a launch holds it
        held = seen()
        assert qdtune.load(grid.root).finished == 35
        assert seen() == held
    assert set(before) <= set(held)


def test_damaged_tables_are_left_out_and_told(grid):
    path = sorted((grid.root / "trials").iterdir())[0]
    path.write_bytes(b"no Parquet")
    run = qdtune.load(grid.root)
    assert (run.finished, run.left, len(run.damaged)) == (34, 1, 1)
    assert run.damaged[0].startswith(f"{path}: unreadable")


def newer(table):
    return add_metadata(table, {}).replace_schema_metadata({VERSION_KEY: "99"})


def emptied(root):
    shutil.rmtree(root / "trials")


def spoilt(root):
    for path in (root / "trials").iterdir():
        path.write_bytes(b"")


def from_the_future(root):
    table = pa.Table.from_pylist([{"trial_id": "abc"}], schema=TRIALS)
    (root / "trials" / "abc.parquet").write_bytes(to_bytes(newer(table)))


def failed(root):
    store = Store(root)
    rows = store.trials().to_pylist()
    emptied(root)
    for trial_id in sorted({row["trial_id"] for row in rows})[:3]:
        store.write(trial_id, [row | {"state": "failed"} for row in rows if row["trial_id"] == trial_id], [], {})


def of_other_axes(root):
    Store(root).create(sweep_file.load(GRID, ["parameters.weight_bits={value: 7}"]).resolve("mnist").to_yaml())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "sweep.yaml").unlink(), "is no run folder: it holds no sweep.yaml"),
        (lambda root: (root / "sweep.yaml").write_text("name: [\n"), "sweep.yaml:2:1: "),
        (lambda root: shutil.copy(GRID, root / "sweep.yaml"), "must be as a launch writes it, with one data set"),
        (emptied, "holds no results yet: its sweep has to run"),
        (spoilt, "holds no results that can be read: "),
        (from_the_future, f"abc.parquet must have schema version {SCHEMA_VERSION} or lower, got 99: upgrade qdtune"),
        (failed, r"holds no finished configuration yet \(3 failed of 35\)$"),
        (of_other_axes, r"holds no finished configuration yet \(none of 7\)$"),
    ],
    ids=["no sweep", "spoilt sweep", "a user's sweep", "empty", "damaged", "newer", "failed", "other axes"],
)
def test_a_folder_without_answers_is_refused_in_one_line(spoil, message, grid):
    spoil(grid.root)
    with pytest.raises(RunError, match=message) as caught:
        qdtune.load(grid.root)
    assert len(str(caught.value).splitlines()) == 1
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nowhere", "nowhere is no run folder"),
        ("s9://bucket/run", "s9://bucket/run must be a path or start with s3://"),
        (os.devnull, "must be readable"),
        ("two\nlines", r"two\\nlines is no run folder"),
    ],
)
def test_a_place_that_is_no_run_folder_is_refused_in_one_line(where, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=message) as caught:
        qdtune.load(where)
    assert len(str(caught.value).splitlines()) == 1


def test_a_sweep_is_not_finished_before_its_front_has_the_seeds_it_asked_for(recording):
    run = qdtune.load(recording.root)
    for within in (0.0, 0.02):
        wanted = {"replicate": {"front": 5, "within": within}}
        asked = dataclasses.replace(run, spec=sweep_file.Spec.model_validate(run.spec.to_dict() | wanted))
        rows = [row for row in run.pareto.to_pylist() if row["pareto_rank"] is not None]
        best = [max(o["val_accuracy"] for o in rows if o["size_bytes"] <= row["size_bytes"]) for row in rows]
        close = [row for row, top in zip(rows, best, strict=True) if top - row["val_accuracy"] <= within]
        assert asked.left == run.left + len(close)
        assert len(close) > sum(row["is_pareto"] for row in rows) * (within > 0)
        more = [row | {"trial_id": f"{row['trial_id']}b", "seed": row["seed"] + 3} for row in run.trials.to_pylist()]
        given = pa.concat_tables([run.trials, pa.Table.from_pylist(more, schema=TRIALS)])
        assert dataclasses.replace(asked, trials=given).left == run.left


def test_a_run_within_a_budget_is_the_one_that_never_had_anything_larger(recording):
    run = qdtune.load(recording.root)
    sizes = sorted(run.pareto["size_bytes"].to_pylist())
    for budget in (sizes[0] - 1, sizes[0], sizes[len(sizes) // 2], sizes[-1]):
        small = run.within(budget)
        rows = run.trials.filter(pc.less_equal(run.trials["size_bytes"], budget))
        assert small.trials.equals(rows)
        assert small.pareto.drop_columns("p_front").equals(aggregate(rows).drop_columns("p_front"))
        assert set(small.history["trial_id"].to_pylist()) == ids(small)
        assert (small.left, small.finished, small.budget) == (0, small.pareto.num_rows, budget)
        assert small.front().equals(run.front(budget))
        said = small.answers()
        assert said == run.answers(budget)
        assert all(b.budget <= budget for b in said.by_size)
        bits = {row["weight_bits"] for row in small.pareto.to_pylist()}
        assert {c.weight_bits for c in said.depth + said.activation} | {b.weight_bits for b in said.by_bits} == bits
        assert not str(small).endswith(": ")
    whole, states = str(run), "".join(f", {n} {name}" for name, n in sorted(run.within(sizes[0]).states.items()))
    assert whole.startswith(f"{run.name}: finished: ")  # a budget does not change how the run ended
    assert str(run.within(sizes[0])) == f"{whole}; within {sizes[0]:,} bytes: {states[2:]}"
    assert str(run.within(sizes[-1]).within(sizes[0])) == str(run.within(sizes[0]))
    assert str(run.within(sizes[0] - 1)) == f"{whole}; within {sizes[0] - 1:,} bytes: no configuration"
    part = dataclasses.replace(run, planned=run.planned + 3, listed=None)
    assert str(part.within(1)) == f"{run.name}: 35 of 38 done: 35 ok; within 1 byte: no configuration"
    done = "35 of 38 configurations are done"
    assert (done in provisional(part), done in provisional(part.within(sizes[-2]))) == (True, True)
    assert str(run.within(1)) == f"{whole}; within 1 byte: no configuration"
    assert run.answers(1).best.sentence == "No configuration within 1 byte has finished."
    assert run.within(None) is run
    for wrong in ("4KiB", 0, -1, 1.5, True):
        with pytest.raises(ValueError, match="budget must be a whole number of bytes from 1 on, got "):
            run.front(wrong)


def test_a_budget_does_not_make_a_finished_sweep_unfinished(recording, tmp_path):
    """With a risk, curves of larger configurations decide about smaller ones, too."""
    spec = with_pruner(sweep_file.loads(recording.sweep_yaml(), "sweep.yaml"), "{type: pareto, margin: 0, risk: 0.1}")
    found = {result.trial.trial_id: result for result in results(spec, recording.trials(), recording.history())}
    run = finished_run(tmp_path / "grid", spec, recording, found)
    assert "pruned" in run.states
    assert run.left == 0
    sizes = sorted(run.pareto["size_bytes"].to_pylist())
    assert [run.within(size).left for size in sizes[::5]] == [0] * len(sizes[::5])


def finished_run(folder, spec, recording, found):
    """The recorded sweep as its pruner would have left it, two trials at a time, as a run folder."""
    *_, ends = simulate(spec, found, [result.trial for result in found.values()], 2, random.Random(0))
    store = Store(folder)
    store.create(spec.to_yaml())
    rows, curves = recording.trials().to_pylist(), recording.history().to_pylist()
    for trial_id, end in ends.items():
        state = {"state": "pruned", "test_accuracy": None} if end.state == "pruned" else {}
        own = [row | state for row in rows if row["trial_id"] == trial_id]
        seen = [
            e for e in curves if e["trial_id"] == trial_id and (e["phase"] == "warmup" or e["epoch"] in end.curve)
        ]
        store.write(trial_id, own, seen, {})
    return qdtune.load(folder)
