"""What the benchmarks share: repeated measurements, the machine they ran on, a table and a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("qdtune", "torch", "torchvision", "ray", "optuna", "pyarrow")
GRID = Path(__file__).parents[2] / "tests" / "data" / "recorded.yaml"


def arguments(description: str, repeats: int) -> argparse.ArgumentParser:
    """A parser with what every benchmark knows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--repeats", type=int, default=repeats, help="n of every median")
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("QDTUNE_DATA") or "data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for the JSON file")
    return parser


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median with min and max: `0.512 (0.498 to 0.530)`."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def machine() -> dict[str, Any]:
    """Versions, cores, and how busy the machine is with something else."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    cpu = platform.processor()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((s.partition(":")[2].strip() for s in info.read_text().splitlines() if "model name" in s), cpu)
    return {
        "python": platform.python_version(),
        **found,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def publish(name: str, out: Path, found: dict[str, Any], text: str, about: dict[str, Any]) -> None:
    """Prints the table, and writes it with all its numbers to OUT/NAME.json."""
    print(text)
    told = ", ".join(f"{key} {value}" for key, value in about.items() if value is not None)
    print(f"\n{told}\n{' '.join(['python', *sys.argv])}")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"machine": about, "command": sys.argv, **found}, indent=1) + "\n")
    print(f"written to {path}")
