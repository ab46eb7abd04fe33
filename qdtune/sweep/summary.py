"""What a launch prints before it trains, and at its end."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from typing import Any

from qdtune.datasets.load import Samples
from qdtune.machine import cache_dir, count_gpus, has_compiler, should_compile
from qdtune.messages import format_count, one_line
from qdtune.reach import neighbours_of
from qdtune.search.queue import Queue
from qdtune.spec.plan import Plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import FINAL
from qdtune.store.folder import StorageError
from qdtune.store.front import print_front
from qdtune.store.looks import LIVE
from qdtune.store.pareto_table import table_front
from qdtune.store.releases import describe_releases
from qdtune.store.store import PAGE
from qdtune.store.tables import Table
from qdtune.sweep.held_run import HeldRun
from qdtune.sweep.pace import Start
from qdtune.sweep.resumed import describe_checkpoints

DONE, FAILED_TRIALS = 0, 3  # exit codes; 128 + its number after a signal


def announce(
    spec: Spec, data: Samples, planned: Plan, queue: Queue, start: Start, notes: list[str], out: Any
) -> None:
    """Prints what will be trained, how much is already done, from where trials go on, and warnings."""
    count = (spec.run_cap or 0) if queue.searching else len(planned.trials)
    size = f"{format_count(count, 'configuration')} x {format_count(len(spec.seeds), 'seed')} on {data.name}"
    samples = f"({len(data.train_x):,} training, {len(data.val_x):,} validation samples)"
    done = f"{len(start.states)} done before" if queue.left else "all done before"
    out.print(f"{spec.name}: {size} {samples}; {done}", style="bold")
    if text := describe_checkpoints(start.checkpoints, spec.train.qat.epochs):
        out.print(text)
    compiles = queue.left and _compiles(spec, planned, len(data.train_x))
    if compiles and not has_compiler():
        what = "training is slow, because it runs uncompiled: install a C++ compiler (g++, or set CXX) and openssl"
        out.print(what, style="yellow")
    elif compiles and not any(cache_dir().glob("steps/*.so")):
        shapes = len({(t.depth, t.activation, t.hidden) for t in planned.trials})
        each = "" if shapes == 1 else " each"
        what = f"{format_count(shapes, 'network shape')}, about 15 s{each}, once for all sweeps"
        out.print(f"long trainings are compiled first: {what}")
    if queue.left and planned.warning:
        out.print(f"warning: {planned.warning}", style="yellow")
    for note in notes:
        out.print(f"WARNING: {note}", style="bold white on red")


def print_summary(run: HeldRun, table: Table, stopped: int | None, error: StorageError | None, out: Any) -> int:
    """Prints the front, what went wrong and where the files are; returns the exit code.

    Args:
        run: the run at its end.
        table: the Pareto table.
        stopped: the signal that ended it; None if none did.
        error: why results could not be stored; None if they were.
        out: the console.

    Raises:
        StorageError: `error`.
    """
    spec, queue = run.spec, run.queue
    # What lost its weights and was not trained again is stored as it was.
    states = Counter(r.state for trial_id, r in queue.results.items() if run.reopened.get(trial_id) is not r)
    out.print()
    _print_front(run, table, out)
    if tally := queue.count_decisions():
        out.print(f"{tally.summary}: see the report")
        if tally.counts.get(LIVE) and not queue.left and (why := _explain_live(spec, states)):
            out.print(why)
    _print_losses(run, states, table, out)
    _print_dead_warmups(run, out)
    if table.num_rows:
        folder = run.store.folder
        out.print(f"full table: {folder.full_name('pareto.parquet')}; rows: {folder.full_name('trials')}")
        if PAGE in folder.list_files():
            out.print(f"report: {folder.full_name(PAGE)}")
    if error:
        raise error
    if queue.left:
        why = f"stopped by {signal.Signals(stopped).name}" if stopped else "ended early"
        if spec.run.time_budget_s and not stopped:
            why = "the time budget is spent"
        left = f"{queue.left} of {format_count(queue.total, 'trial')} left to do"
        out.print(f"{why}: {left}; the same command goes on from here")
        return 128 + stopped if stopped else FAILED_TRIALS
    return DONE if set(states) <= FINAL else FAILED_TRIALS


def _explain_live(spec: Spec, states: Mapping[str, int]) -> str:
    """Why comparisons are live although nothing is left to train; empty if that is unknown.

    Args:
        spec: resolved.
        states: the number of trials in each state.
    """
    if set(states) - FINAL:
        return "live comparisons wait for the trials that failed; the same command tries these again"
    if spec.replicate is not None and spec.replicate.budget is not None:
        return "the budget allows no more trainings for live comparisons; with a larger one they go on from here"
    return ""


def _print_front(run: HeldRun, table: Table, out: Any) -> None:
    """Prints the Pareto front, and how many bytes of its models are not quantised."""
    print_front(table, run.spec.data.names[0], out)
    if other := max((row["other_bytes"] or 0 for row in table_front(table).to_pylist()), default=0):
        parts = ["layers that no kind quantises"] if run.spec.model.factory else []
        parts += ["scale and shift of the inputs"] if run.spec.data.normalize != "none" else []
        why = f" ({', '.join(parts)})" if parts else ""
        out.print(
            f"up to {other:,} bytes per model are not quantised{why}: see the column `other_bytes`", style="dim"
        )


def _print_losses(run: HeldRun, states: Counter[str], table: Table, out: Any) -> None:
    """Prints how many trials were stopped early, how many of them were released, and how many failed."""
    spec, queue = run.spec, run.queue
    if spec.early_terminate.type != "none":  # else they are left to do
        released = {trial_id for trial_id, rows in run.known.items() if any(row["released"] for row in rows)}
        released = {trial_id for trial_id in released if queue.results[trial_id].state != "pruned"}
        if states["pruned"] or released:
            out.print(_pruned_line(spec, queue, states["pruned"], len(released)))
        if released:
            out.print(describe_releases(table))
        if unjudged := len(queue.unjudged & released):
            least = neighbours_of(spec.early_terminate.risk)
            why = f"fewer than {least} trials had finished that they could be compared with"
            which = (
                "all of them were"
                if unjudged == len(released)
                else f"{unjudged} of them {'was' if unjudged == 1 else 'were'}"
            )
            out.print(f"{which} released because {why}")
    for state in sorted(set(states) - {"ok", "pruned"}):
        theirs = (row for t, rows in run.known.items() if queue.results[t].state == state for row in rows)
        why = next((f": {one_line(row['error'])}" for row in theirs if row["error"]), "")
        what = f"{format_count(states[state], 'trial')} ended as {state} (see the column `error`){why}"
        out.print(what, style="yellow")


def _pruned_line(spec: Spec, queue: Queue, pruned: int, released: int) -> str:
    """How many trials were stopped early, and the share of QAT epochs that this saved.

    Args:
        spec: resolved.
        queue: at its end.
        pruned: how many trials are stopped.
        released: how many of those that were stopped have a result now.
    """
    planned = spec.train.qat.epochs * len(queue.results)
    spared = sum(spec.train.qat.epochs - len(r.curve) for r in queue.results.values() if r.state == "pruned")
    rule = f"{format_count(pruned + released, 'trial')} stopped early by {spec.early_terminate.type}"
    return f"{rule}: {(spared - queue.twice) / planned:.0%} of all QAT epochs saved; see the column `pruned_by`"


def _print_dead_warmups(run: HeldRun, out: Any) -> None:
    dead = {
        run.queue.results[trial_id].trial.key
        for trial_id, rows in run.known.items()
        if any(row["state"] in ("ok", "pruned") and row["error"] for row in rows)
    }
    if dead:
        what = "started from a warm-up that ended at chance (see the column `error`)"
        out.print(f"{format_count(len(dead), 'configuration')} {what}", style="yellow")


def _compiles(spec: Spec, planned: Plan, samples: int) -> bool:
    has_gpu = spec.resources.gpu and count_gpus()
    convolves = not has_gpu and all(trial.structure.convolves for trial in planned.trials)
    return should_compile(spec.run.compile, "qat", spec.train.qat.epochs, spec.train.batch_size, samples, convolves)
