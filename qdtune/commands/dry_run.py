"""`qdtune launch SWEEP --dry-run`: what a sweep would run, said and not started."""

from __future__ import annotations

from collections.abc import Iterator

from qdtune.datasets.known import dataset_of
from qdtune.machine import count_cpus, count_gpus
from qdtune.messages import format_count, one_line, user_error
from qdtune.spec.axes import find_varying, short_label
from qdtune.spec.choices import PLANNED
from qdtune.spec.metric_text import best_word
from qdtune.spec.plan import Plan
from qdtune.spec.replicate import questions_of
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import CLASSIFICATION
from qdtune.sweep.placement import Placement
from qdtune.sweep.prepare import LaunchOptions, Prepared, Unread, prepare_launch

MAX_LISTED, MAX_ENDS = 12, 3  # configurations that are listed one by one; of more, how many at either end
MAX_RULES = 12  # of `exclude` that are listed one by one; one more is, too
MAX_SIZES = 8  # that are listed one by one
Facts = Iterator[tuple[str, str]]  # name and text


def describe(options: LaunchOptions) -> None:
    """Prints what a launch would run.

    Args:
        options: of a dry run.

    Raises:
        SpecError: what the user has to mend.
    """
    from qdtune.store.folder import LocationError, StorageError
    from qdtune.terminal import print_facts

    try:
        prepared = prepare_launch(options)
        ids = _find_ids(prepared)
    except (LocationError, StorageError) as error:
        raise user_error(str(error)) from None
    print_facts(_list_facts(prepared, ids))


def _find_ids(prepared: Prepared) -> set[str]:
    """The trials that have a result in the run folder, without those whose weights `verify` has set aside."""
    if prepared.earlier is None:
        return set()
    from qdtune.store.lost_weights import find_set_aside
    from qdtune.store.store import Store

    store = Store(prepared.folder)
    ids = store.ids()
    return ids - find_set_aside(store, ids)


def _list_facts(prepared: Prepared, ids: set[str]) -> Facts:
    """What a dry run says.

    Args:
        prepared: the launch.
        ids: the trials that have a result in the run folder.
    """
    spec, planned, placed = prepared.spec, prepared.plan, prepared.forecast
    assert placed is not None, "a dry run supposes this machine"
    yield "sweep", ": ".join(filter(None, [spec.name, one_line(spec.description)]))
    yield from _space_facts(spec, planned)
    done = 0
    if ids and spec.method in PLANNED:  # the hashes cost too much if there is nothing to compare them with
        done = sum(trial.trial_id in ids for trial in planned.trials)
        yield "  there", f"{done:,} have a result in {one_line(prepared.folder)}"
    yield from _training_facts(spec, planned)
    yield "data", _format_data(prepared)
    yield from (("longer", line) for line in prepared.lengthened)
    yield from (("test", line) for line in prepared.test_notes)
    if spec.factories:
        from qdtune.plugins import sources

        for source in sources():
            yield "plugin", one_line(f"{source.path}, sha256 {source.sha256}")
    yield from _machine_facts(prepared, placed, len(planned.trials) - done)


def _space_facts(spec: Spec, planned: Plan) -> Facts:
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
        yield from _configuration_facts(planned)
    rules = len(planned.excluded)
    listed = rules if rules <= MAX_RULES + 1 else MAX_RULES
    for rule, n in planned.excluded[:listed]:
        yield "  excluded", f"{n:,} by {rule}"
    if more := planned.excluded[listed:]:
        yield "  excluded", f"{sum(n for _, n in more):,} by {format_count(len(more), 'more rule')}"
    if planned.infeasible:
        yield "  infeasible", f"{planned.infeasible:,} by {', '.join(spec.constraints)}"
    if spec.run_cap and count < spec.run_cap and not searching:
        yield "  note", f"fewer than run_cap {spec.run_cap:,}: the space holds no more"
    if planned.warning:
        yield "  warning", planned.warning


def _configuration_facts(planned: Plan) -> Facts:
    """The configurations by size, each with its bytes; of many the smallest and the largest."""
    varying = find_varying(trial.cells for trial in planned.trials)
    trials = sorted(planned.trials, key=lambda trial: trial.sizes.size_bytes)
    ends = 0 if len(trials) <= MAX_LISTED else MAX_ENDS
    for trial in trials[: ends or MAX_LISTED]:
        yield f"  {trial.sizes.size_bytes:,} bytes", short_label(trial.cells, varying)
    if ends:
        yield f"  {len(trials) - 2 * ends:,} more", "of sizes between"
        for trial in trials[-ends:]:
            yield f"  {trial.sizes.size_bytes:,} bytes", short_label(trial.cells, varying)


def _training_facts(spec: Spec, planned: Plan) -> Facts:
    """How each configuration is trained, and the sizes that come out."""
    if spec.task is not CLASSIFICATION:
        metric = spec.metric
        yield "task", f"{spec.task.name}, judged by {metric.name} ({best_word(metric)} is best)"
    yield "seeds", f"{len(spec.seeds)} per configuration, trained together"
    if spec.replicate:
        yield "  in the end", _describe_replicate(spec, planned)
    if spec.early_terminate.type != "none":
        given = {key: value for key, value in spec.early_terminate.options.items() if value is not None}
        options = ", ".join(f"{key} {value}" for key, value in given.items())
        yield "stopped early", f"by {spec.early_terminate.type}: {options}"
    of_sample = "" if spec.method in PLANNED else " in the sample"
    yield "float warm-ups", f"{planned.warmups:,}{of_sample}, each trained once and shared"
    sizes = planned.distinct_sizes
    if len(planned.trials) <= MAX_LISTED and spec.method in PLANNED:
        return  # each configuration is listed with its size
    few = ", ".join(f"{size:,}" for size in sizes)
    yield (
        "sizes",
        f"{few} bytes" if len(sizes) <= MAX_SIZES else f"{len(sizes):,}, from {sizes[0]:,} to {sizes[-1]:,} bytes",
    )


def _describe_replicate(spec: Spec, planned: Plan) -> str:
    """Who gets more seeds after the search, and between how many trainings the sweep then has."""
    assert spec.replicate is not None
    if spec.looks is None:
        return f"{spec.replicate.front} for the front and what is within {spec.replicate.within:g} of it"
    count = len(planned.trials) if spec.method in PLANNED else spec.run_cap or 0
    least, most = count * len(spec.seeds), count * spec.looks[-1]
    if spec.replicate.trainings is not None:
        most = min(most, least + spec.replicate.trainings)
    limit = f", of which {spec.replicate.seconds:g} s for further seeds" if spec.replicate.seconds else ""
    *first, last = map(str, spec.looks)
    asked = ", ".join(questions_of(spec))
    return (
        f"more where they decide ({asked}), looked at with {', '.join(first)} and {last} seeds: "
        f"at least {least:,} and at most {most:,} trainings in all{limit}"
    )


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
