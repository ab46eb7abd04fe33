"""A whole sweep, sweeps/grid.yaml on MNIST, from the command to the table: qdtune and three other ways.

    python tests/benchmarks/sweep.py --data-dir DIR

qdtune runs all of it: 35 configurations x 3 seeds x (5 + 10) epochs. The others run a sample of the 105 pairs of
configuration and seed, evenly spread, each of them as long as its own early stopping lets it, and what they take
after their start-up is scaled to 105: plain Ray Tune (function trainable, DataLoader, ASHA), Optuna alone (two jobs,
tensors on the device, median pruner) and the notebook's loop (one epoch of each phase per sampled pair, two
processes). All on the same two cores.
"""

from __future__ import annotations

import json
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
ALL = len(peers.pairs())


def qdtune(data_dir: Path, *options: str) -> float:
    """Seconds of the whole process, with steps compiled before."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "qdtune.launch", str(common.GRID), "--data-dir", str(data_dir)]
        began = time.perf_counter()
        subprocess.run([*command, "--runs-dir", folder, *options], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began


def peer(script: str, data_dir: Path, trials: int) -> tuple[float, int]:
    """Seconds for all pairs, scaled from a sample, and how many epochs the sample trained."""
    command = [sys.executable, str(HERE / script), str(data_dir.resolve()), str(trials)]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    whole, told = time.perf_counter() - began, json.loads(done.stdout.splitlines()[-1])
    return whole + told["seconds"] * (ALL / trials - 1), told["epochs"]


def _one(data_dir: Path, pair: dict) -> float:
    took = notebook.train(data_dir, pair["depth"], pair["weight_bits"], pair["activation"], pair["seed"], 1, 1)
    return peers.WARMUP * took["warmup_s"] + peers.QAT * took["qat_s"]


def notebook_loop(data_dir: Path, trials: int) -> float:
    """Seconds for all pairs on two cores, from one epoch of each phase of a sample; tests and start-up left out."""
    with ProcessPoolExecutor(2) as pool:
        return sum(pool.map(_one, [data_dir] * trials, peers.sample(trials))) * ALL / trials / 2


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--peer-repeats", type=int, default=1)
    parser.add_argument("--sample", type=int, default=15, help="pairs that the others train, of 105")
    given = parser.parse_args()
    about = common.machine()
    qdtune(given.data_dir)  # compiles what is not in the cache
    times: dict[str, list[float]] = {"qdtune": [], "qdtune, nothing stopped early": []}
    trained: dict[str, list[int]] = {}
    for _ in range(given.repeats):
        times["qdtune"].append(qdtune(given.data_dir))
    for _ in range(given.peer_repeats):
        times["qdtune, nothing stopped early"].append(qdtune(given.data_dir, "--set", "early_terminate={type: none}"))
        for name, script in (("Optuna alone", "peer_optuna.py"), ("plain Ray Tune", "peer_tune.py")):
            seconds, epochs = peer(script, given.data_dir, given.sample)
            times.setdefault(name, []).append(seconds)
            trained.setdefault(name, []).append(epochs)
        times.setdefault("the notebook's loop", []).append(notebook_loop(given.data_dir, given.sample))
    rows = []
    base = sorted(times["qdtune"])[len(times["qdtune"]) // 2]
    for name, taken in times.items():
        middle = sorted(taken)[len(taken) // 2]
        stopped = f"{trained[name]} of {given.sample * (peers.WARMUP + peers.QAT)}" if name in trained else ""
        rows.append((name, len(taken), common.spread(taken, 0), f"{middle / base:.1f}", stopped))
    header = ("way", "n", "seconds on two cores", "/ qdtune", f"epochs of the sample of {given.sample} pairs")
    found = {"seconds": times, "epochs_of_sample": trained, "sample": given.sample, "pairs": ALL}
    common.publish("sweep", given.out, found, common.table(header, rows), about)


if __name__ == "__main__":
    main()
