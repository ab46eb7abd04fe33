"""What a launch goes on from: results, checkpoints of trainings that were interrupted, and warm-ups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from qdtune.messages import format_count
from qdtune.model.signed_file import find_fault, read_owner, read_paused_epoch
from qdtune.sweep.pace import Start

if TYPE_CHECKING:
    from qdtune.store.folder import Folder
    from qdtune.sweep.held_run import HeldRun

SUFFIX = ".safetensors"


def find_checkpoints(folder: Folder, is_asked: Callable[[str], bool] = lambda trial_id: True) -> dict[str, int]:
    """trial_id -> the QAT epoch of its checkpoint, of those of the trials that have a whole one.

    A worker may still refuse one, because another kind of machine made it; its trial then starts from the beginning.

    Args:
        folder: the run folder.
        is_asked: whether the checkpoint of a trial is read at all, given its id.
    """
    from qdtune.store.folder import StorageError  # Arrow, which checks a sweep file without

    found: dict[str, int] = {}
    try:
        names = {file.removesuffix(SUFFIX) for file in folder.list_files("paused") if file.endswith(SUFFIX)}
    except StorageError:  # checkpoints save time and nothing else
        return found
    for trial_id in sorted(filter(is_asked, names)):
        with suppress(StorageError):
            blob = folder.read_file(f"paused/{trial_id}{SUFFIX}")
            if not blob or find_fault(blob, older=False) or read_owner(blob) != trial_id:
                continue
            if epoch := read_paused_epoch(blob):
                found[trial_id] = epoch
    return found


def describe_checkpoints(checkpoints: Mapping[str, int], epochs: int) -> str:
    """`3 trials go on from their checkpoints, at epoch 4 of 10`; empty if there are none.

    Args:
        checkpoints: as `find_checkpoints`.
        epochs: of QAT.
    """
    if not checkpoints:
        return ""
    first, last = min(checkpoints.values()), max(checkpoints.values())
    at = f"at epoch {first}" if first == last else f"at epochs {first} to {last}"
    one = len(checkpoints) == 1
    which = "goes on from its checkpoint" if one else "go on from their checkpoints"
    return f"{format_count(len(checkpoints), 'trial')} {which}, {at} of {epochs}"


def find_start(run: HeldRun) -> Start:
    """What the progress of a launch begins with; none of its trials has begun."""
    spec, queue, folder = run.spec, run.queue, run.store.folder
    waiting = {trial.trial_id: trial for trial in queue.waiting}
    states = {trial_id: one.state for trial_id, one in queue.results.items() if trial_id not in waiting}
    checkpoints = find_checkpoints(folder, waiting.__contains__)
    files, by_key = set(folder.list_files("warmup")), {trial.warmup_key: trial for trial in waiting.values()}
    kept = {key for key, trial in by_key.items() if f"{trial.warmup_id}{SUFFIX}" in files}
    resumed = {waiting[trial_id].warmup_key for trial_id in checkpoints}
    ended = {one.trial.warmup_key for one in queue.results.values()}
    left = len({trial.warmup_key for i, trial in waiting.items() if i not in checkpoints} - kept)
    if unasked := queue.left - len(waiting):  # as many as in a sample
        left += round(unasked * len({trial.warmup_key for trial in queue.planned}) / len(queue.planned))
    trained = sum(len(one.curve) for one in queue.results.values()) + sum(checkpoints.values())
    return Start(
        states,
        trained + spec.train.warmup.epochs * len(ended | kept | resumed),
        checkpoints,
        left if spec.train.warmup.epochs else 0,
        frozenset(trial_id for trial_id, rows in run.known.items() if any(row.get("released") for row in rows)),
        {trial_id: len(queue.results[trial_id].curve) for trial_id, state in states.items() if state == "pruned"},
    )
