"""One replica and epoch of networks with convolutions: qdtune, plain PyTorch, and the arithmetic alone.

    python tests/benchmarks/cnn.py --data-dir DIR

MNIST, batches of 256, Adam, one thread, core-seconds for one replica and 55,000 samples. The networks: `full 8`,
convolutions of 8, 12 and 16 channels with pooling between them, on images of 20 x 20 pixels; the others on 16 x 16:
`cnn 8` and `cnn 16`, a convolution and two depthwise ones of 8 or 16 channels, pooling after each of these, and a
hidden layer of 48; and one small network slid over the image (`window`). `qdtune` trains K replicas at once, QAT with
4-bit weights and 8-bit inputs, or the float warm-up. `plain float` is the same float network in the loop that people
write, with a DataLoader over images that lie ready in memory; `plain QAT` is qdtune's quantised network in that loop.
`products` are the matrix products of a step of K replicas and nothing else, of windows laid out before; `peak` is as
many multiply-adds at the speed of one product of large matrices. Rounds are interleaved, so that a busy minute of the
machine meets all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from qdtune.datasets.load import load
from qdtune.spec.blocks import CONV
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import known_before
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.training.cohort import Cohort
from qdtune.training.device import set_up_process
from qdtune.training.step import normalise
from qdtune.training.tensors import Tensors
from qdtune.training.train import make_cohort, make_floats, quantize_replicas

SAMPLES = 55_000
BATCH = 256
NETWORKS: dict[str, dict[str, Any]] = {
    "full 8": {"blocks": "[conv 8, pool, conv 12, pool, conv 16, mean]", "hidden": "[]", "side": 20},
    "cnn 8": {"blocks": "[conv 8, dw, pool, dw, pool]", "hidden": "[48]"},
    "cnn 16": {"blocks": "[conv 16, dw, pool, dw, pool]", "hidden": "[48]"},
    "window": {"blocks": "[conv 16 8x8 /4, pw 16, mean]", "hidden": "[]"},
}
SWEEP = """
version: 1
name: cnn
parameters:
  depth: {{value: 1}}
  resolution: {{value: {side}}}
  weight_bits: {{value: 4}}
  act_bits: {{value: 8}}
  scale: {{value: lsq}}
seeds: {seeds}
data: {{dataset: mnist, val_size: 5000}}
model: {{name: cnn, blocks: {blocks}, hidden: {hidden}, batch_norm: true}}
train:
  batch_size: {batch}
  warmup: {{epochs: 0}}
  qat: {{epochs: 1, optimizer: adam, lr: 0.003}}
"""
Run = Callable[[], int]  # trains, and returns how many samples it went through, times replicas


def read_trial(network: str, replicas: int) -> Configuration:
    settings = {"side": 16, **NETWORKS[network]}
    text = SWEEP.format(seeds=list(range(replicas)), batch=BATCH, **settings)
    (trial,) = plan(loads(text.encode(), "cnn.yaml")).trials
    return trial


def begin_phase(trial: Configuration, data: Tensors, phase: str) -> Cohort:
    """K replicas of qdtune, as a sweep trains them."""
    replicas = make_floats(trial, data)
    if phase == "warmup":
        trial = replace(trial, warmup=replace_phase(trial))
    else:
        quantize_replicas(replicas, trial, data)
    return make_cohort(replicas, trial, data, phase, "auto")


def replace_phase(trial: Configuration) -> Any:
    """A warm-up with the optimiser of QAT."""
    settings = {"epochs": 1, "optimizer": trial.qat.optimizer, "lr": trial.qat.lr}
    return trial.warmup.model_copy(update=settings)


def qdtune_epoch(trial: Configuration, data: Tensors, phase: str) -> Run:
    cohort = begin_phase(trial, data, phase)

    def run() -> int:
        cohort.train(0)
        return len(trial.seeds) * cohort.steps * BATCH

    return run


def plain_epoch(trial: Configuration, data: Tensors, is_quantised: bool) -> Run:
    """One replica in the loop that people write."""
    replicas = make_floats(replace(trial, seeds=(0,)), data)
    inputs = normalise(data.train_x)
    if is_quantised:
        quantize_replicas(replicas, trial, data)
    model = replicas[0].train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.003)
    loader = DataLoader(TensorDataset(inputs, data.train_y), batch_size=BATCH, shuffle=True, drop_last=True)

    def run() -> int:
        total = 0.0
        for x, y in loader:
            optimiser.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimiser.step()
            total += loss.item()
        return len(loader) * BATCH

    return run


def list_products(trial: Configuration) -> Iterator[tuple[int, int, int, int]]:
    """For each layer of K replicas: the number of products, and rows, inner size and columns of each."""
    k = len(trial.seeds)
    for layer in trial.cnn_layers or ():
        if layer.kind == CONV:
            rows = BATCH * layer.output[1] * layer.output[2]
            inner = layer.image[0] // layer.groups * layer.kernel**2
            yield k * layer.groups, rows, inner, layer.channels // layer.groups
    for layer in trial.structure.layers:
        if layer.kind == "linear":
            yield k, BATCH, layer.inputs, layer.outputs


def products_epoch(trial: Configuration, steps: int) -> Run:
    """The products of a step: forward, gradients of weights, and of inputs but for the first layer."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []
    for place, (n, rows, inner, columns) in enumerate(list_products(trial)):
        x, w, g = torch.randn(n, rows, inner), torch.randn(n, inner, columns), torch.randn(n, rows, columns)
        calls += [(x, w, torch.empty_like(g)), (x.transpose(1, 2), g, torch.empty_like(w))]
        if place:
            calls.append((g, w.transpose(1, 2), torch.empty_like(x)))

    def run() -> int:
        for _ in range(steps):
            for a, b, out in calls:
                torch.bmm(a, b, out=out)
        return len(trial.seeds) * steps * BATCH

    return run


def peak_epoch(trial: Configuration) -> Run:
    """Products of large matrices with three times the multiply-adds of a number of samples."""
    a, b, out = (torch.randn(512, 512) for _ in range(3))
    macs = known_before(trial)["macs"]

    def run() -> int:
        for _ in range(20):
            torch.mm(a, b, out=out)
        return round(20 * 512**3 / (3 * macs))

    return run


def list_runs(network: str, data: Tensors, replicas: int, steps: int) -> dict[str, Run]:
    trial = read_trial(network, replicas)
    data = data.averaged(trial.averaging)
    return {
        f"qdtune QAT, K={replicas}": qdtune_epoch(trial, data, "qat"),
        f"qdtune float, K={replicas}": qdtune_epoch(trial, data, "warmup"),
        "plain float": plain_epoch(trial, data, is_quantised=False),
        "plain QAT": plain_epoch(trial, data, is_quantised=True),
        "products": products_epoch(trial, max(1, steps // 8)),
        "peak": peak_epoch(trial),
    }


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--replicas", type=int, default=5, help="K")
    parser.add_argument("--rows", type=int, default=10_240, help="training samples of a round; times are scaled")
    given = parser.parse_args()
    about = common.machine()
    set_up_process(1)
    torch.manual_seed(0)
    data = Tensors.of(load(["mnist"], given.data_dir, 5000)[0], torch.device("cpu"))
    data = replace(data, train_x=data.train_x[: given.rows], train_y=data.train_y[: given.rows])

    runs: dict[tuple[str, str], Run] = {}
    for network in given.networks:
        made = list_runs(network, data, given.replicas, given.rows // BATCH)
        runs |= {(network, what): run for what, run in made.items()}
    for run in runs.values():  # on tape, and warm
        run()
    took: dict[tuple[str, str], list[float]] = {what: [] for what in runs}
    for _ in range(given.repeats):
        for what, run in runs.items():
            began = time.process_time()
            done = run()
            took[what].append((time.process_time() - began) * SAMPLES / done)

    rows, found = [], []
    for (network, what), times in took.items():
        middle, plain, floor = (statistics.median(took[network, name]) for name in (what, "plain float", "products"))
        rows.append([network, what, common.spread(times), f"{plain / middle:.1f}", f"{middle / floor:.1f}"])
        found.append({"network": network, "what": what, "core_seconds": times})
    header = ["network", "what", f"core-s per replica-epoch, n = {given.repeats}", "plain float / this"]
    about["unit"] = f"{SAMPLES:,} samples, batch {BATCH}, one thread, {given.rows:,} samples a round"
    common.publish("cnn", given.out, {"results": found}, common.table([*header, "this / products"], rows), about)


if __name__ == "__main__":
    main()
