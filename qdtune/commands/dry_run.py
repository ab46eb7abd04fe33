"""`qdtune launch SWEEP --dry-run`: what a sweep would run, said and not started."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdtune.commands.training_facts import MAX_LISTED, Facts, list_front_facts, list_training_facts
from qdtune.datasets.dataset import DataError
from qdtune.datasets.known import dataset_of
from qdtune.machine import count_cpus, count_gpus
from qdtune.messages import format_count, name_option, one_line, user_error
from qdtune.spec.axes import BLOCKS, HIDDEN, find_varying, short_label
from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import Plan
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.forecast import Timed, choose_samples, forecast_time, measure_times, time_results
from qdtune.sweep.placement import Placement
from qdtune.sweep.prepare import prepare_launch, settle_on
from qdtune.sweep.prepared import LaunchOptions, Prepared, Unread
from qdtune.sweep.resumed import describe_checkpoints, find_checkpoints

if TYPE_CHECKING:
    from qdtune.store.results import Result

MAX_ENDS = 3  # of more than `MAX_LISTED` configurations, how many are listed at either end
MAX_RULES = 12  # of `exclude` that are listed one by one; one more is, too
MAX_COMPARED = 2_000  # configurations whose comparisons are listed without a pause


def describe(options: LaunchOptions, lists_all: bool = False, is_timed: bool = False) -> None:
    """Prints what a launch would run.

    Args:
        options: of a dry run.
        lists_all: whether every configuration is listed.
        is_timed: whether a few configurations are trained for some steps, to say how long the sweep takes.

    Raises:
        SpecError: what the user has to mend.
    """
    from qdtune.store.folder import LocationError, StorageError
    from qdtune.terminal import print_facts

    try:
        prepared = prepare_launch(options)
        found = _read_held(prepared)
        timed = _measure(prepared, found) if is_timed else Times(prepared, found, time_results(found.results))
    except (DataError, LocationError, StorageError) as error:
        raise user_error(str(error)) from None
    print_facts(_list_facts(prepared, found, timed, lists_all))


@dataclass(frozen=True)
class Held:
    """What the run folder of a dry run holds.

    Attributes:
        ids: the trials that have a result, without those whose weights `verify` has set aside.
        results: of this sweep.
        checkpoints: trial_id -> the QAT epoch at which it goes on.
        waiting: the configurations of the plan that have no result; all of the sample if the method searches.
        left: how many trainings are left.
    """

    ids: frozenset[str]
    results: list[Result]
    checkpoints: dict[str, int]
    waiting: list[Configuration]
    left: int


def _read_held(prepared: Prepared) -> Held:
    trials, spec = prepared.plan.trials, prepared.spec
    is_planned = spec.method in PLANNED
    if prepared.earlier is None:
        return Held(frozenset(), [], {}, trials, len(trials) if is_planned else spec.run_cap or 0)
    from qdtune.store.lost_weights import find_set_aside
    from qdtune.store.opened import read_rows
    from qdtune.store.store import Store

    store = Store(prepared.folder)
    ids = store.ids()
    ids -= find_set_aside(store, ids)
    waiting = trials
    if ids and is_planned:  # the hashes cost too much if there is nothing to compare them with
        waiting = [trial for trial in trials if trial.trial_id not in ids]
    results = read_rows(store, spec).results if ids else []
    left = len(waiting) if is_planned else max(0, (spec.run_cap or 0) - len(results))
    checkpoints = find_checkpoints(store.folder, lambda trial_id: trial_id not in ids)
    return Held(frozenset(ids), results, checkpoints, waiting, left)


@dataclass(frozen=True)
class Times:
    """The times of some configurations, and the launch that they are known for.

    Attributes:
        prepared: the launch on the data set that they are trained on.
        held: what its run folder holds.
        timed: the times; empty if none are known.
    """

    prepared: Prepared
    held: Held
    timed: Sequence[Timed]


def _measure(prepared: Prepared, held: Held) -> Times:
    """The times of a few configurations, measured now on the first data set that is here; none if none are left."""
    data = prepared.data
    if isinstance(data, Unread):
        if data.on_disk is None:
            raise user_error(f"{name_option('--time')} trains on {_say_missing(prepared)}")
        first, prepared = prepared, settle_on(prepared, data.on_disk)
        held = held if prepared is first else _read_held(prepared)
    if not held.left:
        return Times(prepared, held, [])
    assert prepared.forecast is not None, "a dry run supposes this machine"
    from qdtune.datasets.load import load

    if isinstance(data, Unread):
        data, _ = load(prepared.spec.data.names, prepared.data_dir, prepared.spec.data.val_size)
    samples = choose_samples(held.waiting)
    timed = measure_times(prepared.spec, samples, data, prepared.forecast, _tell_measured)
    return Times(prepared, held, timed)


def _say_missing(prepared: Prepared) -> str:
    """The data set that a launch downloads."""
    name, where = prepared.spec.data.names[0], one_line(str(prepared.data_dir))
    return f"{name}, which is not in {where} (a launch downloads it)"


def _tell_measured(trial: Configuration) -> None:
    """Prints the configuration on stderr before it is measured, because compiling its step may take a while."""
    print(f"measuring {trial.label} ({trial.sizes.params:,} parameters)", file=sys.stderr, flush=True)


def _list_facts(prepared: Prepared, held: Held, times: Times, lists_all: bool) -> Facts:
    """What a dry run says.

    Args:
        prepared: the launch.
        held: what its run folder holds.
        times: of some configurations, perhaps on another data set.
        lists_all: whether every configuration is listed.
    """
    spec, planned, placed = prepared.spec, prepared.plan, prepared.forecast
    assert placed is not None, "a dry run supposes this machine"
    yield "sweep", ": ".join(filter(None, [spec.name, one_line(spec.description)]))
    yield from _space_facts(spec, planned, lists_all)
    if held.ids and spec.method in PLANNED:
        done = len(planned.trials) - len(held.waiting)
        yield "  done", f"{done:,} {'has' if done == 1 else 'have'} a result in {one_line(prepared.folder)}"
    if text := describe_checkpoints(held.checkpoints, spec.train.qat.epochs):
        yield "  paused", text
    yield from list_training_facts(spec, planned)
    yield from list_front_facts(spec, planned)
    yield from (("  anew", line) for line in prepared.front_notes)
    yield "data", _format_data(prepared)
    yield from (("fallback", line) for line in prepared.replaced)
    for name, other in ({} if prepared.replaced else prepared.fallbacks).items():
        yield "fallback", f"on {name}: {format_count(len(other.trials), 'configuration')} of its own"
    yield from (("longer", line) for line in prepared.lengthened)
    yield from (("test", line) for line in prepared.test_notes)
    yield from _layer_facts(planned)
    yield from (("model", line) for line in prepared.float_notes)
    if spec.factories:
        from qdtune.plugins import sources

        for source in sources():
            yield "plugin", one_line(f"{source.path}, sha256 {source.sha256}")
    yield from _machine_facts(prepared, placed, held.left)
    yield from _time_facts(prepared, placed, times)


def _time_facts(prepared: Prepared, placed: Placement, times: Times) -> Facts:
    """About how long the sweep takes, and by what that is known; on another data set if the first is not here."""
    known_for, held, timed = times.prepared, times.held, times.timed
    if not held.left:
        return
    where = ""
    if known_for is not prepared:
        yield "time", f"not known on {_say_missing(prepared)}"
        where = f"on {known_for.spec.data.names[0]} "
    if not timed:
        yield "time", f"not known before the first result; {name_option('--time')} measures a few steps"
        return
    measured = {one.trial_id for one in held.results} >= {one.trial.trial_id for one in timed}
    by = "the results there" if measured else f"{format_count(len(timed), 'configuration')} measured now"
    text = str(forecast_time(known_for.spec, known_for.plan, held.waiting, held.left, placed, timed))
    yield "time", f"{where}{text} (by {by})"


def _space_facts(spec: Spec, planned: Plan, lists_all: bool) -> Facts:
    """How many configurations there are, and what is left out."""
    count = len(planned.trials)
    removed = sum(n for _, n in planned.excluded)
    searching = spec.method not in PLANNED
    kinds = f"{planned.points:,} points, {removed:,} excluded, {planned.infeasible:,} infeasible"
    if searching:
        yield "configurations", f"up to {spec.run_cap:,}, chosen by {spec.method} while the sweep runs"
        yield "a sample", f"{count:,} at random ({kinds})"
    else:
        yield "configurations", f"{count:,} ({kinds})"
        yield from _configuration_facts(planned, lists_all)
    rules = len(planned.excluded)
    listed = rules if rules <= MAX_RULES + 1 else MAX_RULES
    for rule, n in planned.excluded[:listed]:
        yield "  excluded", f"{n:,} by {rule}"
    if more := planned.excluded[listed:]:
        yield "  excluded", f"{sum(n for _, n in more):,} by {format_count(len(more), 'more rule')}"
    for what, count in planned.broken.items():
        yield "  infeasible", f"{count:,} by {what}"
    if spec.run_cap and count < spec.run_cap and not searching:
        yield "  note", f"fewer than run_cap {spec.run_cap:,}: the space holds no more"
    if planned.warning:
        yield "  warning", planned.warning
    if not searching and len(planned.trials) <= MAX_COMPARED:
        yield from _partner_facts(spec, planned)


def _partner_facts(spec: Spec, planned: Plan) -> Facts:
    """How many comparisons of depths cannot be made, because sizes differ; they are known before training."""
    from qdtune.store.pairs import SIZES_APART
    from qdtune.store.partners import is_without_partner, list_planned_depths

    asked = list_planned_depths(planned.trials, spec.metric)
    if lonely := sum(map(is_without_partner, asked)):
        which = "all" if lonely == len(asked) else f"{lonely:,} of"
        count = f"{which} {format_count(len(asked), 'comparison')} of depths"
        least = min(one.baseline for one in asked)
        what = f"no network of depth {least} and equal size (within {100 * SIZES_APART:g} %)"
        where = HIDDEN.name if spec.model.blocks is None else BLOCKS.name
        yield "  note", f"{count} find {what}: give depth {least} more widths, see parameters.{where}"


def _configuration_facts(planned: Plan, lists_all: bool) -> Facts:
    """The configurations by size, each with its bytes; of many the smallest and the largest, unless all are asked."""
    varying = find_varying(trial.cells for trial in planned.trials)
    trials = sorted(planned.trials, key=lambda trial: trial.sizes.size_bytes)
    ends = 0 if lists_all or len(trials) <= MAX_LISTED else MAX_ENDS
    for trial in trials[: ends or len(trials)]:
        yield f"  {trial.sizes.size_bytes:,} bytes", short_label(trial.cells, varying)
    if ends:
        yield f"  {len(trials) - 2 * ends:,} more", f"of sizes between ({name_option('--all')} lists them)"
        for trial in trials[-ends:]:
            yield f"  {trial.sizes.size_bytes:,} bytes", short_label(trial.cells, varying)


def _layer_facts(planned: Plan) -> Facts:
    """The quantised layers, in the order of `layer_bits`. An mlp is left out: its widths name its layers."""
    smallest = min(planned.trials, key=lambda trial: trial.sizes.size_bytes)
    if not planned.spec.model.factory and smallest.cnn_layers is None:
        return
    several = len({trial.structure.layers for trial in planned.trials}) > 1
    texts = (
        f"{layer.kind} {layer.inputs:,}-{layer.outputs:,}{'' if layer.is_split else ' (never split)'}"
        for layer in smallest.structure.layers
    )
    yield "layers", f"{'of the smallest: ' if several else ''}{', '.join(texts)}"


def _machine_facts(prepared: Prepared, placed: Placement, left: int) -> Facts:
    """How `left` trials would share this machine, and its disk."""
    from qdtune.sweep.preflight import needed_bytes

    yield "one trial", f"{placed.gpu:g} GPU, {placed.cpu:g} CPU"
    shared = f", {placed.per_gpu} per GPU" if placed.per_gpu else ""
    here = f"this machine: {format_count(count_cpus(), 'CPU')}, {count_gpus()} GPUs"
    waves = f"so {format_count(placed.waves(left), 'wave')}" if left else "nothing left to run"
    yield "at once", f"{format_count(placed.concurrent, 'trial')}{shared}, {waves} ({here})"
    size = needed_bytes(prepared.spec, prepared.plan)
    yield "disk", f"about {size / 1e6:,.1f} MB in {one_line(prepared.folder)}"
    for note in placed.notes:
        yield "note", note


def _format_data(prepared: Prepared) -> str:
    group = prepared.spec.data
    assert group.info is not None
    train = group.info.train - group.val_size
    text = f"{group.names[0]}: {train:,} samples to train on, {group.val_size:,} to judge by; "
    if not isinstance(prepared.data, Unread):
        return f"{text}in memory"
    name, *fallbacks = prepared.data.names
    if prepared.data.on_disk == name:
        return f"{text}on disk"
    missing = f"{text}not in {one_line(str(prepared.data_dir))}"
    instead = f"{' or '.join(fallbacks)} taken instead" if fallbacks else ""
    if not dataset_of(name).source:
        return f"{missing}, and it cannot be downloaded: {instead or 'put its files there'}"
    return f"{missing}, so it would be downloaded" + (f", and if that fails {instead}" if instead else "")
