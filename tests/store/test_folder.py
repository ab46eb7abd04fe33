"""Run folders in an object store: a real server that speaks S3, on loopback, started here."""

import os
import signal
import subprocess
import sys
import time

import pyarrow.dataset as ds
import pytest
from pyarrow import fs

from qdtune.commands import launch
from qdtune.store import heartbeat
from qdtune.store.folder import LocationError, RunInUse, StorageError
from qdtune.store.open_folder import open_folder
from qdtune.store.paused import PausedFolder
from qdtune.store.store import Store
from qdtune.store.warmups import WarmupFolder
from tests.store.test_packs import rows_of
from tests.store.test_store import epoch, row
from tests.sweep.test_driver import SWEEP

SECRET = "CANARY-5ecret"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def endpoint():
    quiet = {"stderr": subprocess.DEVNULL, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", SERVER], **quiet) as server:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.stdin.close()


@pytest.fixture
def bucket(endpoint, monkeypatch, request):
    """A new bucket, and the environment in which it is found."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    keys = {"AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET}
    for name, value in {**keys, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    name = f"b{abs(hash(request.node.name)):x}"
    store = fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1", allow_bucket_creation=True)
    store.create_dir(name)
    return f"s3://{name}"


def save(store, trial_id, **changes):
    rows = [row(trial_id, seed, **changes) for seed in (0, 1)]
    return store.write(trial_id, rows, [epoch(trial_id, seed) for seed in (0, 1)], {})


def test_a_folder_in_an_object_store_behaves_as_one_on_a_disk(bucket, tmp_path):
    seen = []
    for where in (f"{bucket}/some/run", tmp_path / "run"):
        folder = open_folder(where)
        folder.probe()
        said = [folder.exists(), folder.list_files(), folder.list_files("deep"), folder.read_file("a")]
        for name in ("deep/b", "deep/a", "a"):
            folder.write_file(name, name.encode() * 100_000)
        folder.write_file("a", b"new")
        folder.rename_file("deep/b", "deep/c")
        said += [folder.exists(), folder.list_files(), folder.list_files("deep"), folder.read_file("a")]
        said += list(folder.read_files(["deep/c", "none", "a"]))
        other = open_folder(f"{os.fspath(where)}.1")
        folder.move_to(other)
        said += [folder.exists(), folder.list_files("deep"), other.list_files("deep"), other.read_file("a")]
        seen.append(said)
    in_store, on_disk = seen
    assert in_store == on_disk


def test_a_store_gives_the_same_rows_wherever_it_lies(bucket, tmp_path):
    seen = []
    for where in (f"{bucket}/runs/a", tmp_path / "a"):
        store = Store(where)
        with store.lock():
            store.create("name: a\n")
            said = [save(store, "b"), save(store, "a", state="oom"), save(store, "a", attempt=2), save(store, "a")]
            said += [store.ids(), rows_of(store), rows_of(store, ["a"]), store.pack_files()]
            said += [store.write("c", [row("c", 0)], [], {}, b"packed"), store.weights("c"), store.weights("a")]
            store.folder.remove_file("weights/c.safetensors")
            store.folder.remove_file("weights/none")
            said += [store.weights("c"), store.folder.list_files("weights")]
            said += [store.write_pareto().to_pylist(), store.sweep_yaml(), store.damaged]
        said += [store.folder.list_files(), str(store.set_aside()).removeprefix(os.fspath(where))]
        seen.append([*said, store.set_aside(), store.ids()])
    assert seen[0] == [
        entry if entry != [".lock", "pareto.parquet", "sweep.yaml"] else entry[1:] for entry in seen[1]
    ]


def test_a_damaged_object_is_set_aside_and_runs_again(bucket):
    store = Store(f"{bucket}/runs/a")
    save(store, "a")
    save(store, "b")
    store.folder.write_file("trials/a.parquet", (store.folder.read_file("trials/a.parquet") or b"")[:-9])
    assert store.trials()["trial_id"].to_pylist() == ["b", "b"]
    assert save(store, "a")
    assert store.folder.list_files("trials") == ["a.parquet", "a.parquet.damaged", "b.parquet"]


def test_warmups_are_kept_in_an_object_store(bucket):
    folder = WarmupFolder(f"{bucket}/run/warmup")
    assert folder.claim("k", "me") == ("train", None)
    folder.keep("k", b"numbers")
    assert WarmupFolder(f"{bucket}/run/warmup").claim("k", "you") == ("kept", b"numbers")


def test_checkpoints_are_kept_in_an_object_store(bucket):
    where = f"{bucket}/run/paused"
    for trial_id, blob in {"a1": b"333", "b2": b"333", "c3": b"333"}.items():
        PausedFolder(where).keep(trial_id, blob)
    later = PausedFolder(where, max_bytes=7)
    assert later.sizes == {f"{name}.safetensors": 3 for name in ("a1", "b2", "c3")}
    later.refuse("b2")
    later.keep("d4", b"333")
    assert later.folder.list_files() == ["b2.safetensors.damaged", "c3.safetensors", "d4.safetensors"]
    assert later.find("c3") == b"333"


def test_one_launch_holds_the_lock_and_a_dead_one_loses_it(bucket, monkeypatch):
    first, second = Store(f"{bucket}/run"), Store(f"{bucket}/run")
    with first.lock():
        told = rf"it is held by pid {os.getpid()} on host .*, last seen \d+ s ago: wait"
        with pytest.raises(RunInUse, match=told), second.lock():
            pass
        monkeypatch.setattr(heartbeat, "STALE_S", -1.0)  # nobody has renewed it for long enough
        with second.lock():
            mine = second.folder.read_file(".lock")
        assert mine is not None
    assert second.folder.read_file(".lock") is None


def test_a_lock_that_was_taken_over_ends_the_launch_in_order(bucket, monkeypatch):
    monkeypatch.setattr(heartbeat, "RENEW_S", 0.01)
    told = []
    monkeypatch.setattr(heartbeat.os, "kill", lambda pid, number: told.append((pid, number)))
    folder = open_folder(f"{bucket}/run")
    with folder.lock():
        while not told:
            folder.write_file(
                ".lock", b"somebody else"
            )  # again and again, for a beat may have looked before and write after
    assert told == [(os.getpid(), signal.SIGTERM)]
    assert folder.read_file(".lock") == b"somebody else"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://key:SECRET@bucket/runs", "s3://bucket/runs must be nothing but bucket and prefix: credentials come"),
        ("s3://bucket/runs?secret_key=SECRET", "s3://bucket/runs must be nothing but bucket and prefix"),
        ("s3://", "s3:// must name a bucket, as in s3://bucket/prefix"),
        ("ftp://host/runs", "ftp://host/runs must be a path or start with s3://, gs://, abfs://, abfss://"),
        (
            "s3://nobodys-bucket/runs",
            "s3://nobodys-bucket/runs must be readable and writable, got .*NO_SUCH_BUCKET",
        ),
    ],
)
def test_a_place_that_cannot_be_is_told_without_its_secrets(bucket, url, told, capsys, tmp_path, monkeypatch):
    with pytest.raises(LocationError, match=f"^{told}") as caught:
        open_folder(url).probe()
    assert "SECRET" not in str(caught.value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text((SWEEP % ("[1]", 32, 1)).replace("tiny", "a"))
    assert launch.main(["a.yaml", "--runs-dir", url]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "SECRET" not in error
    assert sorted(os.listdir(tmp_path)) == ["a.yaml"]


def test_a_launch_whose_storage_fails_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise StorageError("runs/a/x must be readable and writable, got No space left on device")

    monkeypatch.setattr("qdtune.sweep.session.run_sweep", fails)
    (tmp_path / "a.yaml").write_text((SWEEP % ("[1]", 32, 1)).replace("tiny", "a"))
    assert launch.main([str(tmp_path / "a.yaml"), "--runs-dir", str(tmp_path)]) == 4
    advice = "mend that and run the same command again, what was finished is kept"
    what = "runs/a/x must be readable and writable, got No space left on device"
    assert capsys.readouterr().err == f"error: {what}: {advice}\n"


def test_a_server_that_is_gone_is_a_storage_error(bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(LocationError, match=r"s3://x/run must be readable and writable, got .*: see its bucket"):
        open_folder("s3://x/run").probe()
    with pytest.raises(StorageError, match=r"s3://x/run/a must be readable, got .*"):
        open_folder("s3://x/run").read_file("a")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_sweep_is_killed_and_finished_in_an_object_store(bucket, tmp_path, monkeypatch, endpoint):
    token = tmp_path / "token"
    token.write_text("0" * 64)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {"RAY_AUTH_TOKEN_PATH": str(token)}
    (tmp_path / "tiny.yaml").write_text(SWEEP % ("[1, 2, 4, 8]", 32, 20))
    line = [sys.executable, "-m", "qdtune.launch", "tiny.yaml", "--runs-dir", f"{bucket}/runs", "--no-dashboard"]
    trials = open_folder(f"{bucket}/runs/tiny")
    quiet = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": tmp_path, "env": environment}
    with subprocess.Popen(line, **quiet) as process:
        while not trials.list_files("trials") and process.poll() is None:
            time.sleep(0.05)
        process.kill()
        process.wait()
    kept = set(trials.list_files("trials"))
    assert kept
    trials.filesystem.delete_file(f"{trials.path}/.lock")  # as 90 s without a sign of life would have it
    done = subprocess.run(line, **quiet, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{len(kept)} done before" in done.stdout
    assert f"full table: {bucket}/runs/tiny/pareto.parquet" in done.stdout
    s3 = fs.S3FileSystem(endpoint_override=endpoint, region="us-east-1")
    table = ds.dataset(f"{trials.path}/trials", filesystem=s3, format="parquet").to_table()
    assert sorted(table["trial_id"].to_pylist()) == sorted(2 * sorted(table["trial_id"].unique().to_pylist()))
    assert table.num_rows == 16
    assert kept <= set(trials.list_files("trials"))
    assert trials.list_files() == ["pareto.parquet", "report.html", "study.journal", "sweep.yaml"]
    found = s3.get_file_info(fs.FileSelector(trials.path, recursive=True))
    assert not any(SECRET.encode() in s3.open_input_file(f.path).read() for f in found if f.is_file)
    assert SECRET not in done.stdout
