"""The same sweep on one and on two nodes of one core each: time, speed-up, efficiency; and on paper on up to 1,000.

    python tests/benchmarks/scaling.py

Each cluster is real: `ray start` for the head and for every other node, with a token, on free ports of this machine,
which must have as many idle cores as the largest number of nodes. Between two repeats the order is turned around. A
ratio compares two runs that follow each other; `load_before` says how busy the machine was.

On paper: places are filled one after the other by a driver that takes `c` seconds for each trial beyond its training
(measured in the runs above), and otherwise waits for them; nothing else is shared.
"""

from __future__ import annotations

import heapq
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import pyarrow.parquet as pq

SWEEP = """
version: 1
name: scaling
parameters: {{weight_bits: {{values: [1, 2, 3, 4, 5, 6, 7, 8]}}, qat_lr: {{values: [{rates}]}}}}
seeds: [0, 1]
data: {{dataset: digits, val_size: 287}}
model: {{hidden: [24]}}
train: {{batch_size: 32, warmup: {{epochs: 1}}, qat: {{epochs: {epochs}}}}}
early_terminate: {{type: none}}
resources: {{gpu: 0, cpu: 1}}
run: {{compile: never}}
"""
NODES_ON_PAPER = (1, 2, 10, 100, 1_000)
TRIAL_S = (3.0, 30.0, 300.0)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def cluster(nodes: int) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster of so many one-core nodes, and the environment of who may join it."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp", ignore_cleanup_errors=True) as temp:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment = kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment |= {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
        address, started = f"127.0.0.1:{free_port()}", []
        head = ["--head", f"--port={address.partition(':')[2]}", f"--temp-dir={temp}", "--include-dashboard=false"]
        head.append(f"--ray-client-server-port={free_port()}")
        try:
            for k in range(nodes):
                line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1"]
                line += [f"--node-ip-address=127.0.0.{k + 1}", f"--dashboard-agent-listen-port={free_port()}"]
                line += ["--object-store-memory=100000000", "--disable-usage-stats"]
                line += [f"--address={address}"] if k else head
                quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
                started.append(subprocess.Popen(line, env=environment, **quiet))  # type: ignore[call-overload]
                time.sleep(10)
            yield address, environment
        finally:
            for node in reversed(started):
                node.terminate()
                node.wait()


def timed(nodes: int, trials: int, epochs: int) -> dict[str, float]:
    """One sweep on so many nodes: seconds from its first trial's start to its last one's end, and what was lost."""
    with tempfile.TemporaryDirectory() as folder, cluster(nodes) as (address, environment):
        sweep = Path(folder) / "scaling.yaml"
        rates = ", ".join(f"{0.001 * (k + 1):.3f}" for k in range(trials // 8))
        sweep.write_text(SWEEP.format(rates=rates, epochs=epochs))
        line = [sys.executable, "-m", "qdtune.launch", str(sweep), "--address", address, "--runs-dir", folder]
        began = time.perf_counter()
        subprocess.run(line, env=environment, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - began
        rows = pq.read_table(f"{folder}/scaling/trials").to_pylist()
        assert len({row["trial_id"] for row in rows}) == trials
        assert {row["state"] for row in rows} == {"ok"}
        # Both rows of a trial have its times. A worker's first trial counts from where it starts to train.
        spans = {row["trial_id"]: (row["started_at"].timestamp(), row["finished_at"].timestamp()) for row in rows}
        first, last = min(start for start, _ in spans.values()), max(end for _, end in spans.values())
        training = sum(end - start for start, end in spans.values())
        return {
            "span_s": last - first,
            "training_s": training,
            "beyond_s": (nodes * (last - first) - training) / trials,
            "command_s": whole,
        }


def on_paper(nodes: int, trial_s: float, driver_s: float, rounds: int = 20) -> float:
    """The share of its time that a place trains, where one driver serves all of them in turn."""
    free, driver, last = [0.0] * nodes, 0.0, 0.0
    for _ in range(rounds * nodes):
        driver = max(driver, heapq.heappop(free)) + driver_s
        last = max(last, driver + trial_s)
        heapq.heappush(free, driver + trial_s)
    return rounds * trial_s / last


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=3)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--trials", type=int, default=32, help="a multiple of 8")
    parser.add_argument("--epochs", type=int, default=40, help="of QAT")
    given = parser.parse_args()
    about = common.machine()
    found: dict[int, list[dict[str, float]]] = {n: [] for n in given.nodes}
    for turn in range(given.repeats):
        for n in given.nodes[:: 1 if turn % 2 == 0 else -1]:
            found[n].append(timed(n, given.trials, given.epochs))
            print(n, found[n][-1], flush=True)
    rows = []
    for n, runs in found.items():
        speed = [one["span_s"] / many["span_s"] for one, many in zip(found[given.nodes[0]], runs, strict=True)]
        cells = [[run[key] for run in runs] for key in ("span_s", "beyond_s", "command_s")]
        texts = [common.spread(cell, 2) for cell in (cells[0], speed, [s / n for s in speed], cells[1], cells[2])]
        rows.append((n, *texts))
    header = (
        "nodes",
        "first start to last end, s",
        "speed-up",
        "efficiency",
        "beyond training, s per trial",
        "all, s",
    )
    text = common.table(header, rows)
    driver_s = statistics.median(run["beyond_s"] for run in found[given.nodes[0]])
    paper = [
        (f"{trial_s:g} s", *(f"{on_paper(n, trial_s, driver_s):.0%}" for n in NODES_ON_PAPER)) for trial_s in TRIAL_S
    ]
    places = [f"{n:,} places" for n in NODES_ON_PAPER]
    text += f"\n\n{common.table((f'on paper, {driver_s:.3f} s per trial', *places), paper)}"
    common.publish("scaling", given.out, {"runs": {str(n): runs for n, runs in found.items()}}, text, about)


if __name__ == "__main__":
    main()
