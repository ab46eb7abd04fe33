"""What a sweep leaves open, tells others or runs: nothing that its user has not asked for.

One real sweep is looked at while it runs and after it was stopped; the rest is about files that somebody else wrote.
"""

from __future__ import annotations

import getpass
import io
import ipaddress
import json
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from qdtune.messages import Problem, SpecError, user_error
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.store import Store
from qdtune.sweep import cluster
from qdtune.terminal import _Console, console
from tests.seen import Seen, Trap, results, trap

SWEEP = """\
version: 1
name: tiny
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 2, 3, 4]}}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {name: mlp, hidden: [8]}
train: {batch_size: 8, warmup: {epochs: 1}, qat: {epochs: 8}}
"""

# What the metadata of a Parquet file may hold, and no more: versions, and the commit of qdtune itself.
METADATA = {"qdtune.schema_version", "qdtune.sha256", "qdtune.git_commit"} | {
    f"qdtune.version.{name}" for name in ("qdtune", "torch", "ray", "pyarrow")
}


def test_trap_springs_where_something_unpickles(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


# --- A sweep that runs


@pytest.mark.timeout(300)
def test_sweep_was_seen_running_and_ended_in_order(seen: Seen) -> None:
    assert seen.code == 130, (seen.out, seen.err)
    assert results(seen)
    assert len(seen.environments) > 3  # GCS, raylet, dashboard, workers


def test_job_api_answers_to_the_token_alone(seen: Seen) -> None:
    assert seen.answers == [401, 403, 200]


def test_every_port_is_on_loopback(seen: Seen) -> None:
    assert len(seen.listeners) > 3
    assert [a for a in seen.listeners if not ipaddress.ip_address(a).is_loopback] == []


def test_usage_is_reported_to_nobody(seen: Seen) -> None:  # Ray's releases see to it as well
    assert {env.get("RAY_USAGE_STATS_ENABLED", "0") for env in seen.environments if env} == {"0"}
    assert sum("RAY_USAGE_STATS_ENABLED" in env for env in seen.environments) > 3


def test_what_ray_writes_is_the_users_alone_and_gone_with_it(seen: Seen) -> None:
    assert {stat.S_IMODE(mode) for mode in seen.private} == {0o700}
    assert seen.left == []


def test_run_folder_is_the_users_alone(seen: Seen) -> None:
    made = [path for path in seen.folder.rglob("*") if path.is_file() and not path.read_bytes().startswith(b"\x80")]
    # sweep.yaml is written anew, too; the folders were there before.
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in made if path.stat().st_mode & 0o077} == {}
    assert len(made) > 4


def held(path: Path) -> str:
    """What a file says, decompressed where it is a Parquet file; as text whatever it is."""
    data = path.read_bytes()
    text = data.decode("latin-1")
    if data[:4] == b"PAR1":
        table = pq.read_table(io.BytesIO(data))
        text += json.dumps([str(table.schema.metadata), table.to_pylist()], default=str)
        text += str(pq.read_metadata(io.BytesIO(data)).metadata)
    return text


def test_secrets_of_the_environment_are_told_to_nobody(seen: Seen) -> None:
    for path in seen.folder.rglob("*"):
        if path.is_file() and not path.read_bytes().startswith(b"\x80"):  # the traps
            assert "CANARY" not in held(path), path
    assert "CANARY-" not in seen.err
    assert "CANARY-" not in seen.out


def test_files_name_no_host_no_user_and_no_path(seen: Seen) -> None:
    words = {
        socket.gethostname(),
        getpass.getuser(),
        "CANARY-LOGNAME-0123456789abcdef",
        "CANARY-home",
        "/tmp",
        "/home",
    }
    for path in [*results(seen), seen.folder / "sweep.yaml", seen.folder / "study.journal"]:
        data = path.read_bytes()
        text = held(path) if data[:4] != b"PAR1" else held(path)[len(data) :]  # compressed bytes spell anything
        assert [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text)] == [], path


def test_metadata_of_parquet_is_a_fixed_list(seen: Seen) -> None:
    files = [path for path in seen.folder.rglob("*.parquet") if path.read_bytes()[:4] == b"PAR1"]
    for path in files:
        keys = {key.decode() for key in pq.read_metadata(path).metadata} - {"ARROW:schema"}
        assert keys <= METADATA, path
    assert {path.parent.name for path in files} == {"eager", "trials", "history"}


def test_pickle_in_a_run_folder_is_not_read_by_a_sweep(seen: Seen) -> None:
    assert not seen.marker.exists()
    assert "damaged, runs again" in seen.out
    assert list(seen.folder.glob("warmup/*.damaged"))  # so they were looked at


# --- A run folder that somebody else has written

COMMANDS = [
    ["launch", "tiny.yaml"],
    ["launch", "tiny.yaml", "--dry-run"],
    ["verify", "runs/tiny"],
    ["export", "runs/tiny", "--front", "--out", "out"],
    ["replay", "runs/tiny", "--orders", "2", "--at-once", "2", "--jobs", "1", "--pruner", "pareto"],
]


def finished(trial: Configuration) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Rows and history as of a trial that came to its end."""
    now = datetime.now(timezone.utc)
    common = trial.columns | {"state": "ok", "epochs": 9, "finished_at": now, "val_accuracy": 0.5}
    rows = [common | {"seed": seed} for seed in trial.seeds]
    entry = {"trial_id": trial.trial_id, "phase": "qat", "val_accuracy": 0.5, "seconds": 1.0}
    return rows, [entry | {"seed": seed, "epoch": n} for seed in trial.seeds for n in range(1, 9)]


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0] + argv[-1])
def test_pickle_in_a_finished_run_folder_is_not_read(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    store = Store(tmp_path / "runs" / "tiny")
    spec = loads(SWEEP.encode(), "tiny.yaml").resolve("synthetic")
    trap(store.root, spec, tmp_path / "marker")
    for trial in plan(spec).trials:
        store.write(trial.trial_id, *finished(trial), {}, pickle.dumps(Trap(tmp_path / "marker")))
    line = [sys.executable, "-m", "qdtune", *argv]
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    code, said = {"verify": (3, ""), "export": (2, "error: the weights of trial ")}.get(argv[0], (0, ""))
    assert (done.returncode, done.stderr[:28]) == (code, said)
    assert not (tmp_path / "marker").exists()


# --- The token


@pytest.mark.parametrize("there", [None, 0o644])
def test_token_file_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int | None) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if there is not None:
        (tmp_path / ".ray").mkdir(mode=0o755)
        (tmp_path / ".ray" / "auth_token").write_text("old")
        (tmp_path / ".ray" / "auth_token").chmod(there)
    old = os.umask(0)
    try:
        path = cluster._token_file()
    finally:
        os.umask(old)
    assert path == tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert (path.read_text() == "old") == (there is not None)
    assert there is not None or re.fullmatch("[0-9a-f]{64}", path.read_text())


def test_empty_token_file_of_a_killed_launch_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch()
    assert re.fullmatch("[0-9a-f]{64}", cluster._token_file().read_text())


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a user who has set nothing of Ray's; the environment is put back."""
    for name in (*cluster.SETTINGS, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # which is what is put back, set or not
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_local_cluster_is_closed_by_its_environment(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TUNE_CALLBACKS", "os.system")
    cluster.set_environment(None)
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(bare / ".ray" / "auth_token")
    assert "RAY_TUNE_CALLBACKS" not in os.environ


@pytest.mark.parametrize("text", [None, " \n"])
def test_token_file_that_holds_none_is_told(bare: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    if text is not None:
        (bare / "token").write_text(text)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(bare / "token"))
    for address in (None, "10.0.0.1:6379"):
        with pytest.raises(SpecError, match=r"RAY_AUTH_TOKEN_PATH must name a file that holds a token, got \S+token"):
            cluster.set_environment(address)


def test_home_that_cannot_hold_a_token_is_told(bare: Path) -> None:
    (bare / ".ray").write_text("")
    with pytest.raises(SpecError, match=r"Ray's token must be kept in ~/.ray/auth_token: .*File exists"):
        cluster.set_environment(None)


# --- What reaches the terminal

EVIL = "\x1b]0;owned\x07\x9b31m[bold]x[/bold]\r\x08"


def test_text_of_others_does_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console().print(f"damaged: {EVIL}\nand more", style="yellow")
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert all(line.isprintable() for line in out.split("\n"))
    file = io.StringIO()
    _Console(file=file, force_terminal=True, markup=False, highlight=False, color_system=None).print(EVIL)
    assert file.getvalue().strip().isprintable()
    assert isinstance(console(), Console)


def test_mistake_with_control_characters_is_one_printable_line() -> None:
    for text in (str(user_error(EVIL, EVIL)), str(Problem(None, (EVIL,), EVIL))):
        assert text.isprintable()
        assert "[bold]x[/bold]" in text


def test_error_of_a_trial_is_stored_printable() -> None:
    from qdtune.sweep.trainable import QATTrial

    ended = QATTrial._describe_error(object.__new__(QATTrial), RuntimeError(EVIL))
    assert ended["error"].startswith("RuntimeError: ]0;owned")
    assert ended["error"].isprintable()
    assert "[bold]x[/bold]" in ended["error"]
