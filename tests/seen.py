"""One launch that is looked at while it runs, with its dashboard, and is then stopped by Ctrl-C.

What it left open and told is tested in test_security.py; launched.py finishes what it left to do.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.store import Store

SWEEP = Path(__file__).parent / "golden" / "eager.yaml"
LEFT_OUT = {"depth": 3, "weight_bits": 8}  # of the sweep: what goes on with it has one configuration more
CANARIES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "WANDB_API_KEY", "LOGNAME")


@dataclass
class Seen:
    """A sweep that was looked at while it ran, and then stopped by Ctrl-C.

    Attributes:
        folder: its run folder.
        code, out, err: how it ended and what it said.
        answers: of the job API: without a token, with a wrong one, with the right one.
        listeners: address of every listening socket of its processes.
        environments: of every process but the launch itself, which sets them.
        private: mode of what holds Ray's session, while it ran.
        left: what is left of that.
        marker: what a pickle in the run folder makes when it is read.
    """

    folder: Path
    marker: Path
    code: int = 0
    out: str = ""
    err: str = ""
    answers: list[int] = field(default_factory=list)
    listeners: list[str] = field(default_factory=list)
    environments: list[dict[str, str]] = field(default_factory=list)
    private: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def launch_seen(home: Path) -> Seen:
    """Launches the sweep in a folder, looks at it and stops it."""
    content = SWEEP.read_bytes()
    (home / "eager.yaml").write_bytes(content)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TUNE_"))}
    environment |= {name: f"CANARY-{name}-0123456789abcdef" for name in CANARIES}
    found = Seen(home / "runs" / "eager", home / "marker")
    fewer = "exclude=" + json.dumps([*loads(content, "eager.yaml").to_dict()["exclude"], LEFT_OUT])
    trap(found.folder, loads(content, "eager.yaml", [fewer]), found.marker)
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        environment |= {"HOME": str(home), "RAY_TMPDIR": scratch}
        line = [sys.executable, "-m", "qdtune.launch", "eager.yaml", "--set", fewer]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        old = os.umask(0)  # as lax as can be
        process = subprocess.Popen(line, cwd=home, env=environment, text=True, **pipes)
        os.umask(old)
        try:
            look(found, process, environment, Path(scratch))
        finally:
            process.send_signal(signal.SIGINT)
            out, found.err = process.communicate(timeout=90)
        found.out += out
        found.code = process.returncode
        found.left = os.listdir(scratch)
    return found


def look(found: Seen, process: subprocess.Popen[str], environment: dict[str, str], scratch: Path) -> None:
    """Fills in what can be seen while a sweep runs, as soon as a first result is there."""
    assert process.stdout is not None
    url = ""
    while not url and (line := process.stdout.readline()):
        found.out += line
        url = next(iter(re.findall(r"Ray dashboard: (\S+)", line)), "")
    assert url, found.out
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None and not results(found):
        time.sleep(0.05)  # until workers are there, and a result
    found.answers = [status(url, token) for token in (None, "0" * 64, environment["RAY_AUTH_TOKEN"])]
    found.private = [path.stat().st_mode for path in scratch.iterdir()]
    inodes = set()
    for pid in processes(b"CANARY-HF_TOKEN"):
        inodes |= sockets(pid)
        if pid != process.pid:
            found.environments.append(environ(pid))
    found.listeners = list(listeners(inodes))


def results(found: Seen) -> list[Path]:
    return [p for p in (found.folder / "trials").glob("*.parquet") if p.read_bytes()[:4] == b"PAR1"]


def status(url: str, token: str | None) -> int:
    """The HTTP status of the job API."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(f"{url}/api/jobs/", headers=headers), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def processes(mark: bytes) -> list[int]:
    """Every process whose environment holds `mark`: those that descend from the one that was given it."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if mark in Path("/proc", pid, "environ").read_bytes():
                found.append(int(pid))
        except OSError:  # it has ended
            pass
    return found


def environ(pid: int) -> dict[str, str]:
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def sockets(pid: int) -> set[str]:
    """The inodes of the sockets that a process holds."""
    found = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{name}")
            found |= set(re.findall(r"socket:\[(\d+)\]", target))
    except OSError:
        pass
    return found


def listeners(inodes: set[str]) -> Iterator[str]:
    """The addresses at which these sockets listen."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                words = bytes.fromhex(local.partition(":")[0])  # of 32 bits, in the order of this machine
                packed = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                address = ipaddress.ip_address(packed)
                yield str(getattr(address, "ipv4_mapped", None) or address)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.marker),)


def trap(folder: Path, spec: Spec, marker: Path) -> None:
    """Puts pickles that run code into a run folder, wherever something might read them."""
    data = pickle.dumps(Trap(marker))
    Store(folder).create(spec.to_yaml())
    trials = plan(spec).trials
    names = ["tuner.pkl", "x.pkl", "error.pkl", "searcher.pkl", "study.journal", "trials/0123456789ab.parquet"]
    names += [f"trials/{trials[0].trial_id}.parquet", f"history/{trials[0].trial_id}.parquet"]
    names += [f"warmup/{trial.warmup_id}.safetensors" for trial in trials]
    names += [f"weights/{trial.trial_id}.safetensors" for trial in trials]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
