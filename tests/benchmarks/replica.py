"""One replica and epoch of MNIST: the notebook's loop, tensors in eager PyTorch, qdtune, and the arithmetic alone.

    python tests/benchmarks/replica.py --data-dir DIR

In core-seconds (CPU time of one thread), divided by K where K replicas train together; rounds are interleaved, so
that a busy minute of the machine meets all of them. The floor is the matrix products of a step and nothing else.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import common
import notebook
import torch
import torch.nn.functional as F
from torch import nn

from qdtune.datasets.load import load
from qdtune.model import networks
from qdtune.model.factored import decompose
from qdtune.model.quantize import quantize
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.groups import Qat
from qdtune.spec.sizes import factor_dims
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.step import StepShape
from qdtune.training.tensors import Tensors

BATCH = 64
BITS = 4
WIDTHS = (784, 24, 10)
PHASES = ("warmup", "qat")


def notebook_epoch(root: Path, depth: int, phase: str) -> Callable[[], int]:
    """The notebook's loop; the function returns how many samples it went through."""
    loader, _ = notebook.loaders(root, BATCH)
    model = notebook.network(depth)
    notebook.set_bits(model, BITS if phase == "qat" else None)

    def run() -> int:
        notebook.epoch(model, loader, 0.01)
        return len(loader.dataset)  # type: ignore[arg-type]

    return run


def eager_epoch(data: Tensors, depth: int, phase: str) -> Callable[[], int]:
    """The same network and optimiser, but the data lie on the device as a tensor and the loss is read once."""
    model = notebook.network(depth)
    notebook.set_bits(model, BITS if phase == "qat" else None)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    x = data.train_x.float() / 127.5 - 1

    def run() -> int:
        total = torch.zeros(())
        for batch in torch.randperm(len(x)).split(BATCH):
            loss = F.cross_entropy(model(x[batch]), data.train_y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        total.item()
        return len(x)

    return run


def cohort(data: Tensors, depth: int, phase: str, replicas: int) -> Cohort:
    """K replicas of qdtune, compiled."""
    modules: list[nn.Module] = []
    for seed in range(replicas):
        model = networks.build_mlp(WIDTHS[0], WIDTHS[1:-1], WIDTHS[-1], seed=seed)
        decompose(model, depth, "identity", "orthogonal", make_generator("init", seed))
        modules.append(quantize(model, BITS if phase == "qat" else FLOAT_BITS))
    floats = phase == "warmup"
    form = {"hidden": WIDTHS[1:-1], "batch_norm": False, "depth": depth, "activation": "identity"}
    shape = StepShape(
        WIDTHS[0], WIDTHS[-1], **form, float_weights=floats, float_inputs=True, optimizer="sgd", momentum=0.0
    )
    return Cohort(modules, shape, Qat(epochs=1, lr=0.01), tuple(range(replicas)), phase, data, BATCH, True)


def qdtune_epoch(data: Tensors, depth: int, phase: str, replicas: int) -> Callable[[], int]:
    trained = cohort(data, depth, phase, replicas)

    def run() -> int:
        trained.train(0)
        return replicas * trained.steps * BATCH

    return run


def floor_epoch(depth: int, replicas: int, steps: int = 859) -> Callable[[], int]:
    """The matrix products of one step: forward, gradients of weights, and of inputs but for the first factor."""
    shapes = [pair for i, o in pairwise(WIDTHS) for pair in pairwise(factor_dims(i, o, depth))]
    calls = []
    for k, (i, o) in enumerate(shapes):
        x, w, g = (torch.randn(replicas, *shape) for shape in ((BATCH, i), (o, i), (BATCH, o)))
        y, dw, dx = (torch.empty(replicas, *shape) for shape in ((BATCH, o), (o, i), (BATCH, i)))
        calls.append((x, w.transpose(1, 2), y))
        calls.append((g.transpose(1, 2), x, dw))
        if k:
            calls.append((g, w, dx))

    def run() -> int:
        for _ in range(steps):
            for a, b, out in calls:
                torch.bmm(a, b, out=out)
        return replicas * steps * BATCH

    return run


def seconds_per_epoch(run: Callable[[], int], samples: int) -> float:
    """Core-seconds for one replica and `samples` samples."""
    began = time.process_time()
    done = run()
    return (time.process_time() - began) * samples / done


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 3, 5, 8, 16], help="K, at depth 2; else 5")
    given = parser.parse_args()
    about = common.machine()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = Tensors.of(load(["mnist"], given.data_dir, 5000)[0], torch.device("cpu"))
    samples = len(data.train_x)

    runs: dict[tuple[int, str, str], Callable[[], int]] = {}
    for depth in given.depths:
        for phase in PHASES:
            runs[depth, phase, "notebook"] = notebook_epoch(given.data_dir, depth, phase)
            runs[depth, phase, "eager"] = eager_epoch(data, depth, phase)
            for k in given.replicas if depth == 2 else [5]:
                runs[depth, phase, f"qdtune K={k}"] = qdtune_epoch(data, depth, phase, k)
                runs[depth, phase, f"floor K={k}"] = floor_epoch(depth, k)
    for what, run in runs.items():  # compiled, and warm
        if what[2] != "notebook":
            run()
    took: dict[tuple[int, str, str], list[float]] = {what: [] for what in runs}
    for _ in range(given.repeats):
        for what, run in runs.items():
            took[what].append(seconds_per_epoch(run, samples))

    rows, found = [], []
    for (depth, phase, name), times in took.items():
        middle = statistics.median(times)
        base = statistics.median(took[depth, phase, "notebook"])
        floor = took.get((depth, phase, name.replace("qdtune", "floor")))
        above = f"{middle / statistics.median(floor):.1f}" if floor and name.startswith("qdtune") else ""
        rows.append((depth, phase, name, common.spread(times), f"{base / middle:.0f}", above))
        found.append({"depth": depth, "phase": phase, "what": name, "core_seconds": times})
    header = (
        "depth",
        "phase",
        "what",
        f"core-s per replica-epoch, n = {given.repeats}",
        "notebook / this",
        "this / floor",
    )
    about["unit"] = f"{samples:,} samples, batch {BATCH}, {BITS} bits, one thread"
    results: dict[str, Any] = {"results": found}
    common.publish("replica", given.out, results, common.table(header, rows), about)


if __name__ == "__main__":
    main()
