"""Results whose weights are lost: the rows are whole, but the file of the trained networks is gone.

Such a result counts as unfinished, so the next launch trains its configuration again. `verify` sets a damaged file
of weights aside, which makes it lost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from qdtune.store.results import Result
from qdtune.store.store import Store
from qdtune.store.tables import Table, rows_equal

WEIGHTS_SINCE = 5  # every result of this schema version and later was stored with its weights
LOST_STATE = "failed"  # not final: a launch trains such a configuration again, and a reader counts it as left


def find_lost_weights(store: Store, trials: Table) -> frozenset[str]:
    """The trials that ended `ok` and whose weights are gone.

    A run folder without any weights, such as a copy without them, has lost none. Neither has a result of a version
    that kept no weights.

    Args:
        store: the run folder.
        trials: rows of it, read before, because weights are stored before the rows.

    Raises:
        StorageError: the folder cannot be read.
    """
    files = store.list_weights()
    if not files:
        return frozenset()
    missing = {trial_id for trial_id in find_shipped(trials) if store.name_weights(trial_id) not in files}
    set_aside = find_set_aside(store, missing)
    return set_aside | store.written_since(WEIGHTS_SINCE, missing - set_aside)


def find_set_aside(store: Store, trial_ids: Collection[str]) -> frozenset[str]:
    """Those of the trials whose weights were set aside and not trained again; no table is read.

    Raises:
        StorageError: the folder cannot be read.
    """
    files = store.list_weights()
    names = {trial_id: store.name_weights(trial_id) for trial_id in trial_ids}
    return frozenset(t for t, name in names.items() if f"{name}.damaged" in files and name not in files)


def find_shipped(trials: Table) -> set[str]:
    """The trials with a seed that ended `ok`: those that have weights."""
    return set(rows_equal(trials, "state", "ok")["trial_id"].to_pylist())


def reopen_results(results: Collection[Result], lost: Collection[str]) -> list[Result]:
    """The results, with those whose weights are lost in a state that is not final."""
    return [_reopen(result) if result.trial.trial_id in lost else result for result in results]


def _reopen(result: Result) -> Result:
    ends = tuple(end._replace(state=LOST_STATE) for end in result.ends)
    return replace(result, state=LOST_STATE, score=None, ends=ends)


def reopen_rows(trials: Table, lost: Collection[str]) -> Table:
    """The rows of the table `trials`, with those whose weights are lost in a state that is not final."""
    if not lost:
        return trials
    is_lost = pc.is_in(trials["trial_id"], pa.array(sorted(lost), pa.string()))
    place = trials.schema.get_field_index("state")
    return trials.set_column(place, trials.schema.field(place), pc.if_else(is_lost, LOST_STATE, trials["state"]))
