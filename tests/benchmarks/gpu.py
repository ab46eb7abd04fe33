"""On a GPU: cohorts of 1 to 512 replicas, fractions of 1 to 1/8 as real processes, and a loop like the notebook's.

    python tests/benchmarks/gpu.py --data-dir DIR [--out DIR]

Needs torch (2.11 or newer) and numpy, and MNIST's four idx files under DIR/MNIST/raw; where they are missing, random
numbers of the same shape take their place, which is said. Four ways of a step: eager, eager captured as a CUDA graph,
compiled, and compiled and captured; qdtune takes the last one for long phases and the second one for short ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qdtune.model import networks
from qdtune.model.factored import decompose
from qdtune.model.quantize import quantize
from qdtune.training.cohort import Cohort, make_generator
from qdtune.training.compiled import make_eager_step
from qdtune.training.step import StepShape
from qdtune.training.tensors import Tensors

BATCH = 64
BITS = 4
WAYS = ("eager", "eager, graph", "compiled", "compiled, graph")
QAT = SimpleNamespace(epochs=1, lr=0.01, schedule="constant", augment="none")


def mnist(root: Path) -> tuple[tuple[np.ndarray, np.ndarray], bool]:
    """55,000 training images (N, 784) with labels, and whether they are real."""
    folder = root / "MNIST" / "raw"
    try:
        x = np.frombuffer((folder / "train-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 784)
        y = np.frombuffer((folder / "train-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8).astype(np.int64)
        return (x[:55_000].copy(), y[:55_000]), True
    except OSError:
        random = np.random.default_rng(0)
        return (random.integers(0, 256, (55_000, 784), np.uint8), random.integers(0, 10, 55_000)), False


def tensors(root: Path, device: torch.device) -> tuple[Tensors, bool]:
    (x, y), real = mnist(root)
    on_device = [torch.from_numpy(a).to(device) for a in (x, y)]
    few = [t[:5000] for t in on_device]
    return Tensors(*on_device, *few, *few, inputs=784, classes=10), real


def cohort(data: Tensors, depth: int, replicas: int, way: str) -> Cohort:
    """K replicas of 784-24-10 in QAT, whose step runs in one of `WAYS`."""
    modules: list[nn.Module] = []
    for seed in range(replicas):
        model = networks.build_mlp(784, (24,), 10, seed=seed)
        decompose(model, depth, "identity", "orthogonal", make_generator("init", seed))
        modules.append(quantize(model, BITS))
    shape = StepShape(784, 10, (24,), False, depth, "identity", False, True, "sgd", 0.0)
    made = Cohort(modules, shape, QAT, tuple(range(replicas)), "qat", data, BATCH, way == "compiled, graph")  # type: ignore[arg-type]
    if way in ("eager", "compiled"):  # else the cohort makes what it would take itself
        made.template.train()
        state = (made.params, made.buffers, shape.make_optimiser_state(made.params), made.losses)
        step = torch.compile(made.function, dynamic=False) if way == "compiled" else made.function
        made.step = make_eager_step(step, state, (data.train_x, data.train_y))
    return made


def timed(run: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - began


def epochs(data: Tensors, depth: int, replicas: int, way: str, repeats: int) -> dict[str, Any]:
    """Seconds per epoch of a cohort, after one that warms up (and compiles), and the memory it reached."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    made = cohort(data, depth, replicas, way)
    first = timed(lambda: made.train(0))
    times = [timed(lambda: made.train(0)) for _ in range(repeats)]
    peak = torch.cuda.max_memory_reserved()
    return {"replicas": replicas, "way": way, "depth": depth, "first_s": first, "epoch_s": times, "peak_bytes": peak}


def notebook_epoch(data: Tensors, steps: int) -> float:
    """Seconds per epoch of a plain loop of one network here, the loss read in every step; so many steps are timed."""
    model = networks.build_mlp(784, (24,), 10, seed=0)
    decompose(model, 2, "identity", "default", make_generator("init", 0))
    model = quantize(model, BITS, None, "minmax").to(data.train_x.device)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)
    images = data.train_x.cpu()  # as a DataLoader hands them over: from the host, batch by batch
    labels = data.train_y.cpu()

    def run() -> None:
        for batch in torch.randperm(len(images)).split(BATCH)[:steps]:
            x = (images[batch].float() / 127.5 - 1).to(data.train_x.device)
            loss = F.cross_entropy(model(x), labels[batch].to(data.train_x.device))
            loss.item()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    run()
    return timed(run) * (len(images) // BATCH) / steps


def sharer(root: Path, fraction: float, replicas: int, barrier: Path, count: int) -> None:
    """One of `count` processes on a share of the GPU: prints seconds per epoch while all of them train."""
    torch.cuda.set_per_process_memory_fraction(fraction)
    data, _ = tensors(root, torch.device("cuda"))
    made = cohort(data, 2, replicas, "compiled, graph")
    made.train(0)
    torch.cuda.synchronize()
    (barrier / f"{id(made)}-{time.time_ns()}").touch()
    while len(list(barrier.iterdir())) < count:
        time.sleep(0.01)
    times = [timed(lambda: made.train(0)) for _ in range(5)]
    print(json.dumps({"epoch_s": times, "peak_bytes": torch.cuda.max_memory_reserved()}))


def shared(root: Path, count: int, replicas: int) -> dict[str, Any]:
    """`count` processes of `replicas` replicas each at once, each capped to its share of the memory."""
    import tempfile

    with tempfile.TemporaryDirectory() as barrier:
        command = [sys.executable, __file__, "--data-dir", str(root), "--sharer", f"{1 / count}"]
        command += ["--barrier", barrier, "--count", str(count), "--replicas", str(replicas)]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):  # the others would wait for it
                for process in running:
                    process.kill()
            time.sleep(0.1)
        if any(process.returncode for process in running):
            return {"processes": count, "replicas": replicas, "epoch_s": float("nan"), "each": []}
        told = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    middle = statistics.median(t for one in told for t in one["epoch_s"])
    return {"processes": count, "replicas": replicas, "epoch_s": middle, "each": told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 5, 8, 16, 32, 64, 128, 256, 512])
    parser.add_argument("--fractions", type=int, nargs="+", default=[1, 2, 4, 8], help="processes on the one GPU")
    parser.add_argument("--replicas", type=int, default=3, help="K in each of the processes")
    parser.add_argument("--sharer", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--barrier", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: no GPU that torch can use")
    torch.set_num_threads(1)
    if given.sharer:
        sharer(given.data_dir, given.sharer, given.replicas, given.barrier, given.count)
        return
    data, real = tensors(given.data_dir, torch.device("cuda"))
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "data": "MNIST" if real else "random numbers of MNIST's shape: no idx files found",
        "notebook_epoch_s": [notebook_epoch(data, 200) for _ in range(given.repeats)],
        "cohorts": [],
        "shared": [],
    }
    given.out.mkdir(parents=True, exist_ok=True)
    base = statistics.median(found["notebook_epoch_s"])
    print(f"{found['device']}, torch {found['torch']}, CUDA {found['cuda']}, {found['data']}, n = {given.repeats}")
    print(f"\nplain loop, one network: {base:.2f} s per epoch\n")
    print(
        "| depth | K | step | s per epoch (min to max) | per replica | plain loop / this | first epoch, s | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|")

    def note(depth: int, size: int, way: str) -> None:
        try:
            one = epochs(data, depth, size, way, given.repeats)
        except torch.OutOfMemoryError:
            print(f"| {depth} | {size} | {way} | out of memory | | | | |", flush=True)
            return
        found["cohorts"].append(one)
        middle, low, high = statistics.median(one["epoch_s"]), min(one["epoch_s"]), max(one["epoch_s"])
        print(
            f"| {depth} | {size} | {way} | {middle:.3f} ({low:.3f} to {high:.3f}) | {middle / size:.4f} "
            f"| {base * size / middle:.0f} | {one['first_s']:.1f} | {one['peak_bytes'] / 1e6:.0f} |",
            flush=True,
        )
        (given.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")

    for way in WAYS:
        note(2, 5, way)
    for size in given.sizes:
        note(2, size, "compiled, graph")
    print("\n| processes on the GPU | K each | s per epoch of each | replica-epochs per second, all |")
    print("|---|---|---|---|")
    for count in given.fractions:
        one = shared(given.data_dir, count, given.replicas)
        found["shared"].append(one)
        rate = count * given.replicas / one["epoch_s"]
        print(f"| {count} | {given.replicas} | {one['epoch_s']:.3f} | {rate:.1f} |", flush=True)
    (given.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
