"""The same sweep as a reader of Ray Tune's tutorials would write it: function trainable, DataLoader, ASHA.

    python tests/benchmarks/peer_tune.py DATA_DIR

One seed of each of the 35 configurations of tests/data/recorded.yaml. Prints the trained epochs and their
seconds as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ |= {"RAY_worker_niceness": "0"}  # as in qdtune

import peers
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def trainable(space: dict) -> None:
    import notebook
    from torch.utils.data import DataLoader, Subset
    from torchvision import datasets, transforms

    config = space["trial"]
    peers.seeded()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,), (0.5,))])
    images = datasets.MNIST(config["data"], train=True, transform=transform)
    train = DataLoader(Subset(images, range(peers.TRAIN)), batch_size=64, shuffle=True)
    held_out = DataLoader(Subset(images, range(peers.TRAIN, len(images))), batch_size=1000)
    model = peers.network(config["depth"], config["activation"])
    for epoch in range(peers.WARMUP + peers.QAT):
        if epoch == peers.WARMUP:
            notebook.set_bits(model, config["weight_bits"])
        notebook.epoch(model, train, 0.1 if epoch < peers.WARMUP else 0.01)
        tune.report({"accuracy": notebook.accuracy(model, held_out)})


def main() -> None:
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    configs = [config | {"data": sys.argv[1]} for config in peers.configurations()]
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
