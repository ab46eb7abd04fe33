"""The same sweep as a reader of Ray Tune's tutorials would write it: function trainable, DataLoader, ASHA.

    python tests/benchmarks/peer_tune.py DATA_DIR TRIALS

TRIALS of the 105 pairs of configuration and seed of grid.yaml, evenly spread. Prints the trained epochs, and the
seconds they took, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

import peers
import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def trainable(space: dict) -> None:
    import notebook

    config = space["trial"]
    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    train, test = notebook.loaders(Path(config["data"]))
    model = notebook.network(config["depth"], config["activation"])
    for epoch in range(peers.WARMUP + peers.QAT):
        if epoch == peers.WARMUP:
            notebook.set_bits(model, config["weight_bits"])
        notebook.epoch(model, train, 0.1 if epoch < peers.WARMUP else 0.01)
        tune.report({"accuracy": notebook.accuracy(model, test)})


def main() -> None:
    data, trials = sys.argv[1], int(sys.argv[2])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    configs = [config | {"data": data} for config in peers.sample(trials)]
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            metric="accuracy", mode="max", scheduler=ASHAScheduler(max_t=peers.WARMUP + peers.QAT, grace_period=1)
        ),
        run_config=tune.RunConfig(verbose=0),
    )
    began = time.perf_counter()
    results = tuner.fit()
    seconds = time.perf_counter() - began
    print(json.dumps({"epochs": sum(r.metrics["training_iteration"] for r in results), "seconds": seconds}))


if __name__ == "__main__":
    main()
