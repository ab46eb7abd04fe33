"""The model card: a JSON file beside each exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qdtune.model.formats.format import Format, TrainedModel, input_words, is_pixels
from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.tasks import AUTOENCODER, CLASSIFICATION, metric_of, task_of

MEASURED = "measured"  # the key of the figures that a check adds
MADE_WITH = ("qdtune.version.", "qdtune.git_commit")  # how the metadata begins that goes into the card


def make_card(model: TrainedModel, form: Format, file: str, file_bytes: int) -> bytes:
    """What a user of an exported model must know, as JSON.

    Args:
        model: that is exported.
        form: the format of its file.
        file: the name of its file.
        file_bytes: the length of its file.
    """
    entry, row, trial = model.entry, model.row, model.trial
    metric = metric_of(trial.metric)
    splits = {"validation": metric.val, "test": metric.test}  # name in the card -> column
    spread = {
        split: {"mean": entry[name], "low": entry[f"{name}_low"], "high": entry[f"{name}_high"]}
        for split, name in splits.items()
    }
    training = {"batch_size": trial.batch_size, "warmup": trial.warmup.recipe, "qat": trial.qat.recipe}
    versions = {key: value for key, value in sorted(model.metadata.items()) if key.startswith(MADE_WITH)}
    task = task_of(trial.task)
    words = input_words(model.model.program) | ({} if task is CLASSIFICATION else {"outputs": "outputs"})
    card = {
        "trial_id": entry["trial_id"],
        "configuration": {axis: entry[axis] for axis in AXIS_NAMES},
        "model": entry["model"],
        "batch_norm": trial.batch_norm,
        **({"blocks": list(trial.cnn_blocks), "padding": trial.padding} if trial.cnn_blocks else {}),
        "training": training,
        "task": task.name,
        "outputs": task.answers,
        "decision": task.decision,
        **({"normalisation": _find_normalisation(model)} if task is AUTOENCODER else {}),
        "dataset": entry["dataset"],
        "seed": row["seed"],
        "trained_by": row["trial_id"],
        metric.name: {split: row[name] for split, name in splits.items()},
        **{one.name: {"test": row[one.test]} for one in task.also_tested(metric)},
        f"{metric.name}_of_the_configuration": {"seeds": entry["n_seeds"], "interval": 0.95, **spread},
        "size_bytes": entry["size_bytes"],
        "file": file,
        "file_bytes": file_bytes,
        "format": form.name,
        "read_with": form.usage_of(model).format(**words),
        "made_with": {key.removeprefix("qdtune."): value for key, value in versions.items()},
    }
    return _write(card)


def _write(card: dict[str, Any]) -> bytes:
    return (json.dumps(card, indent=2, allow_nan=False) + "\n").encode()


def add_measured(card: bytes, measured: Mapping[str, Any]) -> bytes:
    """A card with figures of one more target, or with new ones of it: those of others stay.

    Args:
        card: made by `make_card`, perhaps with figures.
        measured: target -> figures.
    """
    content = json.loads(card)
    return _write(content | {MEASURED: content.get(MEASURED, {}) | measured})


def is_measured(found: bytes, card: bytes) -> bool:
    """Whether the content of a file is a card, but for figures that were added to it."""
    try:
        content = json.loads(found)
    except ValueError:
        return False
    return isinstance(content, dict) and content.pop(MEASURED, None) is not None and _write(content) == card


def _find_normalisation(model: TrainedModel) -> dict[str, list[float]]:
    """The scale and the shift of the rows, which the file applies itself: a number each, or one for each input."""
    if is_pixels(model.model.program):
        return {"scale": [1 / 127.5], "shift": [-1.0]}
    found = {name: model.model.stored.get(f"input.{name}") for name in ("scale", "shift")}
    as_it_is = {"scale": [1.0], "shift": [0.0]}
    return {name: as_it_is[name] if part is None else part.astype(float).tolist() for name, part in found.items()}
