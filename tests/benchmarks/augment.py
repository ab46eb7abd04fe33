"""What distorting the images of an epoch costs beside the epoch itself.

    python tests/benchmarks/augment.py --data-dir DIR

MNIST, 55,000 images, as they are (784-64-10) and averaged down to 16 x 16 pixels (256-64-10), 2 bits, `batch_norm`,
Adam, B = 128, K = 3 and 5 replicas in a compiled step, one thread. Core-seconds of an epoch without distortions and
of the distortions alone, which are made once for all K replicas; medians of n rounds, which are interleaved.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from common import arguments, machine, publish, spread, table

from qdtune.datasets.load import load
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.training.cohort import Cohort
from qdtune.training.tensors import Tensors
from qdtune.training.train import make_cohort, make_floats, quantize_replicas

KINDS = (("affine", 0.0), ("affine", 0.5), ("affine_elastic", 0.0), ("elastic", 0.0), ("shift", 0.0))
SWEEP = """
version: 1
name: augment
parameters:
  depth: {{value: 1}}
  weight_bits: {{value: 2}}
  scale: {{value: lsq}}
  hidden: {{value: 64}}
  resolution: {{value: {resolution}}}
seeds: {seeds}
data: {{dataset: mnist, val_size: 5000}}
model: {{batch_norm: true}}
train:
  batch_size: 128
  warmup: {{epochs: 0}}
  qat: {{epochs: 1, optimizer: adam, lr: 0.005}}
"""


def begin_qat(data: Tensors, resolution: str, replicas: int) -> Cohort:
    text = SWEEP.format(resolution=resolution, seeds=list(range(replicas)))
    (trial,) = plan(loads(text.encode(), "augment.yaml")).trials
    data = data.averaged(trial.averaging)
    models = make_floats(trial, data)
    quantize_replicas(models, trial, data)
    return make_cohort(models, trial, data, "qat", "always")


def distorter(data: Tensors, augment: str, plain_share: float) -> Callable[[], object]:
    found = torch.empty_like(data.train_x)  # a training fills the same memory in every epoch
    return lambda: data.distort(augment, torch.Generator().manual_seed(0), plain_share, out=found)


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--rows", type=int, default=55_000, help="training samples of an epoch")
    options = parser.parse_args()
    about = machine()
    torch.set_num_threads(1)
    data = Tensors.of(load(["mnist"], options.data_dir, 5000)[0], torch.device("cpu"))
    data = replace(data, train_x=data.train_x[: options.rows], train_y=data.train_y[: options.rows])
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for resolution, network in (("null", "784-64-10"), ("16", "256-64-10")):
        for k in (3, 5):
            cohort = begin_qat(data, resolution, k)
            runs[network, f"epoch, K={k}"] = lambda cohort=cohort: cohort.train(0)
        for augment, share in KINDS:
            name = f"{augment}, half plain" if share else augment
            runs[network, name] = distorter(cohort.data, augment, share)
    for run in runs.values():  # compiled, and warm
        run()
    took: dict[tuple[str, str], list[float]] = {what: [] for what in runs}
    for _ in range(options.repeats):
        for what, run in runs.items():
            began = time.process_time()
            run()
            took[what].append(time.process_time() - began)
    rows = []
    for (network, name), times in took.items():
        middle = statistics.median(times)
        shares = [f"{middle / statistics.median(took[network, f'epoch, K={k}']):.0%}" for k in (3, 5)]
        rows.append([network, name, spread(times), *([""] * 2 if name.startswith("epoch") else shares)])
    header = ["network", "", f"core-s, n = {options.repeats}", "of an epoch, K = 3", "K = 5"]
    found = {f"{network}, {name}": times for (network, name), times in took.items()}
    publish("augment", options.out, {"seconds": found}, table(header, rows), about)


if __name__ == "__main__":
    main()
