"""The packed weights in a run folder: there before the rows are, replaced and gone with them, checked by `verify`."""

import pytest
from pyarrow import parquet

from qdtune.commands import verify
from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.store.folder import StorageError
from qdtune.store.lost_weights import find_lost_weights
from qdtune.store.store import Store
from tests.store.test_store import epoch, row

BLOB = sign_file({"0/a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"abc")
OTHER = sign_file({"0/a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, b"xyz")
SWEEP = "version: 1\nname: r\nparameters: {}\nseeds: [0]\ndata: {dataset: digits, val_size: 200}\n"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "r")


def save(store, trial_id, weights=None, **changes):
    return store.write(trial_id, [row(trial_id, **changes)], [epoch(trial_id)], {}, weights)


def test_weights_are_kept_beside_the_rows_and_are_no_result_themselves(store):
    assert save(store, "a", BLOB)
    assert save(store, "b")
    assert [store.weights(trial_id) for trial_id in ("a", "b", "c")] == [BLOB, None, None]
    store.folder.write_file("weights/c.safetensors", BLOB)  # as of a launch that was killed before the rows
    assert store.ids() == {"a", "b"}
    assert store.trials()["trial_id"].to_pylist() == ["a", "b"]
    assert store.damaged == []


def test_weights_go_with_the_result_they_belong_to(store):
    for state in ("failed", "pruned"):
        save(store, "a", BLOB, state=state)  # as if it had left them
    assert save(store, "a", state="pruned", attempt=2) is False
    assert store.weights("a") == BLOB  # what is there is as good, and stays whole
    assert save(store, "a", OTHER)
    assert store.weights("a") == OTHER
    assert save(store, "a", BLOB) is False
    assert store.weights("a") == OTHER
    store.folder.write_file("weights/b.safetensors", BLOB)  # of a killed launch; this time the result differs
    assert save(store, "b", state="diverged")
    assert store.weights("b") is None


def test_weights_that_are_gone_come_back_with_the_numbers_they_belong_to(store):
    save(store, "a", BLOB)
    save(store, "b", BLOB)
    file = store.root / "weights" / "a.safetensors"
    before = (store.root / "trials" / "a.parquet").read_bytes()
    for weights, changes in ((None, {}), (BLOB, {"state": "pruned"}), (BLOB, {"state": "failed"})):
        file.unlink(missing_ok=True)
        assert save(store, "a", weights, **changes) is False  # nothing of that is as good as what is there
        assert not file.exists()
    assert save(store, "a", OTHER, attempt=2)
    assert (store.weights("a"), (store.root / "trials" / "a.parquet").read_bytes()) == (OTHER, before)
    file.unlink()
    assert save(store, "a", BLOB, attempt=2, test_accuracy=0.25)  # of another device
    assert store.trials(["a"])["test_accuracy"].to_pylist() == [0.25]
    assert store.weights("a") == BLOB


def test_a_retraining_of_which_one_seed_diverged_ends_the_loss(store):
    """Otherwise each launch would train it again: numbers of another device need not be the same."""
    save(store, "b", BLOB)
    rows = [row("a", seed=seed) for seed in (0, 1)]
    store.write("a", rows, [], {}, BLOB)
    (store.root / "weights" / "a.safetensors").unlink()
    again = [rows[0], rows[1] | {"state": "diverged", "val_accuracy": None, "test_accuracy": None}]
    assert store.write("a", again, [], {}, OTHER)
    assert sorted(store.trials(["a"])["state"].to_pylist()) == ["diverged", "ok"]
    assert store.weights("a") == OTHER


def test_weights_are_lost_only_where_there_were_some(store):
    save(store, "a")
    assert find_lost_weights(store, store.trials()) == set()  # no weights at all, as in a copy without them
    save(store, "b", BLOB)
    save(store, "c", BLOB, state="pruned")
    assert find_lost_weights(store, store.trials()) == {"a"}
    file = store.root / "trials" / "a.parquet"
    old = parquet.read_table(file)
    parquet.write_table(old.replace_schema_metadata({"qdtune.schema_version": "4"}), file)
    assert find_lost_weights(store, store.trials()) == set()  # of a version that may have kept none
    store.folder.write_file("weights/a.safetensors.damaged", b"")
    assert find_lost_weights(store, store.trials()) == {"a"}


def test_rows_never_come_before_their_weights(store, monkeypatch):
    write = store.folder.write_file

    def failing(file, data):
        if file.startswith(failing.kind):
            raise StorageError("full")
        write(file, data)

    monkeypatch.setattr(store.folder, "write_file", failing)
    for failing.kind, there in (("weights", None), ("trials", BLOB)):
        with pytest.raises(StorageError, match="full"):
            save(store, "a", BLOB)
        assert (store.ids(), store.weights("a")) == (set(), there)
    failing.kind = "nothing"
    assert save(store, "a", BLOB)
    assert store.ids() == {"a"}


def test_writing_lists_no_folder(store, monkeypatch):
    save(store, "a", BLOB)
    listed = []
    files = store.folder.list_files
    monkeypatch.setattr(store.folder, "list_files", lambda within="": listed.append(within) or files(within))
    save(store, "b", BLOB)
    save(store, "c", state="failed")
    assert "weights" not in listed


def test_packing_and_starting_over_leave_weights_whole(store, monkeypatch):
    monkeypatch.setattr("qdtune.store.packs.PACK_SIZE", 3)
    for name in "abcd":
        save(store, name, BLOB)
    assert store.folder.list_files("trials") == ["d.parquet", "packed-1.parquet"]
    assert [store.weights(name) for name in "abcd"] == [BLOB] * 4
    aside = store.set_aside()
    assert Store(aside).weights("a") == BLOB
    assert store.weights("a") is None


def test_metadata_is_what_was_written(store, monkeypatch):
    monkeypatch.setattr("qdtune.store.packs.PACK_SIZE", 2)
    for name in "abc":
        store.write(name, [row(name)], [], {"made": name})
    assert [store.metadata(name)["made"] for name in "c"] == ["c"]
    (store.root / "trials" / "c.parquet").write_bytes(b"PAR1")
    assert store.metadata("c") == {}


def test_verify_sets_damaged_weights_aside_and_the_result_stands(store, capsys):
    store.create(SWEEP)
    save(store, "a", BLOB)
    save(store, "b", BLOB)
    file = store.root / "weights" / "b.safetensors"
    unsigned = BLOB.replace(b"qdtune.sha256", b"qdtune.sha257")
    for damaged in (BLOB[:-1] + b"X", BLOB[:20], b"", unsigned):
        file.write_bytes(damaged)
        assert verify.main([str(store.root)]) == 3
        told = capsys.readouterr().out
        assert f"{file}: " in told
        assert ": set aside, belongs to no result of this sweep\n" in told  # its rows are made up
        assert (store.weights("a"), store.weights("b"), store.ids()) == (BLOB, None, {"a", "b"})
        assert file.with_suffix(".safetensors.damaged").read_bytes() == damaged
        assert verify.main([str(store.root)]) == 0
        capsys.readouterr()


def test_checksum_covers_what_the_header_says():
    header, data = split_file(sign_file({"__metadata__": {"said": "this"}}, b"abc"))
    assert find_fault(sign_file(header, data), older=False) is None
    header["__metadata__"]["said"] = "that"
    changed = sign_file(header, data)
    old = split_file(BLOB)[0]["__metadata__"]["qdtune.sha256"]
    assert split_file(changed)[0]["__metadata__"]["qdtune.sha256"] != old
    assert "do not fit" in find_fault(changed.replace(b"that", b"this"))


def test_checksum_of_a_kept_warmup_is_what_it_always_was():
    sha256 = "39fc845917142fedf83cd11c968edcd93612d50265290522f01fd02c9c29c9e5"
    assert split_file(BLOB)[0]["__metadata__"] == {"qdtune.sha256": sha256}
