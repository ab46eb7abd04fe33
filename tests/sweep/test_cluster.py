"""A real head and a second node, in processes of their own: a sweep sent, followed, stopped, finished, fetched."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdtune.store.store import Store
from tests.sweep.test_kills import rows_of

SWEEP = """\
version: 1
name: tiny
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [1, 2, 3, 4, 5, 6, 7, 8]}}
seeds: [0, 1]
data: {dataset: synthetic, val_size: 128}
model: {factory: 'mine:net', hidden: [8]}
train: {batch_size: 32, warmup: {epochs: 1}, qat: {epochs: 400}}
early_terminate: {type: none}
resources: {gpu: 0, cpu: 1}
"""
MINE = """\
from torch import nn


def net(inputs, hidden, classes, *, seed):
    return nn.Sequential(nn.Linear(inputs, hidden[0]), nn.ReLU(), nn.Linear(hidden[0], classes))
"""
WAIT_S = 240  # on a busy machine


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


class Cluster:
    """Ray nodes of one CPU each on this machine, each with a home of its own, and a user elsewhere."""

    def __init__(self, place: Path, temp: str) -> None:
        self.tls: Path | None = None  # a folder with certificates for each node
        self.place, self.temp, self.gcs, self.port = place, temp, free_port(), free_port()
        self.token, self.nodes = place / "token", []  # type: Path, list[subprocess.Popen[bytes]]
        self.token.write_text("0123456789abcdef" * 4)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "QDTUNE_"))}
        path = f"{Path(sys.executable).parent}:{kept['PATH']}"
        self.environment = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token), "PATH": path}
        self.environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        # Ray replaces 127.0.0.1 by the machine's own address, unless its environment forbids that, as that of pytest.
        asked = [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"]
        own = subprocess.run(asked, env=self.environment, capture_output=True, text=True, check=True).stdout.strip()
        self.addresses = [own, *(f"127.0.0.{k}" for k in range(2, 5))]

    def start(self, *options: object) -> subprocess.Popen[bytes]:
        """Starts a node."""
        home = self.place / f"home{len(self.nodes)}"
        home.mkdir()
        common = ["--block", "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
        address = self.addresses[len(self.nodes)]
        common += [f"--dashboard-agent-listen-port={free_port()}", f"--node-ip-address={address}"]
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", *common, *map(str, options)]
        environment = self.environment | {"HOME": str(home)} | self.certificate(address)
        with (home / "log").open("wb") as log:
            node = subprocess.Popen(line, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        return node

    def certificate(self, node: str) -> dict[str, str]:
        """What docs/cluster.md sets for TLS, where there is any."""
        files = {"CA_CERT": "ca.crt", "SERVER_CERT": "node.crt", "SERVER_KEY": "node.key"} if self.tls else {}
        set_to = {f"RAY_TLS_{name}": f"{self.tls}/{node}/{file}" for name, file in files.items()}
        return set_to | {"RAY_USE_TLS": "1"} if self.tls else {}

    def head(self) -> None:
        self.start("--head", f"--port={self.gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}",
                   f"--temp-dir={self.temp}", f"--ray-client-server-port={free_port()}")  # fmt: skip
        until(lambda: self("jobs")[0] == 0)

    def join(self) -> subprocess.Popen[bytes]:
        return self.start(f"--address={self.gcs_address}")

    @property
    def gcs_address(self) -> str:
        return f"{self.addresses[0]}:{self.gcs}"

    def began(self, *argv: str, **environment: str) -> subprocess.Popen[str]:
        """A command of the user's."""
        remote = [] if argv[0] == "launch" else ["--address", f"http://127.0.0.1:{self.port}"]
        line = [sys.executable, "-m", "qdtune", *argv, *remote]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(line, cwd=self.place, env=self.environment | environment, text=True, **pipes)

    def __call__(self, *argv: str, **environment: str) -> tuple[int, str]:
        process = self.began(*argv, **environment)
        out, _ = process.communicate(timeout=300)
        return process.returncode, out


def until(so: object) -> None:
    deadline = time.monotonic() + WAIT_S
    while not so():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "tiny.yaml").write_text(SWEEP)
    (tmp_path / "mine.py").write_text(MINE)
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp", ignore_cleanup_errors=True) as temp:
        cluster = Cluster(tmp_path, temp)
        try:
            yield cluster
        finally:
            for node in reversed(cluster.nodes):
                if node.poll() is None:
                    node.terminate()
            for node in cluster.nodes:
                node.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sweep_on_two_nodes_is_sent_stopped_finished_and_fetched_as_if_it_had_run_here(cluster: Cluster) -> None:
    submit = ["submit", "tiny.yaml", "--allow-plugin", "mine"]
    cluster.head()
    second = cluster.join()
    done = cluster.place / "home0" / "runs" / "tiny" / "trials"
    code, said = cluster("jobs", RAY_AUTH_TOKEN="another")
    assert (code, "refused the token in RAY_AUTH_TOKEN" in said, said.count("\n")) == (2, True, 1)

    assert cluster(*submit)[0] == 0
    assert cluster(*submit) == (5, "error: tiny runs already, as qdtune-tiny-1 (--follow follows it)\n")
    following = cluster.began(*submit, "--follow")
    until(lambda: done.is_dir() and any(done.iterdir()))
    assert cluster("fetch", "tiny")[0] == 5
    code, said = cluster("stop", "tiny")
    assert (code, "qdtune-tiny-1 has ended: STOPPED" in said) == (0, True)
    said, _ = following.communicate(timeout=60)
    assert following.returncode == 130
    assert "stopped by SIGINT: " in said
    kept = len(list(done.iterdir()))
    assert 0 < kept < 16

    following = cluster.began(*submit, "--follow")
    until(lambda: len(list(done.iterdir())) > kept + 1)
    raylet = subprocess.run(["pgrep", "-P", str(second.pid), "raylet"], capture_output=True, text=True).stdout
    os.kill(int(raylet), signal.SIGKILL)
    cluster.join()
    said, _ = following.communicate(timeout=600)
    assert following.returncode == 0, said
    assert f"{kept} done before" in said
    assert not re.search(r"raylet|state-dump", said), "what Ray prints of a node that was killed"
    for line in (r"node 127\.0\.0\.2 \(\w{6}\) has left", r"node 127\.0\.0\.3 \(\w{6}\) has joined"):
        assert re.search(line, said), said
    where = r"(moved from node 127\.0\.0\.2 \(\w{6}\) to|starts again on) node [\d.]+ \("
    assert re.search(rf"^d\d w\d [\w ]+ \(\w{{12}}\) {where}", said, re.MULTILINE), said
    bring = f"  qdtune fetch tiny --address http://127.0.0.1:{cluster.port}"
    assert said.splitlines()[-2:] == ["these files are on the head; to bring them here:", bring]
    code, said = cluster("fetch", "tiny", "--out", "fetched")
    assert (code, said.splitlines()[-1]) == (0, "  qdtune report fetched/tiny")
    assert "16 trials, 32 rows, 12,832 epochs: all whole\nreport: fetched/tiny/report.html\n" in said
    code, listed = cluster("jobs")
    assert re.findall(r"^(qdtune-tiny-\d) +(\w+)", listed, re.MULTILINE) == [
        ("qdtune-tiny-1", "STOPPED"),
        ("qdtune-tiny-2", "SUCCEEDED"),
    ]
    assert f"{kept} of 16 done" in listed

    assert cluster("launch", "tiny.yaml", "--allow-plugin", "mine", "--no-dashboard", HOME=str(cluster.place))[0] == 0
    assert rows_of(cluster.place / "fetched" / "tiny") == rows_of(cluster.place / "runs" / "tiny")
    assert len(Store(cluster.place / "fetched" / "tiny").ids()) == 16
    token = cluster.token.read_bytes()
    assert not any(token in path.read_bytes() for path in (cluster.place / "fetched").rglob("*") if path.is_file())
    assert b"0123456789abcdef" * 4 not in listed.encode()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sweep_runs_where_nodes_have_certificates_and_nobody_else_is_let_in(cluster: Cluster) -> None:
    """TLS as docs/cluster.md says it; all have the token here, so that the certificate alone makes the difference."""
    ours, theirs = cluster.place / "ours", cluster.place / "theirs"
    for folder in (ours, theirs):
        certs = Path(__file__).parents[2] / "docker" / "certs"
        subprocess.run([certs, folder, *cluster.addresses], check=True)
    cluster.tls = ours
    cluster.head()
    cluster.join()
    few = ["--set", "parameters.weight_bits={values: [1, 4]}", "--set", "train.qat.epochs=3"]
    following = cluster.began("submit", "tiny.yaml", "--allow-plugin", "mine", "--follow", *few)
    said, _ = following.communicate(timeout=300)
    assert following.returncode == 0, said
    assert "4/4 done" in said
    assert cluster("fetch", "tiny", "--out", "fetched")[0] == 0
    assert len(Store(cluster.place / "fetched" / "tiny").ids()) == 4

    until(lambda: nodes_of(cluster) == 2)
    for folder in (None, theirs):
        cluster.tls = folder
        stranger = cluster.join()
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(20)  # Ray goes on trying
        assert b"Ray runtime started" not in (cluster.place / f"home{len(cluster.nodes) - 1}" / "log").read_bytes()
        cluster.tls = ours
        assert nodes_of(cluster) == 2
    code, said = cluster("launch", "tiny.yaml", "--allow-plugin", "mine", "--address", cluster.gcs_address)
    assert (code, said.count("\n"), "or one that wants RAY_USE_TLS=1" in said) == (2, 1, True)


def nodes_of(cluster: Cluster) -> int:
    """How many nodes are alive, as `ray status` says it to who has the token and a certificate."""
    environment = cluster.environment | cluster.certificate(cluster.addresses[0])
    line = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={cluster.gcs_address}"]
    said = subprocess.run(line, env=environment, capture_output=True, text=True).stdout
    return len(re.findall(r"^ 1 node_\w+$", said.partition("Pending:")[0], re.MULTILINE))
