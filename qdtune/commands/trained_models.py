"""The trained models of a run folder that a command asks for: which row of which configuration, with its weights."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from qdtune.messages import Problem, SpecError, format_value, list_first, name_option, one_line, user_error
from qdtune.model.formats.format import TrainedModel
from qdtune.model.formats.packed import read_seed
from qdtune.reader import Model, ReaderError
from qdtune.spec.axes import AXIS_NAMES, find_varying
from qdtune.spec.configuration import Configuration
from qdtune.spec.tasks import Metric
from qdtune.store.folder import UnreadableError
from qdtune.store.opened import open_run
from qdtune.store.pareto_table import aggregate, table_front
from qdtune.store.store import Store


def find_models(
    where: str, trials: Sequence[str] | None, seed: int | None
) -> tuple[list[TrainedModel], tuple[str, ...], tuple[str, ...], frozenset[str]]:
    """The models that were asked for, their files read and checked.

    Args:
        where: the run folder, a path or a URL.
        trials: the configurations of these trials: ids, or how these begin; None: every configuration on the front.
        seed: this seed; None: the best one on the validation split.

    Returns:
        The models, and `left_out`, `without_weights` and `varying` as in `export.Exported`.

    Raises:
        SpecError: a mistake of the user's; or none of the models has weights.
        StorageError, LocationError, NewerSchemaError: the run cannot be read.
    """
    run = one_line(where)
    opened = open_run(where)
    read = opened.read_rows(with_history=False)
    store, ours, skipped = opened.store, read.members, (*read.damaged, *read.left_out)
    rows = read.of_members().trials
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        groups.setdefault(_key_of(row), []).append(row)
    table = aggregate(rows, costs=read.spec.costs)
    entries = table_front(table).to_pylist()
    if trials is not None:
        members = [_find_trial(given, ours, run) for given in trials]
        by_trial = {row["trial_id"]: entry for entry in table.to_pylist() for row in groups[_key_of(entry)]}
        entries = [by_trial[member] for member in members if member in by_trial]
    elif not entries and skipped:
        raise user_error(f"{run} has no front that can be read: {one_line(skipped[0])}")
    elif not entries:
        raise user_error(f"{run} has no front yet: no configuration has finished (run the sweep on)")
    models, faults = [], []
    for entry in entries:
        row = _best_row(entry, groups[_key_of(entry)], seed, read.spec.metric)
        try:
            blob, model = _read_packed(store, row, run, row["trial_id"] in read.lost_weights)
        except _WeightsError as error:
            faults.append(one_line(str(error)))
            continue
        metadata = store.metadata(row["trial_id"])
        models.append(TrainedModel(entry, row, ours[entry["trial_id"]], blob, model, metadata))
    lines = [f"damaged, left out: {line}" for line in read.damaged] + [f"left out: {line}" for line in read.left_out]
    if faults and not models:
        raise SpecError([Problem(None, (), fault) for fault in faults])
    return models, tuple(lines), tuple(faults), find_varying(one.cells for one in ours.values())


class _WeightsError(ValueError):
    """A trial has no weights that can be exported; the message says what to do."""


def _key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What rows of one configuration have in common, in the tables of trials and of the front."""
    return tuple(row[name] for name in (*AXIS_NAMES, "dataset"))


def _find_trial(given: str, ours: Mapping[str, Configuration], run: str) -> str:
    """The trial whose id this is, or begins with."""
    found = [given] if given in ours else sorted(trial_id for trial_id in ours if trial_id.startswith(given))
    if len(found) > 1:
        what = f"{name_option('--trial')} must name one trial of {run}, got {format_value(given)}"
        raise user_error(f"{what}: {list_first(found)}")
    if not found:
        near = difflib.get_close_matches(given[:64], ours, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise user_error(f"{run} holds no trial {format_value(given)} of its sweep{hint}")
    return found[0]


def _best_row(
    entry: Mapping[str, Any], rows: Sequence[dict[str, Any]], seed: int | None, metric: Metric
) -> dict[str, Any]:
    """The row that is exported: of the seeds that ended `ok` the best by validation, of equal ones the lowest."""
    ended = sorted(
        (row for row in rows if row["state"] == "ok" and row[metric.val] is not None),
        key=lambda r: (-metric.sign * r[metric.val], r["seed"]),
    )
    if not ended:
        why = "was stopped early" if entry["state"] == "pruned" else f"ended as {entry['state']}"
        raise user_error(f"trial {entry['trial_id']} {why}: only a finished trial can be exported")
    if seed is None:
        return ended[0]
    for row in ended:
        if row["seed"] == seed:
            return row
    seeds = ", ".join(str(s) for s in sorted(row["seed"] for row in ended))
    raise user_error(f"{name_option('--seed')} must be one of {seeds} for trial {entry['trial_id']}, got {seed}")


def _read_packed(store: Store, row: Mapping[str, Any], run: str, is_lost: bool) -> tuple[bytes, Model]:
    """The packed model of a row, as it lies in the run folder and read.

    Args:
        store: the run folder.
        row: in the table `trials`.
        run: the name of the folder.
        is_lost: whether the trial had weights.

    Raises:
        _WeightsError: the weights are damaged or missing.
    """
    trial_id = row["trial_id"]
    try:
        blob = store.weights(trial_id)
    except UnreadableError as error:
        raise _WeightsError(str(error)) from None
    if blob is None and is_lost:
        raise _WeightsError(f"the weights of trial {trial_id} are lost: launch its sweep, which trains it again")
    if blob is None:
        what = f"no weights are kept of trial {trial_id}: it was trained by an older version of qdtune"
        raise _WeightsError(f"{what} (launch its sweep again with {name_option('--fresh')})")
    try:
        return read_seed(blob, row)
    except ReaderError as error:
        how = f"run `qdtune verify {shlex.quote(run)}`, then launch its sweep, which trains it again"
        raise _WeightsError(f"the weights of trial {trial_id} are damaged: {error} ({how})") from None
