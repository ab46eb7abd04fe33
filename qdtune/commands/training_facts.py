"""The part of a dry run that says how configurations are trained and judged."""

from __future__ import annotations

from collections.abc import Iterator

from qdtune.spec.choices import PLANNED
from qdtune.spec.metric_text import best_word
from qdtune.spec.objectives import find_known, say_front
from qdtune.spec.plan import Plan
from qdtune.spec.replicate import questions_of
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import CLASSIFICATION

MAX_LISTED = 12  # configurations that are listed one by one
MAX_SIZES = 8  # the same of sizes
Facts = Iterator[tuple[str, str]]  # name and text


def list_training_facts(spec: Spec, planned: Plan) -> Facts:
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


def list_front_facts(spec: Spec, planned: Plan) -> Facts:
    """What the front is over, if the file says that, and how far the costs of the plan spread."""
    if spec.objectives is None:
        return
    yield "front over", say_front(spec.metric, spec.costs)
    of_sample = "" if spec.method in PLANNED else " in the sample"
    for cost in spec.costs:
        values = {find_known(trial, cost.name) for trial in planned.trials}
        low, high = min(values), max(values)
        spread = f"{low:,} to {cost.say(high)}, {len(values):,} different{of_sample}"
        yield f"  {cost.name}", spread if low < high else f"{cost.say(low)}{of_sample}: the same everywhere"


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
