"""Float warm-ups that configurations share: their store, as training sees it, and the file of one."""

from __future__ import annotations

from typing import Protocol

import safetensors.torch
import torch
from torch import nn

from qdtune.model.signed_file import find_fault, sign_file, split_file
from qdtune.training.training_log import OWNERS, POINTS, TrainingLog, pack_log, unpack_log


class Warmups(Protocol):
    """A store of float warm-ups, so that configurations that differ only in quantisation train them once."""

    def claim(self, key: str) -> bytes | None:
        """The kept warm-up; None if the caller has to train it and `keep` it."""

    def keep(self, key: str, blob: bytes) -> None:
        """Keeps a warm-up that the caller has claimed."""


class NoWarmups:
    """A store that keeps no warm-ups."""

    def claim(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, blob: bytes) -> None:
        pass


def pack_warmup(replicas: list[nn.Module], log: TrainingLog) -> bytes:
    """The tensors and the curves of K warmed-up replicas as one safetensors file."""
    states = [replica.state_dict() for replica in replicas]
    tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return sign_file(*split_file(safetensors.torch.save(tensors | pack_log(log))))


def unpack_warmup(blob: bytes, replicas: list[nn.Module], log: TrainingLog) -> bool:
    """Copies a kept warm-up into fresh replicas and its curves into the log; returns False if the file is damaged."""
    if find_fault(blob):
        return False
    try:
        tensors = safetensors.torch.load(blob)
    except safetensors.SafetensorError:
        return False
    curves = {name: tensors.pop(name) for name in (POINTS, OWNERS)}
    for k, replica in enumerate(replicas):
        replica.load_state_dict({name: t[k] for name, t in tensors.items()})
    unpack_log(curves, log)
    log.shared = True
    return True
