import errno
import itertools
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdtune.spec.axes import AXES, AXIS_NAMES
from qdtune.store import disk_folder
from qdtune.store.columns import FINAL, SCHEMA_VERSION, STATES
from qdtune.store.folder import LinkError, RunInUse, StorageError
from qdtune.store.pareto_table import aggregate, final_ids, table_front
from qdtune.store.parquet import VERSION_KEY, NewerSchemaError
from qdtune.store.store import Store
from tests.schemas import HISTORY, PARETO, TRIALS

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
T_975 = {
    1: 12.706204736,
    2: 4.302652730,
    3: 3.182446305,
    4: 2.776445105,
    5: 2.570581836,
}  # Student's t, printed in any table, by degrees of freedom


FIRST_AXES = [axis.name for axis in AXES if not axis.is_new]
LATER_AXES = {axis.name: axis.before for axis in AXES if axis.is_new}


def row(trial_id: str = "a", seed: int = 0, **changes: Any) -> dict[str, object]:
    full = {
        **dict(zip(FIRST_AXES, (2, 4, "relu", None, "absmean", "orthogonal", "24", 0.1, 0.01), strict=True)),
        **LATER_AXES,
        **{
            "trial_id": trial_id,
            "seed": seed,
            "dataset": "digits",
            "model": "mlp",
            "state": "ok",
            "epochs": 3,
            "train_loss": 0.5,
        },
        **{"val_accuracy": 0.9, "test_accuracy": 0.8, "float_val_accuracy": 0.95, "params": 100, "size_bytes": 64},
        **{
            "weight_bytes": 50,
            "scale_bytes": 8,
            "bias_bytes": 6,
            "other_bytes": 0,
            "fp32_bytes": 400,
            "macs": 90,
            "activation_bytes": 120,
            "ram_bytes": 140,
            "flash_bytes": 150,
            "inner_dims": [[5], [4, 4]],
        },
        **{"seconds": 1.5, "device": "cpu", "error": None, "pruned_by": None, "started_at": NOW, "finished_at": NOW},
        **{"attempt": 1, "p_reach": None, "released": False},
    }
    return full | changes


def epoch(trial_id: str = "a", seed: int = 0, number: int = 1) -> dict[str, object]:
    values = (trial_id, seed, "qat", number, 0.4, 0.9, 0.1)
    return dict(zip(HISTORY.names, values, strict=True))


def save(store: Store, trial_id: str, **changes: Any) -> bool:
    history = [epoch(trial_id, number=int(changes.get("attempt", 1)))]  # tells which attempt wrote it
    return store.write(trial_id, [row(trial_id, **changes)], history, {"torch": "2.15"})


def trials_table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=TRIALS)


def done(store: Store) -> set[str]:
    return final_ids(store.trials())


def plant(store: Store, trial_id: str, table: pa.Table, version: str | None = "4") -> Path:
    """Puts a file there by other means than `write`."""
    path = store.root / "trials" / f"{trial_id}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({} if version is None else {VERSION_KEY: version}), path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


# --- writing and reading back


def test_write_returns_every_cell_and_its_provenance(store):
    rows = [row(seed=0), row(seed=1, act_bits=4, val_accuracy=None, state="pruned", pruned_by="b")]
    history = [epoch(seed=s, number=n) for s in (0, 1) for n in (1, 2)]
    assert store.write("a", rows, history, {"torch": "2.15", "git": "abc"})
    assert store.trials().schema == TRIALS
    assert store.trials().to_pylist() == rows
    assert store.history().schema == HISTORY
    assert store.history().to_pylist() == history
    for folder in ("trials", "history"):
        metadata = pq.read_metadata(store.root / folder / "a.parquet").metadata
        version = str(SCHEMA_VERSION).encode()
        assert (metadata[b"torch"], metadata[b"git"], metadata[VERSION_KEY.encode()]) == (b"2.15", b"abc", version)


def test_schemas_hold_the_promised_columns():
    assert [str(TRIALS.field(name).type) for name in FIRST_AXES] == [
        *("int32", "int32", "string", "int32", "string", "string", "string", "double", "double")
    ]
    assert {str(TRIALS.field(name).type) for name in LATER_AXES} == {"string", "int32"}
    assert set(row()) == set(TRIALS.names)
    assert PARETO.names[: 1 + len(AXES)] == ["trial_id", *AXIS_NAMES]
    assert {str(schema.field("pruned_by").type) for schema in (TRIALS, PARETO)} == {"string"}


def test_reading_by_ids_returns_those_that_are_there(store):
    for trial_id in "cab":
        save(store, trial_id)
    assert store.trials().column("trial_id").to_pylist() == ["a", "b", "c"]
    assert store.trials({"c", "b", "never"}).column("trial_id").to_pylist() == ["b", "c"]
    assert store.history(["a"]).column("trial_id").to_pylist() == ["a"]
    assert store.trials([]).num_rows == 0


def test_an_empty_folder_reads_as_nothing(store):
    assert (done(store), store.trials().schema, store.history().num_rows) == (set(), TRIALS, 0)
    assert store.write_pareto().schema == PARETO


def test_create_keeps_the_sweep_text(store):
    store.create("name: grün\n")
    assert (store.root / "sweep.yaml").read_text() == "name: grün\n"
    store.create("name: other\n")
    assert (store.root / "sweep.yaml").read_text() == "name: other\n"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(accuracy=1.0)], "must be among .*; got accuracy$"),
        ([row("b")], r"must carry trial_id 'a', got \['b'\]"),
        ([row(state="fine")], r"state must be one of ok, .*; got \['fine'\]"),
        ([], "one row per seed, got none"),
    ],
)
def test_write_refuses_rows_it_would_have_to_bend(store, rows, message):
    with pytest.raises(ValueError, match=message):
        store.write("a", rows, [], {})
    with pytest.raises(ValueError, match=r"must carry trial_id 'a', got \['z'\]"):
        store.write("a", [row("a")], [epoch("z")], {})
    assert not store.root.exists()


# --- what is done


@pytest.mark.parametrize(("state", "final"), list(zip(STATES, [True] * 3 + [False] * 3, strict=True)))
def test_a_configuration_is_done_unless_a_seed_may_end_differently(store, state, final):
    rows = [row(seed=0), row(seed=1, state=state), row(seed=2)]
    store.write("a", rows, [], {})
    assert done(store) == ({"a"} if final else set())
    replaced = not final or state == "pruned"
    assert save(store, "a", attempt=2) is replaced
    assert store.trials().column("attempt").to_pylist() == ([2] if replaced else [1, 1, 1])
    assert done(store) == {"a"}


@pytest.mark.parametrize("second", [*([state] for state in STATES), ["diverged", "pruned"]], ids="-".join)
@pytest.mark.parametrize("first", [*([state] for state in STATES), ["diverged", "pruned"]], ids="-".join)
def test_a_result_gives_way_only_to_one_that_went_further(store, first, second):
    """What is not final always; what was stopped early to all that was not; what came to its end never."""
    for number, states in ((1, first), (2, second)):
        rows = [row(seed=seed, state=state, attempt=number) for seed, state in enumerate(states)]
        written = store.write("a", rows, [epoch(number=number)], {})
    further = "pruned" in first and "pruned" not in second
    replaced = further or not set(first) <= {"ok", "pruned", "diverged"}
    assert written is replaced
    kept, number = (second, 2) if replaced else (first, 1)
    assert store.trials().column("state").to_pylist() == kept
    assert store.trials().column("attempt").to_pylist() == [number] * len(kept)
    assert store.history().column("epoch").to_pylist() == [number]


# --- damage


def sound_bytes(store: Store) -> bytes:
    save(store, "a")
    return (store.root / "trials" / "a.parquet").read_bytes()


@pytest.mark.parametrize("harm", ["empty", "garbage", "four", "cut 9", "cut half", "no footer"])
def test_a_damaged_file_is_skipped_listed_kept_and_run_again(store, harm):
    data = sound_bytes(store)
    bad = {
        "empty": b"",
        "garbage": random.Random(0).randbytes(500),
        "four": b"PAR1",
        "cut 9": data[:-9],
        "cut half": data[: len(data) // 2],
        "no footer": data[:-8] + b"\0" * 8,
    }[harm]
    save(store, "b")
    path = store.root / "trials" / "a.parquet"
    path.write_bytes(bad)
    assert done(store) == {"b"}
    assert [line.split(":")[0] for line in store.damaged] == [str(path)]
    assert path.read_bytes() == bad
    assert save(store, "a")
    assert done(store) == {"a", "b"}
    assert store.damaged == []
    assert path.with_name("a.parquet.damaged").read_bytes() == bad


@pytest.mark.parametrize(("folder", "stride"), [("trials", 13), ("history", 3)])
def test_a_flipped_bit_is_listed_or_harmless(store, folder, stride):
    store.write("a", [row()], [epoch(number=n) for n in (1, 2, 3)], {})
    read = getattr(store, folder)
    expected = read()
    path = store.root / folder / "a.parquet"
    data = path.read_bytes()
    noticed = 0
    for place in range(0, len(data), stride):
        bad = bytearray(data)
        bad[place] ^= 2
        path.write_bytes(bad)
        try:
            found = read()
        except NewerSchemaError:  # the version itself was hit: loud enough
            continue
        noticed += len(store.damaged)
        assert store.damaged or found.equals(expected), f"byte {place} reads as something else"
    assert noticed > len(data) / stride / 2  # else the file is mostly padding, and this test blind


def test_a_damaged_history_does_not_undo_its_trial(store):
    save(store, "a")
    path = store.root / "history" / "a.parquet"
    path.write_bytes(b"PAR1")
    assert done(store) == {"a"}
    assert store.history().num_rows == 0
    assert str(path) in store.damaged[0]


@pytest.mark.parametrize("kind", ["trials", "trials/a.parquet"])
def test_a_link_out_of_the_runs_folder_is_not_followed_and_not_called_damaged(tmp_path, kind):
    store = Store(tmp_path / "runs" / "run")
    save(store, "a")
    save(store, "b")
    path = store.root / kind
    path.symlink_to(path.rename(tmp_path / "elsewhere"))
    assert done(store) == (set() if kind == "trials" else {"b"})
    assert store.damaged == store.set_damaged_aside() == []
    assert store.left_out[0] == (
        f"{store.root / 'trials' / 'a.parquet'}: is a link that leads outside {tmp_path / 'runs'} "
        "(put the file itself there, by git annex unlock, dvc unprotect or cp -L)"
    )
    with pytest.raises(LinkError, match=r"a\.parquet is a link that leads outside"):
        save(store, "a")
    assert path.is_symlink()


@pytest.mark.parametrize("run", ["runs/run", "linked"])
def test_a_link_within_the_runs_folder_is_read_where_it_leads(tmp_path, run):
    """As git annex and DVC lay files out if their repository is the runs folder."""
    store = Store(tmp_path / "runs" / "run")
    save(store, "a")
    (tmp_path / "linked").symlink_to(store.root)
    objects = tmp_path / "runs" / ".git" / "annex" / "objects"
    objects.mkdir(parents=True)
    for name in ("trials/a.parquet", "history/a.parquet"):
        path = store.root / name
        path.rename(objects / name.replace("/", "-"))
        path.symlink_to(os.path.relpath(objects / name.replace("/", "-"), path.parent))
    store = Store(tmp_path / run)
    assert done(store) == store.ids() == {"a"}
    assert store.history().num_rows == 1
    assert store.damaged == store.left_out == []
    assert "trials/a.parquet" in store.folder.list_paths()
    assert not save(store, "a")


def test_a_link_that_leads_nowhere_is_no_missing_result(store):
    """As git annex leaves it where content was not fetched: it exists, and must not be trained again unseen."""
    save(store, "a")
    path = store.root / "trials" / "a.parquet"
    path.unlink()
    path.symlink_to("../../.git/annex/objects/gone")
    assert done(store) == set()
    assert [line.partition(" (")[0] for line in store.left_out] == [f"{path}: is a link that leads nowhere"]
    assert store.damaged == []


@pytest.mark.parametrize(
    "name",
    [
        "a.sync-conflict-20240102-030405-ABCDEFG.parquet",
        "a (conflicted copy 2024-01-02).parquet",
        "a (1).parquet",
        "a-LAPTOP.parquet",
        "packed-1.sync-conflict-20240102-030405-ABCDEFG.parquet",
    ],
)
def test_a_copy_of_a_sync_tool_is_not_ours(store, name):
    save(store, "a")
    shutil.copy(store.root / "trials" / "a.parquet", store.root / "trials" / name)
    assert done(store) == store.ids() == {"a"}
    assert store.damaged == store.set_damaged_aside() == []
    assert store.left_out == [f"{store.root / 'trials' / name}: not ours, as the conflict copy of a sync tool"]


def test_a_renamed_file_counts_for_nobody(store):
    save(store, "a")
    (store.root / "trials" / "a.parquet").rename(store.root / "trials" / "b.parquet")
    assert done(store) == set()
    assert "must carry trial_id 'b', got ['a']" in store.damaged[0]


# --- files of other versions


def test_columns_of_later_files_are_never_dropped(store):
    save(store, "a")
    plant(store, "b", trials_table([row("b")]).append_column("energy", pa.array([1.5])))
    plant(store, "c", trials_table([row("c")]).append_column("energy", pa.array([2], pa.int32())))
    table = store.trials()
    assert table.column_names == [*TRIALS.names, "energy"]
    assert table.column("energy").to_pylist() == [None, 1.5, 2.0]
    assert store.damaged == []


def test_later_columns_that_contradict_each_other_are_listed(store):
    plant(store, "a", trials_table([row("a")]).append_column("energy", pa.array([1.5])))
    plant(store, "b", trials_table([row("b")]).append_column("energy", pa.array(["high"])))
    assert store.trials().column("trial_id").to_pylist() == ["a"]
    assert "b.parquet: Unable to merge: Field energy" in store.damaged[0]


def test_columns_missing_from_an_older_version_are_null(store):
    plant(store, "a", trials_table([row()]).drop_columns(["attempt", "device"]), version="0")
    assert store.trials().select(["trial_id", "attempt", "device"]).to_pylist() == [
        {"trial_id": "a", "attempt": None, "device": None}
    ]
    assert store.damaged == []


@pytest.mark.parametrize(
    ("version", "absent"), [("1", ["pruned_by", "model", "other_bytes"]), ("2", ["model", "other_bytes"])]
)
def test_results_of_older_versions_are_as_good_as_new_ones(store, version, absent):
    """They had every column but these; a sweep that goes on in such a folder has both kinds of file."""
    older = trials_table([row(seed=0), row(seed=1)]).drop_columns(absent)
    plant(store, "a", older, version)
    save(store, "b", depth=3, state="pruned", pruned_by="a")
    assert store.trials().schema == TRIALS
    assert store.trials().column("pruned_by").to_pylist() == [None, None, "a"]
    assert store.damaged == []
    assert done(store) == {"a", "b"}
    assert save(store, "a") is False
    columns = ["trial_id", "n_seeds", "pruned_by", "model", "other_bytes", "is_pareto"]
    table = store.write_pareto().select(columns).to_pylist()
    assert [tuple(entry.values()) for entry in table] == [
        ("a", 2, None, None, None, True),
        ("b", 0, "a", "mlp", 0, False),
    ]


def test_a_file_of_a_newer_version_is_refused(store):
    path = plant(store, "a", trials_table([row()]), version=str(SCHEMA_VERSION + 1))
    line = f"{path} must have schema version {SCHEMA_VERSION} or lower, got {SCHEMA_VERSION + 1}: upgrade"
    with pytest.raises(NewerSchemaError, match=re.escape(line)):
        done(store)


@pytest.mark.parametrize(
    ("change", "version", "reason"),
    [
        (lambda t: t.drop_columns(["state"]), str(SCHEMA_VERSION), "columns missing: state"),
        (lambda t: t.drop_columns(["pruned_by"]), str(SCHEMA_VERSION), "columns missing: pruned_by"),
        (lambda t: t.drop_columns(["model"]), str(SCHEMA_VERSION), "columns missing: model"),
        (lambda t: t.drop_columns(["state"]), "1", "state must be one of"),
        (lambda t: t.set_column(1, "depth", pa.array([2.5])), "5", "another type than theirs: depth"),
        (lambda t: t.set_column(1, "depth", pa.array(["3"])), "5", "Unable to merge"),
        (lambda t: t.append_column("seed", pa.array([1])), "5", "duplicate field names"),
        (lambda t: t.slice(0, 0), "5", "one row per seed, got none"),
        (lambda t: t, None, f"must hold {VERSION_KEY}"),
        (lambda t: t, "one", f"must hold {VERSION_KEY}"),
        (lambda t: t.append_column("x", pa.array([b"0" * 16], pa.uuid())), "5", "got an extension type"),
        (
            lambda t: t.append_column(
                pa.field("x", pa.binary(), metadata={"ARROW:extension:name": "nobody.knows"}), pa.array([b"boom"])
            ),
            "5",
            "got an extension type",
        ),
    ],
)
def test_a_file_that_is_not_ours_is_listed_with_its_reason(store, change, version, reason):
    save(store, "b")
    plant(store, "a", change(trials_table([row()])), version)
    assert done(store) == {"b"}
    assert reason in store.damaged[0]
    assert len(store.damaged) == 1


def test_prospects_of_what_was_released_are_stored_and_those_of_what_stayed_stopped_are_given():
    rows = [
        row("a", depth=1, state="pruned", pruned_by="b"),
        row("b", depth=2, released=True, p_reach=0.3),
        row("c", depth=3),
    ]
    for shares, expected in (({"a": 0.1, "b": 1.0, "z": 1.0}, 0.1), ({}, None), (None, None)):
        found = aggregate(trials_table(rows), p_reach=shares).sort_by("trial_id").to_pylist()
        assert [one["p_reach"] for one in found] == [expected, 0.3, None]
        assert [one["released"] for one in found] == [False, True, False]


# --- failures while writing


class FullDisk:
    """A file object with room for `room` bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.file, self.room = path.open("wb"), room

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> None:
        self.file.write(data[: self.room])
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def snapshot(store: Store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(store.root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("room", [0, 1, 700])
def test_a_full_disk_is_one_line_and_harms_no_committed_file(store, monkeypatch, room):
    save(store, "a")
    save(store, "b", state="oom")
    before = snapshot(store)
    monkeypatch.setattr(disk_folder, "open", lambda path, mode: FullDisk(path, room), raising=False)
    for act in (
        lambda: save(store, "b"),
        lambda: save(store, "c"),
        store.write_pareto,
        lambda: store.create("x" * 999),
    ):
        with pytest.raises(
            StorageError, match=r"^\S+ must be readable and writable, got No space left on dev[^\n]+$"
        ):
            act()
    assert snapshot(store) == before
    monkeypatch.undo()
    assert save(store, "b")
    assert done(store) == {"a", "b"}


def test_a_folder_that_cannot_be_listed_is_no_empty_folder(store):
    store.create("")
    (store.root / "trials").write_text("a file in the way")
    with pytest.raises(StorageError, match="trials must be readable, got Not a directory"):
        done(store)


class Killed(BaseException):
    """Stands for kill -9: nothing of ours catches it."""


def test_a_kill_at_any_step_leaves_the_old_result_or_the_new(store, monkeypatch):
    """A retry of `a` is cut off before and after each call that touches the disk; `b` is never in danger."""
    save(store, "b")
    for step in range(100):
        (store.root / "trials" / "a.parquet").unlink(missing_ok=True)
        save(store, "a", state="timeout", attempt=1)
        calls = iter(range(100))

        def deadly(real, after=True, step=step, calls=calls):
            def call(*args, **kwargs):
                if next(calls) == step:
                    raise Killed
                result = real(*args, **kwargs)
                if after and next(calls) == step:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patched:
            patched.setattr(disk_folder, "open", deadly(open, after=False), raising=False)
            for name in ("fsync", "replace"):
                patched.setattr(os, name, deadly(getattr(os, name)))
            try:
                save(store, "a", attempt=2)
                survived = True
            except Killed:
                survived = False
        attempt = store.trials(["a"]).column("attempt").to_pylist()
        assert attempt in ([[2]] if survived else [[1], [2]])
        assert attempt == [1] or store.history(["a"]).column("epoch").to_pylist() == [2]
        assert done(store) - {"a"} == {"b"}
        assert (store.damaged, store.history().num_rows) == ([], 2)
        if survived:
            break
    assert step == 14  # for each of two files: before open; before and after fsync, rename, fsync of the folder


WRITER = """
import sys
from pathlib import Path
from qdtune.store.store import Store
from qdtune.store.pareto_table import final_ids
store = Store(Path(sys.argv[1]))
with store.lock():
    first = len(final_ids(store.trials()))
    for number in range(first, first + 400):
        name = f"t{number:05d}"
        store.write(name, [{"trial_id": name, "seed": 0, "state": "ok"}], [{"trial_id": name, "seed": 0}], {})
        print(number, flush=True)
"""


def start(code: str, store: Store) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_loses_nothing_that_was_acknowledged(store):
    rng, known = random.Random(0), set()
    for _ in range(5):
        with start(WRITER, store) as writer:
            said = [writer.stdout.readline() for _ in range(rng.randint(1, 12))]
            spin = sum(range(rng.randint(0, 200_000)))  # moves the blow to another moment of the next write
            assert spin >= 0
            writer.kill()
            said += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        known |= {f"t{int(line):05d}" for line in said if line.endswith("\n")}
        there = done(store)
        assert known <= there
        assert (store.damaged, {f"t{i:05d}" for i in range(len(there))}) == ([], there)
        assert set(store.history().column("trial_id").to_pylist()) >= there
        assert store.damaged == []
        known = there
    with store.lock():
        assert list(store.root.rglob(".*.tmp")) == []


# --- the lock

LOCKER = """
import sys
from pathlib import Path
from qdtune.store.folder import RunInUse
from qdtune.store.store import Store
sys.stdin.readline()
try:
    with Store(Path(sys.argv[1])).lock():
        print("won", flush=True)
        sys.stdin.readline()
except RunInUse as error:
    print(error, flush=True)
"""


def test_of_many_launches_exactly_one_wins_and_kill_9_frees_the_lock(store):
    lockers = [start(LOCKER, store) for _ in range(3)]
    try:
        for locker in lockers:
            locker.stdin.write("go\n")
            locker.stdin.flush()
        answers = [locker.stdout.readline().strip() for locker in lockers]
        assert answers.count("won") == 1
        assert all("one launch may use" in answer for answer in answers if answer != "won")
        winner = lockers[answers.index("won")]
        with pytest.raises(RunInUse, match=rf"held by pid {winner.pid} on host \S+ since 2\S+: wait"), store.lock():
            pass
        winner.kill()
        winner.wait()
        with store.lock():
            pass
    finally:
        for locker in lockers:
            locker.kill()
            locker.communicate()


def test_the_lock_is_free_after_an_error_inside_it(store):
    with pytest.raises(KeyError, match="mine"), store.lock():
        raise KeyError("mine")
    with store.lock():
        pass


def test_a_refusal_names_the_present_holder_only(store):
    for _ in range(2):
        holder = rf"held by pid {os.getpid()} on host \S+ since \S+: wait"
        with store.lock(), pytest.raises(RunInUse, match=holder), Store(store.root).lock():
            pass


def test_leftovers_are_ignored_and_removed_by_the_next_lock_holder(store):
    save(store, "a")
    leftovers = [store.root / ".pareto.parquet.1.tmp", store.root / "trials" / ".b.parquet.1.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    assert (done(store), store.damaged) == ({"a"}, [])
    with store.lock():
        assert not any(path.exists() for path in leftovers)
    assert done(store) == {"a"}


# --- the Pareto table


def brute_pareto(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Each configuration by hand: statistics in pure Python, ranks by peeling pair by pair."""
    table = []
    keys = (*AXIS_NAMES, "dataset")
    for key in {tuple(r[name] for name in keys) for r in rows}:
        mine = sorted((r for r in rows if tuple(r[name] for name in keys) == key), key=lambda r: r["seed"])
        ok = [r for r in mine if r["state"] == "ok"]
        shared = ("trial_id", "model", "size_bytes", "other_bytes", "params", "macs", "activation_bytes")
        shared += ("ram_bytes", "flash_bytes")
        entry = {name: mine[0][name] for name in (*keys, *shared)}
        entry |= {"n_seeds": len(ok), "epochs": max(r["epochs"] for r in mine)}
        entry["state"] = max(
            [r["state"] for r in mine if r["state"] in FINAL] or [r["state"] for r in mine], key=STATES.index
        )
        entry["pruned_by"] = next((r["pruned_by"] for r in mine if r["pruned_by"]), None)
        for name in ("val_accuracy", "test_accuracy"):
            values = [r[name] for r in ok]
            sound = values and not any(map(math.isnan, values))
            mean = statistics.fmean(values) if sound else None
            std = statistics.stdev(values) if sound and len(values) > 1 else None
            half = None if std is None else T_975[len(values) - 1] * std / math.sqrt(len(values))
            low, high = (None, None) if half is None else (max(0, mean - half), min(1, mean + half))
            entry |= {name: mean, f"{name}_std": std, f"{name}_low": low, f"{name}_high": high}
        later = {"p_front": None, "p_reach": mine[0]["p_reach"], "released": mine[0]["released"]}
        table.append(entry | {"pareto_rank": None, "is_pareto": False} | later)
    left = [e for e in table if e["state"] == "ok" and e["val_accuracy"] is not None]
    cost = {e["trial_id"]: (-round(e["val_accuracy"], 9), e["size_bytes"]) for e in left}
    level = 0
    while left:
        level += 1
        costs = [cost[e["trial_id"]] for e in left]
        peel = [e for e in left if not any(below(c, cost[e["trial_id"]]) for c in costs)]
        for e in peel:
            e |= {"pareto_rank": level, "is_pareto": level == 1}
        left = [e for e in left if e["pareto_rank"] is None]
    return sorted(table, key=lambda e: (e["pareto_rank"] or math.inf, e["size_bytes"], e["trial_id"]))


def below(a: tuple[float, int], b: tuple[float, int]) -> bool:
    return a != b and a[0] <= b[0] and a[1] <= b[1]


ACCURACY = st.sampled_from([0.1, 0.3, 0.7, 0.8, 0.9, 1.0, math.nan])
SEED = st.tuples(st.sampled_from((*["ok"] * 6, *STATES)), ACCURACY, ACCURACY, st.integers(1, 5))
TRIAL = st.lists(SEED, min_size=1, max_size=2)
CONFIGURATION = st.tuples(
    st.sampled_from([10, 20, 30]), st.none() | st.integers(1, 2), st.lists(TRIAL, min_size=1, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(CONFIGURATION, max_size=6), st.randoms(use_true_random=False))
def test_aggregate_equals_brute_force_in_any_order(configurations, shuffler):
    """A configuration is up to three trials that differ in nothing but their seeds; a null is a value of an axis."""
    rows = []
    ids = iter(shuffler.sample(range(100), 100))  # so that the first seeds are not those of the first id
    for depth, (size, act_bits, trials) in enumerate(configurations):
        seeds = iter(shuffler.sample(range(9), 9))
        for trial in trials:
            same = {"trial_id": f"t{next(ids):02}", "depth": depth, "act_bits": act_bits, "size_bytes": size}
            for state, val, test, epochs in trial:
                by = shuffler.choice(["x", "y"]) if state == "pruned" else None
                told = {"state": state, "pruned_by": by, "epochs": epochs, "val_accuracy": val, "test_accuracy": test}
                rows.append(row(seed=next(seeds), **same, **told))
    shuffler.shuffle(rows)
    table = aggregate(trials_table(rows))
    assert table.schema == PARETO
    expected = brute_pareto(rows)
    assert [e["trial_id"] for e in table.to_pylist()] == [e["trial_id"] for e in expected]
    for got, want in zip(table.to_pylist(), expected, strict=True):
        assert got == pytest.approx(want, abs=1e-7)
    shuffler.shuffle(rows)
    assert aggregate(trials_table(rows)).equals(table)


def test_aggregate_tells_how_sure_a_place_on_the_front_is():
    """Three seeds each; the smaller one is always on the front, the larger one in the draws in which it is better."""
    rows = [row("small", seed, depth=1, size_bytes=10, val_accuracy=0.5) for seed in (0, 1, 2)]
    rows += [row("large", seed, depth=2, size_bytes=20, val_accuracy=0.45 + 0.06 * seed) for seed in (0, 1, 2)]
    rows += [row("lone", 0, depth=3, size_bytes=30, val_accuracy=0.9)]
    rows += [row("lame", seed, depth=4, size_bytes=5, val_accuracy=0.9) for seed in (0, 1)]
    rows += [row("lame", 2, depth=4, size_bytes=5, val_accuracy=None, state="diverged")]  # takes no part
    rows += [row("blind", seed, depth=5, size_bytes=5, val_accuracy=a) for seed, a in enumerate([0.9, 0.9, math.nan])]
    table = aggregate(trials_table(rows), bootstrap=True)
    assert table.schema == PARETO
    found = dict(zip(table["trial_id"].to_pylist(), table["p_front"].to_pylist(), strict=True))
    assert (found["small"], found["lone"], found["lame"], found["blind"]) == (1, None, None, None)
    assert found["large"] == pytest.approx(17 / 27, abs=0.05)  # of all 27 draws of three, these have a mean above
    assert aggregate(trials_table(rows[::-1]), bootstrap=True).equals(table)
    assert aggregate(trials_table(rows)).drop_columns("p_front").equals(table.drop_columns("p_front"))


def test_aggregate_gives_every_configuration_its_own_sureness():
    """Sixty sizes, each better than the one before by far more than its seeds differ: all surely on the front."""
    rows = [
        row(f"{depth}{bits}{relu}", seed, depth=depth, weight_bits=bits, activation=relu, size_bytes=size)
        | {"val_accuracy": 0.3 + size / 1000 + seed / 10_000}
        for size, (depth, bits, relu) in enumerate(
            itertools.product(range(1, 6), range(1, 7), ("identity", "relu")), 1
        )
        for seed in (0, 1, 2)
    ]
    random.Random(0).shuffle(rows)
    assert aggregate(trials_table(rows), bootstrap=True)["p_front"].to_pylist() == [1.0] * 60


def test_aggregate_makes_one_configuration_of_two_trials_with_other_seeds():
    first = [row("z", seed, val_accuracy=0.8, epochs=3) for seed in (0, 1)]
    more = [row("a", seed, val_accuracy=0.5, epochs=9) for seed in (2, 3)]
    (one,) = aggregate(trials_table([*more, *first])).to_pylist()
    assert (one["trial_id"], one["n_seeds"], one["epochs"], one["is_pareto"]) == ("z", 4, 9, True)
    assert one["val_accuracy"] == pytest.approx(0.65)
    lost = [r | {"state": "failed", "val_accuracy": None} for r in more]
    (one,) = aggregate(trials_table([*lost, *first])).to_pylist()  # they run again: the others hold until then
    assert (one["state"], one["n_seeds"], one["val_accuracy"], one["is_pareto"]) == ("ok", 2, 0.8, True)
    spoilt = [r | {"state": "diverged", "val_accuracy": None} for r in more]
    (one,) = aggregate(trials_table([*spoilt, *first])).to_pylist()
    assert (one["state"], one["n_seeds"], one["val_accuracy"], one["is_pareto"]) == ("diverged", 2, 0.8, False)
    elsewhere = [r | {"dataset": "mnist"} for r in more]
    assert aggregate(trials_table([*elsewhere, *first])).num_rows == 2


def test_aggregate_of_one_seed_has_no_interval():
    (only,) = aggregate(trials_table([row()])).to_pylist()
    assert (only["n_seeds"], only["val_accuracy"], only["pareto_rank"]) == (1, 0.9, 1)
    assert [only[f"val_accuracy_{x}"] for x in ("std", "low", "high")] == [None] * 3


def test_aggregate_ties_means_that_differ_by_rounding_only():
    """Sums that differ in the last bit, means that are both 0.2, and equal sizes: a tie."""
    assert 0.2 + 0.3 + 0.1 != 0.2 + 0.2 + 0.2
    rows = [row("a", seed, val_accuracy=x) for seed, x in enumerate([0.2, 0.3, 0.1])]
    rows += [row("b", seed, depth=3, val_accuracy=0.2) for seed in range(3)]
    assert aggregate(trials_table(rows)).column("pareto_rank").to_pylist() == [1, 1]


def fill(store: Store) -> None:
    rng = random.Random(3)
    for number in rng.sample(range(40), 40):
        state = rng.choice(["ok"] * 5 + ["oom"])
        rows = [
            row(
                f"t{number}",
                seed,
                depth=number,
                size_bytes=rng.choice([100, 200, 300, 400]),
                val_accuracy=rng.random(),
                state=state,
            )
            for seed in (0, 1)
        ]
        size = rows[0]["size_bytes"]
        store.write(f"t{number}", [r | {"size_bytes": size} for r in rows], [], {})


def test_duckdb_pandas_and_polars_read_the_same_front(store):
    import duckdb
    import pandas as pd
    import polars as pl

    fill(store)
    table = store.write_pareto()
    path = store.root / "pareto.parquet"
    front = table_front(table.take(list(range(table.num_rows))[::-1])).column("trial_id").to_pylist()
    assert 1 < len(front) < 10
    assert pq.read_table(path).equals(table)
    query = f"from '{path}' select trial_id where is_pareto order by size_bytes, trial_id"
    assert [r[0] for r in duckdb.sql(query).fetchall()] == front
    frame = pd.read_parquet(path)
    assert frame[frame.is_pareto].sort_values(["size_bytes", "trial_id"]).trial_id.tolist() == front
    lazy = pl.read_parquet(path).filter(pl.col("is_pareto")).sort("size_bytes", "trial_id")
    assert lazy["trial_id"].to_list() == front
    dominance = f"""
        with t as (from '{path}' where state = 'ok')
        select trial_id from t where not exists (
            from t as u where u.val_accuracy >= t.val_accuracy and u.size_bytes <= t.size_bytes
            and (u.val_accuracy > t.val_accuracy or u.size_bytes < t.size_bytes))
        order by size_bytes, trial_id"""
    assert [r[0] for r in duckdb.sql(dominance).fetchall()] == front


def test_write_pareto_sees_only_the_given_ids(store):
    save(store, "best", depth=1, size_bytes=1)
    save(store, "a", depth=2, size_bytes=9)
    save(store, "b", depth=3, size_bytes=5, val_accuracy=0.5)
    assert table_front(store.write_pareto(["a", "b"])).column("trial_id").to_pylist() == ["b", "a"]
    assert table_front(store.write_pareto()).column("trial_id").to_pylist() == ["best"]
