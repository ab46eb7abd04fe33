"""The curves of one training: a report per epoch, and their tensors in the files of warm-ups and checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qdtune.spec.tasks import ACCURACY, Metric

POINTS, OWNERS = "/points", "/owners"  # the tensors of the curves in a file; no tensor of a network has such a name


@dataclass
class TrainingLog:
    """The curves of the replicas so far. The curve of a replica ends if its loss is not finite."""

    seeds: tuple[int, ...]
    metric: Metric = ACCURACY
    entries: list[dict[str, Any]] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    shared: bool = False  # whether another trial trained the warm-up; that trial counts its seconds

    def add(self, phase: str, epoch: int, losses: list[float], values: list[float], seconds: float) -> dict[str, Any]:
        """Adds one epoch, which counts from 1; returns it as a report, with None for replicas that have ended."""
        report: dict[str, Any] = {"phase": phase, "epoch": epoch, "seconds": seconds}
        report |= {"train_loss": [], self.metric.val: []}
        for k, seed in enumerate(self.seeds):
            ended = k in self.dead
            if not (math.isfinite(losses[k]) and math.isfinite(values[k])):
                self.dead.add(k)
            loss, value = (None, None) if k in self.dead else (losses[k], values[k])
            check_value(self.metric, value)
            report["train_loss"].append(loss)
            report[self.metric.val].append(value)
            if not ended:
                entry = {"seed": seed, "phase": phase, "epoch": epoch, "train_loss": loss, self.metric.val: value}
                self.entries.append(entry | {"seconds": seconds / len(self.seeds)})
        return report | {"history": list(self.entries)}

    def of_seed(self, seed: int) -> list[dict[str, Any]]:
        """The entries of one replica."""
        return [e for e in self.entries if e["seed"] == seed]


def pack_log(log: TrainingLog) -> dict[str, Tensor]:
    """The curves as tensors: `POINTS` (entries, 4) and `OWNERS`, the place of each entry's seed."""
    names = ("epoch", "train_loss", log.metric.val, "seconds")
    points = [[math.nan if e[name] is None else e[name] for name in names] for e in log.entries]
    return {
        POINTS: torch.tensor(points, dtype=torch.float64).reshape(-1, len(names)),
        OWNERS: torch.tensor([log.seeds.index(e["seed"]) for e in log.entries], dtype=torch.int64),
    }


def unpack_log(tensors: Mapping[str, Tensor], log: TrainingLog, warmup_entries: int | None = None) -> None:
    """Adds the curves of `pack_log` to an empty log.

    Args:
        tensors: hold `POINTS` and `OWNERS`.
        log: of the same seeds and metric.
        warmup_entries: the number of entries that belong to the warm-up, which come first; None for all.
    """
    points, owners = tensors[POINTS].tolist(), tensors[OWNERS].tolist()
    for place, ((epoch, loss, value, seconds), k) in enumerate(zip(points, owners, strict=True)):
        phase = "warmup" if warmup_entries is None or place < warmup_entries else "qat"
        entry: dict[str, Any] = {"seed": log.seeds[k], "phase": phase, "epoch": int(epoch), "seconds": seconds}
        if math.isnan(loss):
            log.dead.add(k)
            entry |= {"train_loss": None, log.metric.val: None}
        else:
            entry |= {"train_loss": loss, log.metric.val: value}
        log.entries.append(entry)


def check_value(metric: Metric, value: float | None) -> None:
    """Raises AssertionError if a metric cannot have this value: every one of a result goes through here."""
    low, high = metric.bounds
    assert value is None or low <= value <= high, f"{metric.name} must be {low} to {high}, got {value}"
