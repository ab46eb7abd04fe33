"""One configuration with everything that changes its result, and the hashes by which its files are found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from qdtune.ledger import Ledger, factor_dims, mlp_ledger
from qdtune.names import AXES, DATASETS, text_of
from qdtune.schema import Phase

RESULTS_VERSION = 1  # raise it when the same configuration would give other numbers: old results then do not count


@dataclass(frozen=True)
class Trial:
    """One configuration, with everything that changes its result.

    Attributes:
        depth: factors per layer.
        weight_bits, act_bits: bits of weights (32: float) and of layer inputs (None: float).
        activation: what stands between the factors of one layer.
        scale, factor_init: how step sizes and first weights are chosen.
        hidden: widths of the hidden layers before factorisation.
        batch_norm: whether each hidden layer is normalised.
        dataset, val_size: what it is trained on, and how many training samples judge it.
        batch_size: samples per step.
        warmup, qat: float training, then quantised training; their `lr` is this configuration's own.
        seeds: one replica each, trained together.
    """

    depth: int
    weight_bits: int
    activation: str
    act_bits: int | None
    scale: str
    factor_init: str
    hidden: tuple[int, ...]
    batch_norm: bool
    dataset: str
    val_size: int
    batch_size: int
    warmup: Phase
    qat: Phase
    seeds: tuple[int, ...]

    @cached_property
    def trial_id(self) -> str:
        """12 hexadecimal digits, the same for the same configuration on any machine."""
        return _digest(self.to_dict())

    @property
    def warmup_base(self) -> Trial:
        """What is warmed up: this network, or with `svd` the undivided one, for all depths, which is split then."""
        if self.factor_init != "svd":
            return self
        return replace(self, depth=1, activation="identity", factor_init="default")

    @property
    def warmup_id(self) -> str:
        """As `trial_id`, over what the float warm-up depends on: neither bits nor scale nor QAT."""
        data = self.warmup_base.to_dict()
        return _digest({key: data[key] for key in data.keys() - {"weight_bits", "act_bits", "scale", "qat"}})

    @property
    def values(self) -> dict[str, Any]:
        """The nine axes, typed."""
        rates = {"warmup_lr": self.warmup.lr, "qat_lr": self.qat.lr}
        return {axis: rates[axis] if axis in rates else getattr(self, axis) for axis in AXES}

    @property
    def config(self) -> dict[str, Any]:
        """The nine axes as they stand in tables; hidden widths as text: '64-32'."""
        return self.values | {"hidden": text_of(self.hidden)}

    @property
    def ledger(self) -> Ledger:
        """The bytes of one replica."""
        return _ledger(self.dataset, self.hidden, self.batch_norm, self.depth, self.weight_bits, self.act_bits)

    @property
    def label(self) -> str:
        """The configuration in a few words: `d2 w1 relu`."""
        inputs = "" if self.act_bits is None else f" a{self.act_bits}"
        return f"d{self.depth} w{self.weight_bits}{inputs} {self.activation}"

    @property
    def columns(self) -> dict[str, Any]:
        """What a row of the tables says of a configuration before it is trained."""
        ledger, widths = self.ledger, (DATASETS[self.dataset].inputs, *self.hidden, DATASETS[self.dataset].classes)
        return {
            "trial_id": self.trial_id,
            **self.config,
            "dataset": self.dataset,
            "params": ledger.params,
            "size_bytes": ledger.size_bytes,
            "weight_bytes": ledger.weight_bytes,
            "scale_bytes": ledger.scale_bytes,
            "bias_bytes": ledger.bias_bytes,
            "fp32_bytes": ledger.fp32_bytes,
            "inner_dims": [list(factor_dims(i, o, self.depth)[1:-1]) for i, o in pairwise(widths)],
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what `trial_id` hashes."""
        data = {field.name: getattr(self, field.name) for field in fields(self)}
        phases = {"warmup": self.warmup.model_dump(), "qat": self.qat.model_dump()}
        return data | phases | {"hidden": list(self.hidden), "seeds": list(self.seeds)}


def _digest(data: Mapping[str, Any]) -> str:
    text = json.dumps({**data, "results_version": RESULTS_VERSION}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=100_000)  # as many as the largest grid has points
def _ledger(
    dataset: str, hidden: tuple[int, ...], batch_norm: bool, depth: int, weight_bits: int, act_bits: int | None
) -> Ledger:
    # A grid names a size many times: once per activation, scale, init and learning rate.
    info = DATASETS[dataset]
    return mlp_ledger(
        info.inputs,
        hidden,
        info.classes,
        depth=depth,
        weight_bits=weight_bits,
        act_bits=act_bits,
        batch_norm=batch_norm,
    )
