"""What stands in the way of a launch is told in one line with exit code 2, and nothing at all is made."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from qdtune.commands import launch
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import load
from qdtune.store.store import Store
from qdtune.sweep import cluster, preflight, session
from qdtune.sweep.cluster import BEGIN, Cluster, NoClusterError, knock
from qdtune.sweep.placement import Node
from qdtune.sweep.preflight import LEAST_VERSIONS, needed_bytes, paused_bytes

SWEEP = """\
version: 1
name: a
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 4]}}
seeds: [0, 1]
data: {dataset: [mnist, digits], val_size: 100}
model: {hidden: [8]}
train: {warmup: {epochs: 2}, qat: {epochs: 3}}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a sweep file and nothing else; Ray's environment is left as it is."""
    (tmp_path / "a.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "set_environment", lambda address: None)
    monkeypatch.setenv("QDTUNE_DATA", "nowhere")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


@pytest.fixture
def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether a launch got as far as its session, once for each; no session runs."""
    calls: list[bool] = []
    monkeypatch.setattr(session, "run_sweep", lambda *a, **k: calls.append(True) or 0)
    return calls


def tree(folder: Path) -> list[tuple[str, str | bytes]]:
    """All there is in a folder, with what it holds or leads to."""
    found: list[tuple[str, str | bytes]] = []
    for path in sorted(folder.rglob("*")):
        held: str | bytes = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
        found.append((str(path.relative_to(folder)), held))
    return found


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *argv: str, sweep: str = "a.yaml") -> str:
    """The one line that a launch is refused with; checks that it changed nothing."""
    before = tree(folder)
    assert launch.main([sweep, *argv]) == 2
    out, err = capsys.readouterr()
    assert tree(folder) == before
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def test_launch_goes_on_where_nothing_stands_in_the_way(
    folder: Path, started: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("probe", "read_file"):  # there is no such bucket
        monkeypatch.setattr(f"qdtune.store.object_folder.ObjectFolder.{name}", lambda *_: None)
    (folder / "s3:").touch()  # as a path, the URL would lead through it
    before = tree(folder)
    for argv in ([], ["--runs-dir", "new/deep"], ["--runs-dir", str(folder)], ["--runs-dir", "s3://bucket/prefix"]):
        assert launch.main(["a.yaml", *argv]) == 0
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / ".lock").touch()  # of a launch that was killed at its start
    assert launch.main(["a.yaml"]) == 0
    (folder / "runs" / "b").mkdir()
    (folder / "runs" / "a" / ".lock").unlink()
    (folder / "runs" / "a").rmdir()
    (folder / "runs" / "a").symlink_to("b")  # a link, but it leads to where it lies
    assert launch.main(["a.yaml"]) == 0
    assert len(started) == 6
    shutil.rmtree(folder / "runs")
    assert tree(folder) == before


def make_file(folder: Path) -> None:
    (folder / "runs").write_text("x")


def make_file_of_run(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "a").write_text("x")


def make_foreign_folder(folder: Path) -> None:
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "thesis.tex").write_text("x")


def make_foreign_folder_with_a_folder_called_sweep(folder: Path) -> None:
    (folder / "runs" / "a" / "sweep.yaml").mkdir(parents=True)


def make_link_outside(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "runs").mkdir()
    (folder / "runs" / "a").symlink_to(folder / "other")


def make_link_to_nowhere(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "a").symlink_to("b")


def make_link_to_itself(folder: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "a").symlink_to("a")


def make_link_within(folder: Path) -> None:
    Store(folder / "runs" / "a").create(SWEEP)
    (folder / "precious").write_text("x")
    (folder / "runs" / "a" / ".lock").symlink_to(folder / "precious")  # opened, truncated and written to otherwise


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torch.py", "torch.py in the current folder hides the package torch (rename it, or start the command in"),
        ("random.py", "random.py in the current folder hides Python's module random (rename it, or start the"),
    ],
)
def test_a_file_that_would_hide_a_module_from_workers_is_named(
    folder: Path, started: list[bool], capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (folder / name).touch()
    assert refused(folder, capsys).startswith(said)
    assert started == []


def test_a_current_folder_whose_name_is_not_utf_8_is_refused(
    folder: Path, started: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsdecode(os.fsencode(folder) + b"/caf\xe9")
    os.mkdir(odd)
    monkeypatch.chdir(odd)
    said = refused(folder, capsys, "--runs-dir", str(folder / "runs"), sweep=str(folder / "a.yaml"))
    assert said.startswith("the current folder must have a name in UTF-8, which Ray needs, got ")
    assert "caf\\udce9 (start the command in another folder)" in said
    assert started == []


def test_a_current_folder_that_is_gone_is_one_line(
    folder: Path, started: list[bool], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "gone").mkdir()
    monkeypatch.chdir(folder / "gone")
    (folder / "gone").rmdir()
    said = refused(folder, capsys, "--runs-dir", str(folder / "runs"), sweep=str(folder / "a.yaml"))
    assert said.startswith("the current folder must exist, got No such file or directory (go to another folder)")
    assert started == []


def make_result_a_link_outside(folder: Path) -> None:
    Store(folder / "runs" / "a").create(SWEEP)
    (folder / "runs" / "a" / "trials").mkdir()
    (folder / "cached").write_text("x")
    (folder / "runs" / "a" / "trials" / "x.parquet").symlink_to(folder / "cached")


def make_result_a_link_to_nowhere(folder: Path) -> None:
    make_result_a_link_outside(folder)
    (folder / "cached").unlink()


def make_sweep_a_link_to_nowhere(folder: Path) -> None:
    Store(folder / "runs" / "a").create(SWEEP)
    (folder / "runs" / "a" / "sweep.yaml").rename(folder / "gone")
    (folder / "runs" / "a" / "sweep.yaml").symlink_to("gone")


MEND = "(put the file itself there, by git annex unlock, dvc unprotect or cp -L)"


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            make_result_a_link_outside,
            f"runs/a/trials/x.parquet must lie in runs, got a link that leads outside {MEND}",
        ),
        (
            make_result_a_link_to_nowhere,
            f"runs/a/trials/x.parquet must be a file, got a link that leads nowhere {MEND}",
        ),
        (make_sweep_a_link_to_nowhere, f"runs/a/sweep.yaml must be a file, got a link that leads nowhere {MEND}"),
        (make_file, "runs must be a folder, got a file (choose another --runs-dir or name)"),
        (make_file_of_run, "runs/a must be a folder, got a file (choose another --runs-dir or name)"),
        (
            make_foreign_folder,
            "runs/a must be a run folder or empty, got a folder that holds something else and no sweep.yaml"
            " (choose another name)",
        ),
        (
            make_foreign_folder_with_a_folder_called_sweep,
            "runs/a must be a run folder or empty, got a folder that holds something else and no sweep.yaml"
            " (choose another name)",
        ),
        (make_link_outside, "runs/a must lie in runs, got a link that leads outside"),
        (make_link_to_nowhere, "runs/a must be a folder, got a link that leads nowhere"),
        (make_link_to_itself, "runs/a must be a folder, got a link that leads nowhere"),
        (make_link_within, "runs/a/.lock must lie in runs, got a link that leads outside"),
    ],
)
@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_place_that_is_no_run_folder_is_left_alone(
    folder: Path,
    started: list[bool],
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
    line: str,
    fresh: list[str],
) -> None:
    make(folder)
    assert refused(folder, capsys, *fresh).startswith(line)
    assert started == []


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system"), (errno.ENOSPC, "No space left on")],
)
def test_place_that_cannot_be_written_is_told(
    folder: Path,
    started: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    text: str,
) -> None:
    def fail(dir: Path) -> None:
        assert str(dir) == "."  # the innermost part that is there
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)  # root, who may run this, is never refused by a mode
    assert refused(folder, capsys).startswith(f"cannot write to runs/a: {text}")
    assert started == []


@pytest.mark.parametrize("runs_dir", ["x" * 300, "x\0y", "/proc/nothing/here"])
def test_impossible_runs_dir_is_told(
    folder: Path, started: list[bool], capsys: pytest.CaptureFixture[str], runs_dir: str
) -> None:
    line = refused(folder, capsys, "--runs-dir", runs_dir)
    assert line.startswith("cannot write to ")
    assert line.isprintable()
    assert started == []


def test_full_disk_is_told_with_both_figures(
    folder: Path, started: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load("a.yaml")
    needed = needed_bytes(spec, plan(spec.resolve("mnist")))
    free = needed
    monkeypatch.setattr(preflight, "check_start", lambda address: None)  # which wants room for Ray, too
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert launch.main(["a.yaml"]) == 0
    free = 90_000
    said = refused(folder, capsys)
    assert said.startswith(f". has 0.1 MB free, the sweep needs about {needed / 1e6:.1f} MB (make room")
    assert len(started) == 1
    # What is there already is not written again, unless it is set aside.
    Store(folder / "runs" / "a").create(spec.resolve("mnist").to_yaml())
    (folder / "runs" / "a" / "much").write_bytes(bytes(needed))
    assert launch.main(["a.yaml"]) == 0
    assert refused(folder, capsys, "--fresh").startswith("runs/a has 0.1 MB free, the sweep needs about ")


def test_room_grows_with_what_is_trained() -> None:
    spec = load(Path(__file__).parents[2] / "sweeps" / "smoke.yaml")

    def needs(**changes: object) -> int:
        changed = spec.model_copy(update=changes)
        return needed_bytes(changed, plan(changed.resolve("digits")))

    # Measured: 13.5 kB of Parquet for each of 6, 15.5 kB of study, 8.4 kB of table, 3 warm-ups of 15 kB.
    kept = needs() - paused_bytes(spec, plan(spec.resolve("digits")))  # its trainings are too short for checkpoints
    assert 0.8 < kept / 150_000 < 1.5
    assert needs(seeds=tuple(range(20))) > needs(seeds=(0, 1)) > needs(seeds=(0,))
    train = spec.train.model_copy(update={"qat": spec.train.qat.model_copy(update={"epochs": 1000})})
    assert needs(train=train, seeds=tuple(range(20))) > 3 * needs(train=train, seeds=(0,))
    assert needs(method="tpe", run_cap=60) > 2 * needs(method="tpe", run_cap=20)


def test_checkpoints_need_room_up_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.27 MB each for grid.yaml on MNIST with 5 seeds (measured): 8 that run, or all 50 with a risk."""
    file = Path(__file__).parents[2] / "sweeps" / "grid.yaml"
    for risk, trials in ((None, 8), (0.1, 50)):
        spec = load(file, [f"early_terminate={{type: pareto, risk: {risk or 'null'}}}"]).resolve("mnist")
        assert 0.8 < paused_bytes(spec, plan(spec)) / (trials * 1_270_000) < 1.3
    monkeypatch.setattr("qdtune.sweep.preflight.MAX_PAUSED_BYTES", 1000)
    assert paused_bytes(spec, plan(spec)) == 1000


def test_settings_that_cannot_be_compared_are_told_before_anything_is_downloaded(
    folder: Path, started: list[bool], capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load("a.yaml")
    for name in spec.data.dataset:  # as whichever of them was had
        Store(folder / "runs" / "a").create(spec.resolve(name).to_yaml())
        assert launch.main(["a.yaml"]) == 0
        line = refused(folder, capsys, "--set", "train.batch_size=32")
        assert "runs/a has no results yet, but other settings (" in line
        assert "train.batch_size: 64 there, 32 now" in line
        assert ("data.dataset" in line) == (name == "digits")  # the wanted one is spoken of
        assert launch.main(["a.yaml", "--set", "train.batch_size=32", "--fresh"]) == 0


def test_run_in_use_is_told_with_its_holder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "umask", lambda mask: None)  # that of the tests stays
    store = Store(folder / "runs" / "a")
    with store.lock():
        before = tree(folder)
        for fresh in ([], ["--fresh"]):
            assert launch.main(["a.yaml", "--set", "data={dataset: synthetic, val_size: 100}", *fresh]) == 5
            out, err = capsys.readouterr()
            assert err.startswith("error: one launch may use runs/a at a time, but it is held by pid ")
            assert (out, err.count("\n")) == ("", 1)
            assert tree(folder) == before


def test_old_library_is_refused(
    folder: Path, started: list[bool], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {"ray": "2.55.1", "torch": "2.6.0+cu126", "pyarrow": "26.0.1"}
    monkeypatch.setattr(preflight, "version", lambda name: versions[name])
    assert refused(folder, capsys) == "ray must be 2.56 or newer, got 2.55.1 (pip install -U ray)"
    versions |= {"ray": "3.0.0rc1", "torch": "2.5.1"}
    assert refused(folder, capsys) == "torch must be 2.6 or newer, got 2.5.1 (pip install -U torch)"
    versions["torch"] = "2.10.0"
    assert launch.main(["a.yaml"]) == 0


def test_oldest_versions_are_those_of_the_project_file() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, least in LEAST_VERSIONS.items():
        found = re.search(rf'"{name}(?:\[[\w,]+\])?>=(\d+)\.?(\d*)"', text)
        assert found, name
        assert (int(found[1]), int(found[2] or 0)) == least
    assert LEAST_VERSIONS["ray"] >= (2, 56)
    assert LEAST_VERSIONS["torch"] >= (2, 6)


# --- The cluster


@contextmanager
def listening(answer: bytes) -> Iterator[str]:
    """The address of a server that gives each caller one answer and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as caller:
                caller.recv(100)
                caller.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join()


def closed() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


INSTEAD = r" \(leave out --address, or unset RAY_ADDRESS, to start Ray here\)$"


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (nullcontext("nowhere"), "an address must be HOST:PORT or auto, got nowhere"),
        (nullcontext("ray://10.0.0.9:10001"), "an address must be HOST:PORT or auto, got ray://10.0.0.9:10001"),
        (nullcontext(f"127.0.0.1:{'9' * 5000}"), "no Ray cluster answers at 127.0.0.1:999"),
        (nullcontext("127.0.0.1:99999"), "no Ray cluster answers at 127.0.0.1:99999: "),
        (nullcontext(f"{'a' * 300}.b:1"), "no Ray cluster answers at aaa"),
        (nullcontext(closed()), r"no Ray cluster answers at 127.0.0.1:\d+: \[Errno 111\] Connection refused"),
        (listening(b"SSH-2.0-OpenSSH_9.2\r\n"), r"what answers at 127.0.0.1:\d+ is no Ray cluster"),
        (listening(b""), r"what answers at 127.0.0.1:\d+ is no Ray cluster"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_dead_or_foreign_address_is_told(address: contextmanager, text: str) -> None:
    with address as at, pytest.raises(NoClusterError, match=f"^{text}.*{INSTEAD}"):
        knock(at)


def test_knock_lets_through_what_speaks_grpc() -> None:
    with listening(bytes((0, 0, 18)) + BEGIN + bytes(23)) as address:
        knock(address)
    knock("auto")


@pytest.mark.parametrize("by_option", [True, False])
def test_address_is_looked_at_before_anything_is_made(
    folder: Path,
    started: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    by_option: bool,
) -> None:
    with listening(b"220 mail\r\n") as address:
        if not by_option:
            monkeypatch.setenv("RAY_ADDRESS", address)
        line = refused(folder, capsys, *(["--address", address] if by_option else []))
    assert line.startswith(f"what answers at {address} is no Ray cluster, or one that wants RAY_USE_TLS=1 (")
    assert started == []


def of_other_version(**options: object) -> None:
    from ray._private.utils import check_version_info

    check_version_info({"ray_version": "2.55.0", "python_version": "3.10.4"}, "node")  # Ray's own words


def not_there(**options: object) -> None:
    raise ConnectionError("Could not find any running Ray instance.\nPlease specify the one to connect to.")


@pytest.mark.parametrize(
    ("init", "line"),
    [
        (of_other_version, "the cluster at auto must have the versions of this one, Ray {0} and Python {1}, got"),
        (
            not_there,
            f"no Ray cluster answers at auto, or it wants another token ({cluster._instead()})",
        ),
    ],
)
def test_cluster_that_cannot_be_joined_is_told_before_anything_is_made(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    init: Callable[..., None],
    line: str,
) -> None:
    import ray

    monkeypatch.setattr(ray, "init", init)
    said = refused(folder, capsys, "--address", "auto")
    assert said.startswith(line.format(ray.__version__, platform.python_version()))
    assert ("got Ray 2.55.0 and Python 3.10.4" in said) == (init is of_other_version)


def test_cluster_that_is_too_small_is_told_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Cluster(nodes=(Node(2),) * 4, dashboard=None)
    monkeypatch.setattr(session, "connect", lambda at, size: nullcontext(small))
    said = refused(folder, capsys, "--address", "auto", "--set", "resources.cpu=4")
    assert said == "resources.cpu: 4 CPUs per trial asked, largest node has 2"
