"""What a trial costs beyond its training: 100 and 1,000 configurations of next to nothing (digits, one epoch).

    python tests/benchmarks/overhead.py

Also: whether the last hundred are slower than the first, what the driver needs in memory, what lies on disk, how long
a second launch takes that finds all done, and how long it is from a command to the first epoch that is reported.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import common
import pyarrow.parquet as pq

SWEEP = """
version: 1
name: trivial
parameters:
  weight_bits: {{values: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]}}
  qat_lr: {{values: [{rates}]}}
seeds: [0]
data: {{dataset: digits, val_size: 287}}
model: {{hidden: [8]}}
train: {{warmup: {{epochs: 1}}, qat: {{epochs: 1}}}}
"""


def launched(*arguments: object) -> tuple[float, float, int, list[tuple[float, str]]]:
    """Runs a launch: seconds to its first progress line and in all, peak memory of its driver in bytes, lines."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "qdtune.launch", *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            except OSError:
                return
            peak = max(peak, int(found[1]) * 1024 if found else 0)
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    lines = [(time.perf_counter() - began, line.rstrip()) for line in process.stdout]
    if process.wait() != 0:
        raise SystemExit("\n".join(line for _, line in lines))
    whole = time.perf_counter() - began
    watcher.join()
    first = next((at for at, line in lines if re.match(r"\d+/\d+ done", line)), float("nan"))
    return first, whole, peak, lines


def trivial(trials: int, cpus: int) -> dict[str, float]:
    """One sweep of so many trials, and a second launch of it."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "trivial.yaml"
        rates = ", ".join(f"{0.001 * (k + 1):.3f}" for k in range(trials // 10))
        sweep.write_text(SWEEP.format(rates=rates))
        options = ("--runs-dir", folder, "--set", f"run.max_concurrent_trials={cpus}")
        first, whole, peak, _ = launched(sweep, *options)
        _, again, _, _ = launched(sweep, *options)
        rows = pq.read_table(f"{folder}/trivial/trials").to_pylist()
        files = [path for path in (Path(folder) / "trivial").rglob("*") if path.is_file()]
        ends = sorted(row["finished_at"].timestamp() for row in rows)
        began = min(row["started_at"].timestamp() for row in rows)
        training = sum((row["finished_at"] - row["started_at"]).total_seconds() for row in rows) / cpus
        assert len(rows) == trials
        return {
            "trials": trials,
            "first_epoch_s": first,
            "whole_s": whole,
            "beyond_training_s": (ends[-1] - began - training) / trials,
            "first_hundred_s": ends[99] - ends[0],
            "last_hundred_s": ends[-1] - ends[-100],
            "second_launch_s": again,
            "driver_bytes": peak,
            "files": len(files),
            "file_bytes": sum(path.stat().st_size for path in files),
        }


def startup(data_dir: Path, *options: str) -> float:
    """Seconds from the command to the first reported epoch, on one configuration of tests/data/recorded.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        small = (
            "parameters={depth: {values: [1, 2]}, weight_bits: {value: 1}, activation: {values: [identity, relu]}}"
        )
        quick = "train={warmup: {epochs: 1, lr: 0.1}, qat: {epochs: 1, lr: 0.01}}"
        return launched(
            common.GRID, "--set", small, "--set", quick, "--runs-dir", folder, "--data-dir", data_dir, *options
        )[0]


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000], help="multiples of 100")
    parser.add_argument("--at-once", type=int, default=2, help="trials at a time")
    given = parser.parse_args()
    about = common.machine()

    starts = {"with dashboard": [], "without": []}  # type: dict[str, list[float]]
    startup(given.data_dir)  # compiles what is not in the cache
    for _ in range(given.repeats):
        starts["with dashboard"].append(startup(given.data_dir))
        starts["without"].append(startup(given.data_dir, "--no-dashboard"))
    rows = [(f"command to first reported epoch, {name}", common.spread(s, 1) + " s") for name, s in starts.items()]
    text = common.table(("start-up, MNIST, caches warm", f"n = {given.repeats}"), rows)

    found = [trivial(trials, given.at_once) for trials in given.trials]
    rows = [
        ("seconds per trial beyond training", *(f"{f['beyond_training_s']:.3f}" for f in found)),
        ("first hundred, s", *(f"{f['first_hundred_s']:.1f}" for f in found)),
        ("last hundred, s", *(f"{f['last_hundred_s']:.1f}" for f in found)),
        ("command to table, s", *(f"{f['whole_s']:.1f}" for f in found)),
        ("second launch, s", *(f"{f['second_launch_s']:.1f}" for f in found)),
        ("driver, peak MB", *(f"{f['driver_bytes'] / 1e6:.0f}" for f in found)),
        ("files (MB)", *(f"{f['files']:,} ({f['file_bytes'] / 1e6:.1f})" for f in found)),
    ]
    header = ("digits, one epoch, n = 1", *(f"{f['trials']:,} trials" for f in found))
    text += "\n\n" + common.table(header, rows)
    common.publish("overhead", given.out, {"startup": starts, "trials": found}, text, about)


if __name__ == "__main__":
    main()
