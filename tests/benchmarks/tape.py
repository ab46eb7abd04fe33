"""A training step that is not compiled, run as it is and played from a tape, beside the compiled one.

    python tests/benchmarks/tape.py --data-dir DIR

K = 5 replicas, B = 128, one thread: digits (64-24-10) and MNIST (784-24-10), the float warm-up and QAT at 2 bits,
depth 1 and 3. Milliseconds of CPU time per step: medians of n rounds, which are interleaved. The numbers of `plain`
and `tape` are the same to the last bit. The compiled step is made before the clock starts.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from common import arguments, machine, publish, spread, table

from qdtune.datasets.load import load
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.training import cohort, compiled, train
from qdtune.training.cohort import Cohort
from qdtune.training.tensors import Tensors
from qdtune.training.warmups import NoWarmups

STEPS = 40  # of a round
SWEEP = """
version: 1
name: tape
parameters:
  depth: {{value: {depth}}}
  weight_bits: {{value: 2}}
  activation: {{value: relu}}
  hidden: {{value: 24}}
  scale: {{value: lsq}}
seeds: [0, 1, 2, 3, 4]
data: {{dataset: {dataset}, val_size: 200}}
model: {{batch_norm: factors}}
train:
  batch_size: 128
  warmup: {{epochs: 1, optimizer: adam, lr: 0.005}}
  qat: {{epochs: 1, optimizer: adam, lr: 0.005}}
"""


def cohorts(data: Tensors, dataset: str, depth: int, plain_calls: int, compile: str) -> dict[str, Cohort]:
    """The cohorts of the two phases of one training, after it."""
    made: dict[str, Cohort] = {}
    make = train.make_cohort

    def keep(*given: object) -> Cohort:
        made[given[3]] = make(*given)
        return made[given[3]]

    for module in (cohort, compiled):
        module.PLAIN_CALLS = plain_calls
    train.make_cohort = keep
    (trial,) = plan(loads(SWEEP.format(depth=depth, dataset=dataset).encode(), "tape.yaml")).trials
    for _ in train.train_configuration(trial, data, NoWarmups(), compile):
        pass
    train.make_cohort = make
    return made


def stepper(one: Cohort) -> Callable[[], None]:
    """A function that makes some steps on random batches."""
    batches = torch.randint(len(one.data.train_x), (STEPS, len(one.losses), one.batch_size))
    rate = torch.tensor(0.001)

    def step() -> None:
        one.template.train()
        for batch in batches:
            one.step(batch, rate)

    return step


def main() -> None:
    options = arguments(__doc__.splitlines()[0], repeats=5).parse_args()
    about = machine()
    torch.set_num_threads(1)
    rows, found = [], {}
    for dataset in ("digits", "mnist"):
        data = Tensors.of(load([dataset], options.data_dir, 200)[0], torch.device("cpu"))
        for depth in (1, 3):
            ways = {"plain": (10**9, "never"), "tape": (1, "never"), "compiled": (1, "always")}
            made = {way: cohorts(data, dataset, depth, *how) for way, how in ways.items()}
            for phase in ("warmup", "qat"):
                steppers = {way: stepper(made[way][phase]) for way in ways}
                times: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(options.repeats):
                    for way, step in steppers.items():
                        began = time.process_time()
                        step()
                        times[way].append((time.process_time() - began) / STEPS * 1000)
                found[f"{dataset} depth {depth} {phase}"] = times
                rows.append([f"{dataset}, depth {depth}, {phase}", *(spread(times[way], 2) for way in ways)])
    publish("tape", options.out, found, table(["", *(f"{way}, ms" for way in ways)], rows), about)


if __name__ == "__main__":
    main()
