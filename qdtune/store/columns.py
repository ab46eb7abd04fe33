"""The columns of the tables in a run folder."""

from __future__ import annotations

import pyarrow as pa

from qdtune.spec.axes import AXES
from qdtune.spec.objectives import KNOWN_BEFORE, OBJECTIVES

# Rises with every column, an axis among them: a file of this version has them all, an older one reads as null, or as
# `Axis.before` has it.
FIRST_VERSION = 5  # from here on the version is that of the newest axis or objective
SCHEMA_VERSION = max(FIRST_VERSION, *(one.since for one in (*AXES, *OBJECTIVES)))
STATES = ("ok", "pruned", "diverged", "timeout", "oom", "failed")  # from best to worst
# The other states may come out differently another time, so they run again on the next launch.
FINAL = frozenset({"ok", "pruned", "diverged"})
_ARROW = {"int32": pa.int32(), "float64": pa.float64(), "string": pa.string()}
_AXES = [(axis.name, _ARROW[axis.column]) for axis in AXES]
TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("seed", pa.int64()),
        ("dataset", pa.string()),
        ("model", pa.string()),  # mlp, or the user's factory
        ("state", pa.string()),
        ("epochs", pa.int32()),
        ("train_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("test_accuracy", pa.float64()),
        ("float_val_accuracy", pa.float64()),
        *[(one.name, pa.int64()) for one in KNOWN_BEFORE],
        ("inner_dims", pa.list_(pa.list_(pa.int32()))),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("error", pa.string()),
        ("pruned_by", pa.string()),  # a trial_id, or the rule where no single trial beat it
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("finished_at", pa.timestamp("us", tz="UTC")),
        ("attempt", pa.int32()),
    ]
)
HISTORY = pa.schema(
    [
        ("trial_id", pa.string()),
        ("seed", pa.int64()),
        ("phase", pa.string()),  # warmup | qat
        ("epoch", pa.int32()),  # 1-based within its phase
        ("train_loss", pa.float64()),
        ("val_accuracy", pa.float64()),
        ("seconds", pa.float64()),
    ]
)
_LATER = tuple(one.name for one in KNOWN_BEFORE if one.since > FIRST_VERSION)
_SHARED = ("trial_id", "model", "size_bytes", "other_bytes", "params", "pruned_by", *_LATER)  # by the seeds of a row
_SPREAD = ("", "_std", "_low", "_high")
PARETO = pa.schema(
    [
        ("trial_id", pa.string()),
        *_AXES,
        ("dataset", pa.string()),
        ("model", pa.string()),
        ("n_seeds", pa.int32()),
        *[(f"val_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        *[(f"test_accuracy{suffix}", pa.float64()) for suffix in _SPREAD],
        ("size_bytes", pa.int64()),
        ("other_bytes", pa.int64()),
        ("params", pa.int64()),
        *[(name, pa.int64()) for name in _LATER],
        ("state", pa.string()),
        ("pruned_by", pa.string()),
        ("epochs", pa.int32()),
        ("pareto_rank", pa.int32()),
        ("is_pareto", pa.bool_()),
        ("p_front", pa.float64()),
    ]
)
