"""Does the data set lie once in the memory of a node? Workers of a running sweep, by 2, 4 and 8 at a time.

    python tests/benchmarks/memory.py --data-dir DIR

Resident memory of a worker (RSS counts shared pages fully, PSS each by its share), and what of the object store,
which is where MNIST is, lies in memory: its pages in all processes, each counted once. No other sweep may run.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import common

from qdtune.datasets.load import load

WORKER = b"ray::QATTrial"
LONG = "train={warmup: {epochs: 0}, qat: {epochs: 50, lr: 0.01}}"


def processes(title: bytes = b"") -> list[int]:
    """Ids of the processes on this machine whose title starts so."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(title):
                    found.append(int(folder.name))
    return found


def sizes(pid: int) -> dict[str, float]:
    """MB of a process: RSS, PSS, and both of the pages of the object store alone."""
    totals = {"rss": 0.0, "pss": 0.0, "store_rss": 0.0, "store_pss": 0.0}
    in_store = False
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    except OSError:  # it has ended
        lines = []
    for line in lines:
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            in_store = "plasma" in line
        elif found := re.match(r"(Rss|Pss):\s+(\d+) kB", line):
            name, kilobytes = found[1].lower(), int(found[2]) * 1024 / 1e6
            totals[name] += kilobytes
            if in_store:
                totals[f"store_{name}"] += kilobytes
    return totals


def measured(at_once: int, data_dir: Path) -> tuple[list[dict[str, float]], float]:
    """The workers of a sweep in which all of them have trained an epoch; what of the object store is in memory."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"resources={{gpu: 0, cpu: {2 / at_once}}}", LONG, "early_terminate={type: none}", "seeds=[0]"]
        options = [part for change in changes for part in ("--set", change)]
        command = [sys.executable, "-m", "qdtune.launch", str(common.GRID), "--data-dir", str(data_dir)]
        process = subprocess.Popen([*command, "--runs-dir", folder, *options], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                running = re.search(r"(\d+) running", line)
                if running and int(running[1]) >= at_once:
                    break
            else:
                raise SystemExit("the sweep ended before all of its workers were busy")
            each = [sizes(pid) for pid in processes(WORKER)]
            return each, sum(sizes(pid)["store_pss"] for pid in processes())
        finally:
            process.terminate()
            process.communicate()
            while processes(WORKER):
                time.sleep(0.5)


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4, 8])
    given = parser.parse_args()
    about = common.machine()
    data, _ = load(["mnist"], given.data_dir, 5000)
    about["data_MB"] = round(sum(x.nbytes for x in vars(data).values() if hasattr(x, "nbytes")) / 1e6, 1)
    rows, found = [], {}
    for at_once in given.workers:
        each, store = measured(at_once, given.data_dir)
        found[at_once] = {"workers": each, "store_MB": store}
        rows.append(
            (
                len(each),
                common.spread([w["rss"] for w in each], 0),
                common.spread([w["pss"] for w in each], 0),
                common.spread([w["store_rss"] for w in each], 1),
                f"{store:.1f}",
            )
        )
    header = (
        "workers",
        "RSS each, MB",
        "PSS each, MB",
        "store mapped by each, MB",
        "store in memory, MB",
    )
    common.publish("memory", given.out, {"workers": found}, common.table(header, rows), about)


if __name__ == "__main__":
    main()
