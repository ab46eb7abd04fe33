"""The same sweep with Optuna alone: study.optimize with two jobs (threads), tensors on the device, median pruner.

    python tests/benchmarks/peer_optuna.py DATA_DIR

One seed of each of the 35 configurations of tests/data/recorded.yaml. Prints the trained epochs and their
seconds as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import notebook
import optuna
import peers
import torch
import torch.nn.functional as F

from qdtune.datasets.load import load


def main() -> None:
    configs = peers.configurations()
    peers.seeded()
    data, _ = load(["mnist"], Path(sys.argv[1]), 5000)
    x, val_x = (torch.from_numpy(a.copy()).float() / 127.5 - 1 for a in (data.train_x, data.val_x))
    y, val_y = (torch.from_numpy(a.copy()) for a in (data.train_y, data.val_y))
    epochs = []

    def objective(trial: optuna.Trial) -> float:
        config = configs[trial.suggest_int("trial", 0, len(configs) - 1)]
        generator = torch.Generator().manual_seed(0)
        model = peers.network(config["depth"], config["activation"])
        accuracy = 0.0
        for epoch in range(peers.WARMUP + peers.QAT):
            if epoch == peers.WARMUP:
                notebook.set_bits(model, config["weight_bits"])
            optimiser = torch.optim.SGD(model.parameters(), lr=0.1 if epoch < peers.WARMUP else 0.01)
            for batch in torch.randperm(len(x), generator=generator).split(64):
                loss = F.cross_entropy(model(x[batch]), y[batch])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            with torch.no_grad():
                accuracy = (model(val_x).argmax(1) == val_y).float().mean().item()
            epochs.append(1)
            trial.report(accuracy, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return accuracy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.GridSampler({"trial": list(range(len(configs)))}, seed=0)
    # Two of 35 trials run unjudged, as five (its default) of the 105 would.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    began = time.perf_counter()
    study.optimize(objective, n_trials=len(configs), n_jobs=2)
    print(json.dumps({"epochs": len(epochs), "seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
