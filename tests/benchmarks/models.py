"""Reads every model in `sweeps/reference/models` with `reader.py`, and compares its accuracy with that of its card.

    python tests/benchmarks/models.py --data-dir DIR

A card states the accuracy of its model on all test images, as the sweep measured it. Ends with 1 if one differs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from qdtune.datasets.known import dataset_of
from qdtune.reader import load

MODELS = Path(__file__).parents[2] / "sweeps" / "reference" / "models"
ROWS = 500  # at a time


def measure(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images (N, I) whose class (N,) a packed model finds."""
    model = load(path)
    parts = np.split(x, range(ROWS, len(x), ROWS))
    return float((np.concatenate([model.logits(part).argmax(1) for part in parts]) == y).mean())


def read(name: str, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The test images (N, I) of a data set, and their classes (N,)."""
    info = dataset_of(name)
    *_, x, y = info.read(info, folder)
    return x.reshape(len(x), -1), y


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("QDTUNE_DATA") or "data"))
    given = parser.parse_args()
    cards = {path: json.loads(path.with_suffix(".json").read_text()) for path in sorted(MODELS.glob("*.safetensors"))}
    tests = {name: read(name, given.data_dir) for name in {card["dataset"] for card in cards.values()}}
    different = 0
    print("| model | data | bytes | test accuracy | |\n|---|---|---|---|---|")
    for path, card in sorted(cards.items(), key=lambda item: item[1]["size_bytes"]):
        found, stated = measure(path, *tests[card["dataset"]]), card["accuracy"]["test"]
        different += found != stated
        answer = "equal" if found == stated else f"but {found:.2%} with reader.py"
        print(f"| {path.stem} | {card['dataset']} | {card['size_bytes']:,} | {stated:.2%} | {answer} |", flush=True)
    return 1 if different or not cards else 0


if __name__ == "__main__":
    sys.exit(main())
