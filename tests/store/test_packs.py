"""Many small files become few large ones: nothing is lost, and nobody sees a half of it."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdtune.store import packs
from qdtune.store.store import Store
from tests.store.test_store import Killed, epoch, row


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(packs, "PACK_SIZE", 5)
    return Store(tmp_path / "run")


def save(store: Store, trial_id: str, metadata: str = "1", **changes: object) -> bool:
    rows = [row(trial_id, seed, **changes) for seed in (0, 1)]
    return store.write(trial_id, rows, [epoch(trial_id, seed) for seed in (0, 1)], {"torch": metadata})


def files(store: Store, kind: str = "trials") -> list[str]:
    return sorted(os.listdir(store.root / kind))


def rows_of(store: Store, ids: list[str] | None = None) -> list[list[dict[str, object]]]:
    by_id = [("trial_id", "ascending"), ("seed", "ascending")]
    return [table.sort_by(by_id).to_pylist() for table in (store.trials(ids), store.history(ids))]


def test_packing_keeps_every_row_and_its_provenance(store, monkeypatch):
    names = [f"{n:03x}" for n in range(23)]
    random.Random(0).shuffle(names)
    with monkeypatch.context() as patched:
        patched.setattr(packs, "PACK_SIZE", 1000)
        for n, name in enumerate(names):
            save(store, name, metadata=str(n % 2), val_accuracy=n / 23)
    before = rows_of(store)
    with store.lock():
        assert store.pack_files()
        assert not store.pack_files()
    assert files(store) == [f"packed-{n}.parquet" for n in range(1, 7)]  # 12 and 11 of the two provenances, by 5
    assert rows_of(store) == rows_of(Store(store.root)) == before
    some = sorted(names[:4])
    assert rows_of(store, some) == [[r for r in rows if r["trial_id"] in some] for rows in before]
    assert Store(store.root).ids() == store.ids() == set(names)
    provenance = set()
    for file in files(store):
        table = pq.read_table(store.root / "trials" / file, partitioning=None)
        provenance.add((table.schema.metadata[b"torch"], *{int(i, 16) for i in table["trial_id"].to_pylist()}))
    whole = {key: set() for key in (b"0", b"1")}
    for key, *ids in provenance:
        whole[key] |= set(ids)
    assert whole == {b"0": {int(n, 16) for n in names[::2]}, b"1": {int(n, 16) for n in names[1::2]}}


def test_packs_are_made_while_a_sweep_writes(store):
    for n in range(12):
        save(store, f"{n:x}")
    assert files(store) == ["a.parquet", "b.parquet", "packed-1.parquet", "packed-2.parquet"]
    assert files(store, "history") == files(store)
    assert len(rows_of(store)[0]) == 24


@pytest.mark.parametrize("other", [False, True])
def test_a_packed_result_is_replaced_by_a_better_one_only(store, other):
    for n in range(5):
        save(store, f"{n}", state="timeout" if n == 3 else "ok")
    assert files(store) == ["packed-1.parquet"]
    store = Store(store.root) if other else store
    assert not save(store, "2", attempt=2)
    assert save(store, "3", attempt=2)
    assert files(store) == ["3.parquet", "packed-1.parquet"]
    trials, history = rows_of(store)
    assert [(r["trial_id"], r["state"], r["attempt"]) for r in trials[::2]] == [
        (f"{n}", "ok", 2 if n == 3 else 1) for n in range(5)
    ]
    assert len(history) == 10


def test_a_damaged_pack_is_listed_once_and_set_aside(store):
    for n in range(7):
        save(store, f"{n}")
    path = store.root / "trials" / "packed-1.parquet"
    data = bytearray(path.read_bytes())
    data[data.index(b"orthogonal")] ^= 1
    path.write_bytes(data)
    assert store.trials().num_rows == 4
    assert len(store.damaged) == 1
    assert store.damaged[0].startswith(str(path))
    store = Store(store.root)
    for n in range(7):
        assert save(store, f"{n}") == (n < 5)
    assert store.trials()["trial_id"].to_pylist() == [f"{n}" for n in range(7) for _ in (0, 1)]
    (line,) = store.set_damaged_aside()
    assert line.startswith(str(path))
    assert path.with_name("packed-1.parquet.damaged").exists()
    assert len(rows_of(store)[0]) == 14
    assert store.damaged == []


def test_damaged_files_are_not_packed(store):
    for n in range(4):
        save(store, f"{n}")
    (store.root / "trials" / "0.parquet").write_bytes(b"torn")
    store = Store(store.root)
    for n in range(4, 7):
        save(store, f"{n}")
    assert store.pack_files()
    assert files(store) == ["0.parquet", "packed-1.parquet", "packed-2.parquet"]
    assert len(store.trials()) == 12
    assert len(store.damaged) == 1


def test_a_kill_at_any_step_of_packing_leaves_every_row_once(store, monkeypatch):
    for step in range(200):
        shutil.rmtree(store.root, ignore_errors=True)
        with monkeypatch.context() as patched:
            patched.setattr(packs, "PACK_SIZE", 1000)
            for n in range(6):
                save(store, f"{n}")
        before, calls = rows_of(store), iter(range(1000))

        def deadly(real, step=step, calls=calls):
            def call(*args, **kwargs):
                if next(calls) == step:
                    raise Killed
                result = real(*args, **kwargs)
                if next(calls) == step:
                    raise Killed
                return result

            return call

        killed = False
        with monkeypatch.context() as patched:
            for name in ("fsync", "replace", "link"):
                patched.setattr(os, name, deadly(getattr(os, name)))
            patched.setattr(packs, "_exchange", deadly(packs._exchange))
            patched.setattr(shutil, "rmtree", deadly(shutil.rmtree))
            try:
                Store(store.root).pack_files()
            except Killed:
                killed = True
        assert rows_of(store) == before
        with store.lock():
            assert sorted(p.name for p in store.root.iterdir()) == [".lock", "history", "trials"]
            store.pack_files()
        assert rows_of(store) == before
        assert files(store) == ["packed-1.parquet", "packed-2.parquet"]
        if not killed:
            break
    assert step > 20


READER = """
import sys, duckdb
from collections import Counter
from qdtune.store.store import Store
from tests.schemas import HISTORY
folder, seen, reads = sys.argv[1], 0, 0
while not sys.stdin.closed:
    for rows in (Store(folder).trials(), Store(folder).history()):
        counts = Counter(rows["trial_id"].to_pylist())
        assert set(counts.values()) <= {2}, counts
    assert len(counts) >= seen, (len(counts), seen)
    seen = len(counts)
    try:
        query = f"select count(*) from '{folder}/trials/*.parquet' group by trial_id"
        found = duckdb.sql(query).fetchall()
    except duckdb.IOException:  # a file that was packed since it was listed: refused, not read in part
        pass
    else:
        assert set(found) == {(2,)}, found
        assert len(found) >= 5, found
    reads += 1
    print(reads, seen, flush=True)
    if seen == 80:
        break
"""


def test_readers_see_all_of_it_at_any_moment(store):
    for n in range(5):
        save(store, f"{n:03x}")
    command = [sys.executable, "-c", READER, str(store.root)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout.readline().startswith("1 ")
        for n in range(5, 80):
            save(store, f"{n:03x}")
        said = reader.stdout.read().split()
    assert reader.returncode == 0
    assert said[-1] == "80"
    assert len([file for file in files(store) if file.startswith("packed-")]) == 16


@pytest.mark.parametrize("lacks", ["exchange", "link", "room"])
def test_a_file_system_that_cannot_pack_keeps_its_files(store, monkeypatch, lacks):
    def refuse(*_):
        attempts.append(lacks)
        raise OSError(errno.ENOSPC if lacks == "room" else errno.EPERM, "no")

    attempts: list[str] = []
    if lacks == "exchange":
        monkeypatch.setattr(packs, "_exchange", lambda a, b: attempts.append(lacks))
    elif lacks == "link":
        (store.root / "trials").mkdir(parents=True)
        (store.root / "trials" / "note.txt").write_text("links into the packed folder")
        monkeypatch.setattr(os, "link", refuse)
    else:
        monkeypatch.setattr(packs, "sync_folder", refuse)
    for n in range(12):
        save(store, f"{n:x}")
    assert len(attempts) >= 2
    assert {f"{n:x}.parquet" for n in range(12)} - set(files(store)) == set()
    assert sorted(p.name for p in store.root.iterdir()) == ["history", "trials"]
    assert len(rows_of(store)[0]) == 24
