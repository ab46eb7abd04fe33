"""A whole sweep, tests/data/recorded.yaml on MNIST, from the command to the table: qdtune and three other ways.

    python tests/benchmarks/sweep.py --data-dir DIR

qdtune runs all of it: 35 configurations x 3 seeds x (5 + 10) epochs. The others run one seed of each configuration,
with the same data, first weights and step sizes, and what they take after their start-up is counted three times:
plain Ray Tune (function trainable, DataLoader, ASHA on accuracy) and Optuna alone (two threads, tensors on the
device, median pruner on accuracy) stop weak trials in their own way, which also stops small models of the front. The
notebook's loop is timed for one epoch of each phase of a sample, in two processes. All on the same cores.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import common
import notebook
import peers

HERE = Path(__file__).parent
EPOCHS = peers.WARMUP + peers.QAT


def qdtune(data_dir: Path, *options: str, cache: str | None = None) -> float:
    """Seconds of the whole process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qdtune.launch", str(common.GRID), "--data-dir", str(data_dir)]
        environment = os.environ | ({"XDG_CACHE_HOME": cache} if cache else {})
        began = time.perf_counter()
        subprocess.run(
            [*command, "--runs-dir", folder, *options], check=True, stdout=subprocess.DEVNULL, env=environment
        )
        return time.perf_counter() - began


def peer(script: str, data_dir: Path) -> tuple[float, int]:
    """Seconds for all seeds, scaled from one, and how many epochs that one trained."""
    command = [sys.executable, str(HERE / script), str(data_dir.resolve())]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole, told = time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])
    return whole + told["seconds"] * (peers.SEEDS - 1), told["epochs"]


def _one(data_dir: Path, config: dict) -> float:
    took = notebook.train(data_dir, config["depth"], config["weight_bits"], config["activation"], 0, 1, 1)
    return peers.WARMUP * took["warmup_s"] + peers.QAT * took["qat_s"]


def notebook_loop(data_dir: Path, sample: int) -> float:
    """Seconds for all on two cores: CPU time of one epoch of each phase of a sample; 55,000 of its 60,000 counted."""
    every = peers.configurations()
    some = [every[int((k + 0.5) * len(every) / sample)] for k in range(sample)]
    with ProcessPoolExecutor(2) as pool:
        mean = sum(pool.map(_one, [data_dir] * sample, some)) / sample
    return mean * len(every) * peers.SEEDS * peers.TRAIN / 60_000 / 2


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--peer-repeats", type=int, default=1)
    parser.add_argument("--sample", type=int, default=12, help="configurations that the notebook's loop is timed on")
    given = parser.parse_args()
    about = common.machine()
    times: dict[str, list[float]] = {}
    trained: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as cache:
        times["qdtune, nothing compiled before"] = [qdtune(given.data_dir, cache=cache)]
        times["qdtune"] = [qdtune(given.data_dir, cache=cache) for _ in range(given.repeats)]
        unstopped = ("--set", "early_terminate={type: none}")
        name = "qdtune, nothing stopped early"
        times[name] = [qdtune(given.data_dir, *unstopped, cache=cache) for _ in range(given.peer_repeats)]
    for _ in range(given.peer_repeats):
        for name, script in (("Optuna alone", "peer_optuna.py"), ("plain Ray Tune", "peer_tune.py")):
            seconds, trained[name] = peer(script, given.data_dir)
            times.setdefault(name, []).append(seconds)
        times.setdefault("the notebook's loop", []).append(notebook_loop(given.data_dir, given.sample))
    rows = []
    base = statistics.median(times["qdtune"])
    for name, taken in times.items():
        stopped = f"{trained[name]} of {len(peers.configurations()) * EPOCHS}" if name in trained else ""
        rows.append((name, len(taken), common.spread(taken, 0), f"{statistics.median(taken) / base:.1f}", stopped))
    header = ("way", "n", "seconds on two cores", "/ qdtune", "epochs of one seed")
    found = {"seconds": times, "epochs_of_one_seed": trained, "sample": given.sample}
    common.publish("sweep", given.out, found, common.table(header, rows), about)


if __name__ == "__main__":
    main()
