"""`qdtune launch SWEEP --dry-run`: what a sweep would run, said and not started."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from qdtune.machine import gpus
from qdtune.messages import one_line, user_error
from qdtune.spec.choices import PLANNED
from qdtune.spec.plan import Plan, check_comparable
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.placement import Placement

FEW = 8  # sizes that are listed one by one


def _likely(spec: Spec, data_dir: Path) -> Spec:
    """The spec on the data set that a run would probably take: the first on disk."""
    from qdtune.datasets.load import on_disk

    names = spec.data.names
    return spec.resolve(next((name for name in names if on_disk(name, data_dir)), names[0]))


def there_already(arguments: argparse.Namespace, spec: Spec, data_dir: Path) -> tuple[str, set[str]]:
    """The run folder and the trials that it has a result of, if any."""
    from qdtune.store.folder import LocationError, StorageError, child, is_url, open_folder

    where = child(arguments.runs_dir, spec.name)
    if not is_url(where) and not os.path.isdir(where) and ":/" not in where:
        return where, set()
    from qdtune.store.store import Store

    try:
        open_folder(arguments.runs_dir)
        if arguments.fresh:
            return where, set()
        store, likely = Store(where), _likely(spec, data_dir)
        wanted = spec.data.names[0]
        missing = None if likely.data.names[0] == wanted else f"{wanted} is not in {data_dir}"
        check_comparable(likely, store.sweep_yaml(), where, missing)
        return where, store.ids()
    except (LocationError, StorageError) as error:
        raise user_error(str(error)) from None


def describe(spec: Spec, planned: Plan, placed: Placement, data_dir: Path, there: tuple[str, set[str]]) -> None:
    """Prints what a launch would run.

    Args:
        spec: as loaded.
        planned: of the spec on the first of its data sets.
        placed: how its trials would share this machine.
        data_dir: where data sets lie.
        there: the run folder and the trials that have a result in it, see `there_already`.
    """
    from qdtune.terminal import print_facts

    print_facts(_facts(spec, planned, placed, data_dir, there))


def _facts(
    spec: Spec, planned: Plan, placed: Placement, data_dir: Path, there: tuple[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """What a dry run says, as (name, text)."""
    from qdtune.messages import format_count
    from qdtune.sweep.preflight import room

    count = len(planned.trials)
    removed = sum(n for _, n in planned.excluded)
    yield "sweep", ": ".join(filter(None, [spec.name, one_line(spec.description)]))
    searching = spec.method not in PLANNED
    kinds = f"{planned.points:,} points, {removed:,} excluded, {planned.infeasible:,} infeasible"
    if searching:
        yield "configurations", f"up to {spec.run_cap:,}, chosen by {spec.method} while the sweep runs"
        yield "a sample", f"{count:,} at random ({kinds})"
    else:
        yield "configurations", f"{count:,} ({kinds})"
    for rule, n in planned.excluded[:FEW]:
        yield "  excluded", f"{n:,} by {rule}"
    if more := planned.excluded[FEW:]:
        yield "  excluded", f"{sum(n for _, n in more):,} by {format_count(len(more), 'more rule')}"
    if planned.infeasible:
        yield "  infeasible", f"{planned.infeasible:,} by {', '.join(spec.constraints)}"
    if spec.run_cap and count < spec.run_cap and not searching:
        yield "  note", f"fewer than run_cap {spec.run_cap:,}: the space holds no more"
    if planned.warning:
        yield "  warning", planned.warning
    folder, ids = there
    done = 0
    if ids and not searching:  # the hashes cost too much where there is nothing to compare them with
        done = sum(trial.trial_id in ids for trial in planned.trials)
        yield "  there", f"{done:,} have a result in {folder}"
    yield "seeds", f"{len(spec.seeds)} per configuration, trained together"
    if spec.replicate:
        yield (
            "  in the end",
            f"{spec.replicate.front} for the front and what is within {spec.replicate.within:g} of it",
        )
    if spec.early_terminate.type != "none":
        options = ", ".join(f"{key} {value}" for key, value in spec.early_terminate.options.items())
        yield "stopped early", f"by {spec.early_terminate.type}: {options}"
    of_sample = " in the sample" if searching else ""
    yield "float warm-ups", f"{planned.warmups:,}{of_sample}, each trained once and shared"
    sizes = planned.distinct_sizes
    few = ", ".join(f"{size:,}" for size in sizes)
    yield (
        "sizes",
        f"{few} bytes" if len(sizes) <= FEW else f"{len(sizes):,}, from {sizes[0]:,} to {sizes[-1]:,} bytes",
    )
    yield "data", _data_text(spec, data_dir)
    if spec.factories:
        from qdtune.plugins import sources

        for source in sources():
            yield "plugin", f"{source.path}, sha256 {source.sha256}"
    yield "one trial", f"{placed.gpu:g} GPU, {placed.cpu:g} CPU"
    shared = f", {placed.per_gpu} per GPU" if placed.per_gpu else ""
    here = f"this machine: {os.cpu_count()} CPUs, {gpus()} GPUs"
    yield (
        "at once",
        f"{placed.concurrent:,} trials{shared}, so {format_count(placed.waves(count - done), 'wave')} ({here})",
    )
    yield "disk", f"about {room(spec, planned) / 1e6:,.1f} MB in {one_line(folder)}"
    for note in placed.notes:
        yield "note", note


def _data_text(spec: Spec, data_dir: Path) -> str:
    from qdtune.datasets.load import on_disk

    name, *fallbacks = spec.data.names
    assert spec.data.info is not None
    train = spec.data.info.train - spec.data.val_size
    text = f"{name}: {train:,} samples to train on, {spec.data.val_size:,} to judge by; "
    if spec.data.factory:
        return f"{text}in memory"
    if on_disk(name, data_dir):
        return f"{text}on disk"
    instead = f", and if that fails {' or '.join(fallbacks)} taken instead" if fallbacks else ""
    return f"{text}not in {one_line(str(data_dir))}, so it would be downloaded{instead}"
