"""What a sweep will run, known before anything starts: configurations, sizes, and what may be compared with them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from qdtune.messages import user_error
from qdtune.spec.axes import AXES, AXIS_NAMES, decisive_axes
from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration, OwnData, OwnModel
from qdtune.spec.groups import DataGroup, ModelGroup, Phase
from qdtune.spec.objectives import known_before
from qdtune.spec.sweep_file import Spec, loads
from qdtune.spec.values import Values, cell_text

SHUFFLED = 1_000_000  # points of a space that is shuffled as a whole; from a larger one they are drawn one by one
FIRST_DRAWN = 5  # schema version up to which every axis takes a draw, even where it has one value
DRAWS = 20  # per configuration asked for, after which a large space is taken to hold no more
Point = tuple[Any, ...]  # a value per axis, in the order of `AXES`


@dataclass(frozen=True)
class Plan:
    """The configurations of a sweep.

    Attributes:
        spec: the resolved spec.
        trials: what will run, in the order in which to start it; where the method searches, a random sample of what
            it may choose.
        points: how many points of the space were looked at.
        excluded: each rule of `exclude` as text, and how many points it removed that no earlier rule did.
        infeasible: how many of the others broke a constraint.
    """

    spec: Spec
    trials: list[Configuration]
    points: int
    excluded: list[tuple[str, int]]
    infeasible: int

    @cached_property
    def distinct_sizes(self) -> list[int]:
        """Every `size_bytes` that occurs, ascending."""
        return sorted({trial.sizes.size_bytes for trial in self.trials})

    @cached_property
    def warmups(self) -> int:
        """How many float warm-ups the configurations share."""
        return len({trial.warmup_key for trial in self.trials})

    @cached_property
    def twins(self) -> int:
        """How many configurations repeat another one of the plan under another name: see `axes.decisive_axes`."""
        return len(self.trials) - len({tuple(decisive_axes(trial.cells).values()) for trial in self.trials})

    @cached_property
    def twin_rules(self) -> list[str]:
        """Entries of `exclude` that drop the twins and nothing else, as in a sweep file; none where it is tangled."""
        found: list[dict[str, Any]] = []
        for where, axis in ((dict(where), one.name) for one in AXES for where in one.idle):
            rules = [where | {axis: value} for value in self.spec.axes[axis].choices or ()]
            tangled = any(axis in rule and rule not in rules for rule in self.spec.exclude)
            if not tangled and any(_excluded(trial.values, where) for trial in self.trials):
                found += [rule for rule in rules if rule not in self.spec.exclude][1:]  # the first is kept
        return [f"{{{_rule_text(rule)}}}" for rule in found]

    @property
    def warning(self) -> str | None:
        """What to say of the twins, and how to be rid of them; None where there are none."""
        if not self.twins:
            return None
        of = "" if self.spec.method in PLANNED else " of a random sample"
        which = f"{self.twins:,} configuration{'' if self.twins == 1 else 's'}{of}"
        why = "some of their axes change nothing there, such as an activation at depth 1 or levels at one bit"
        rules = f"add to exclude: {', '.join(self.twin_rules)}" if self.twin_rules else "exclude them"
        return f"{which} would repeat another one, for {why} ({rules})"


def plan(spec: Spec) -> Plan:
    """What a resolved spec will run: every point of a grid, or `run_cap` distinct ones drawn with a fixed seed.

    A random sweep with a larger `run_cap` holds the smaller one, so that raising it keeps what is done.

    Raises:
        SpecError: nothing is left to run.
        ValueError: the spec names more than one data set (`Spec.resolve` picks one), or a factory that has not been
            called (`own.load_own`, `own_model.described`).
    """
    if len(spec.data.names) > 1:
        raise ValueError(f"plan needs one data set, got {', '.join(spec.data.names)}: call Spec.resolve first")
    if spec.data.info is None or (spec.model.factory and not spec.model.built):
        raise ValueError(f"plan needs to know what {', '.join(spec.factories.values())} gives: call it first")
    wanted = spec.run_cap or math.inf
    removed = [0] * len(spec.exclude)
    trials: list[Configuration] = []
    points = infeasible = 0
    for point in _points(spec):
        points += 1
        config = dict(zip(AXIS_NAMES, point, strict=True))
        first = next((i for i, rule in enumerate(spec.exclude) if _excluded(config, rule)), None)
        if first is not None:
            removed[first] += 1
            continue
        trial = _trial(spec, point)
        if any(excess(text, trial) > 0 for text in spec.constraints):
            infeasible += 1
            continue
        trials.append(trial)
        if len(trials) >= wanted:
            break
    if not trials:
        what = f"nothing is left to run: {sum(removed)} of {points} points excluded, {infeasible} break a constraint"
        raise user_error(what)
    excluded = [(_rule_text(rule), count) for rule, count in zip(spec.exclude, removed, strict=True)]
    return Plan(spec, warmups_first(ordered(trials, spec.run.order)), points, excluded, infeasible)


def violations(spec: Spec, trial: Configuration) -> dict[str, float]:
    """Every rule of `exclude` and of `constraints` as text, and how far the trial breaks it: not at all up to 0."""
    excluded = {f"exclude {_rule_text(rule)}": float(_excluded(trial.values, rule)) for rule in spec.exclude}
    return excluded | {text: excess(text, trial) for text in spec.constraints}


def excess(constraint: str, trial: Configuration) -> float:
    """How far a trial breaks a constraint such as `size_bytes <= 8192`; 0 or less where it does not."""
    name, sign, bound = constraint.split()
    over = (getattr(trial, name) if name in AXIS_NAMES else known_before(trial)[name]) - float(bound)
    if sign == "==":
        return abs(over)
    if sign[0] == ">":
        over = -over
    return math.ulp(0.0) if over == 0 and len(sign) == 1 else over


def ordered(trials: Sequence[Configuration], order: str) -> list[Configuration]:
    """The trials by size, up or down, or shuffled with a fixed seed, or as they are; equal sizes keep their order."""
    if order == "shuffled":
        return random.Random(0).sample(trials, len(trials))
    if order == "as_listed":
        return list(trials)
    sign = 1 if order == "small_first" else -1
    return sorted(trials, key=lambda trial: sign * trial.sizes.size_bytes)


def warmups_first(trials: Iterable[Configuration]) -> list[Configuration]:
    """One trial of each float warm-up, then the others; otherwise in the order given.

    Trials that share a warm-up would wait for the one that trains it; started in this order they find it done.
    """
    firsts: list[Configuration] = []
    others: list[Configuration] = []
    seen = set()
    for trial in trials:
        warmup = trial.warmup_key
        (others if warmup in seen else firsts).append(trial)
        seen.add(warmup)
    return firsts + others


def _points(spec: Spec) -> Iterator[Point]:
    axes = list(spec.axes.values())
    choices = [axis.choices for axis in axes]
    listed = [values for values in choices if values is not None]
    if spec.method == "grid":
        return itertools.product(*listed)
    generator = random.Random(0)
    total = math.prod(map(len, listed))
    if len(listed) == len(axes) and total <= SHUFFLED:
        numbers = list(range(total))
        generator.shuffle(numbers)
        return (_nth(listed, number) for number in numbers)
    # An axis that came later and has one value takes no draw: a sweep that does not name it keeps its points.
    fixed = [
        values.choices[0] if axis.since > FIRST_DRAWN and values.choices and len(values.choices) == 1 else None
        for axis, values in zip(AXES, axes, strict=True)
    ]
    draws = (
        tuple(_draw(axis, generator) if one is None else one for axis, one in zip(axes, fixed, strict=True))
        for _ in range(DRAWS * (spec.run_cap or 1))
    )
    return _distinct(draws)


def _distinct(points: Iterable[Point]) -> Iterator[Point]:
    seen = set()
    for point in points:
        if point not in seen:
            seen.add(point)
            yield point


def _nth(choices: list[tuple[Any, ...]], number: int) -> Point:
    """The point at place `number` of the product, without building the product."""
    point = []
    for values in reversed(choices):
        number, index = divmod(number, len(values))
        point.append(values[index])
    return tuple(reversed(point))


def _draw(axis: Values[Any], generator: random.Random) -> Any:
    values = axis.choices
    if values is not None:
        return generator.choice(values)
    low, high = axis.min, axis.max  # type: ignore[attr-defined]
    if axis.distribution == "log_uniform":  # type: ignore[attr-defined]
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    return six_digits(value, low, high)


def six_digits(value: float, low: float, high: float) -> float:
    """The value at six digits, within the range: the last bit of exp is the machine's own, a trial_id must not be."""
    return min(max(low, float(f"{value:.6g}")), high)


def make_trial(spec: Spec, config: Mapping[str, Any], seeds: tuple[int, ...] | None = None) -> Configuration:
    """The trial of a resolved spec whose axes have these values.

    Args:
        config: the axes by name, as they stand in tables.
        seeds: of its replicas; those of the spec if None.
    """
    return _trial(spec, tuple(axis.of_cell(config[axis.name]) for axis in AXES), seeds)


def held(spec: Spec, trials: Iterable[Configuration]) -> list[Configuration]:
    """Those that the sweep could run: every value can occur, nothing excludes it."""
    axes = spec.axes
    return [
        trial
        for trial in trials
        if all(axes[name].holds(value) for name, value in trial.values.items()) and _feasible(spec, trial)
    ]


def candidates(spec: Spec) -> Iterator[Configuration]:
    """What a sweep may run, in an order that is random but always the same."""
    for point in _points(spec.model_copy(update={"method": "random"})):
        trial = _trial(spec, point)
        if _feasible(spec, trial):
            yield trial


def _feasible(spec: Spec, trial: Configuration) -> bool:
    return max(violations(spec, trial).values(), default=0) <= 0


def _trial(spec: Spec, point: Point, seeds: tuple[int, ...] | None = None) -> Configuration:
    axes, norm = dict(zip(AXIS_NAMES, point, strict=True)), spec.model.batch_norm
    phases: dict[str, dict[str, Any]] = {"warmup": {}, "qat": {}}
    for axis in AXES:
        if axis.phase:
            phases[axis.phase][axis.home[-1]] = axes.pop(axis.name)
    return Configuration(
        **axes,
        batch_norm=norm if axes["depth"] > 1 else bool(norm),  # one factor has nothing in between: the same network
        dataset=spec.data.names[0],
        val_size=spec.data.val_size,
        batch_size=spec.train.batch_size,
        warmup=_with(spec.train.warmup, **phases["warmup"]),
        qat=_with(spec.train.qat, **phases["qat"]),
        seeds=spec.seeds if seeds is None else seeds,
        own_model=_own_model(spec.model, axes["hidden"]),
        own_data=_own_data(spec.data),
    )


def _own_model(model: ModelGroup, hidden: tuple[int, ...]) -> OwnModel | None:
    if not (model.factory and model.sha256 and model.built):
        return None
    return OwnModel(model.factory, model.sha256, model.built.get(cell_text(hidden)))


def _own_data(data: DataGroup) -> OwnData | None:
    if not (data.factory and data.sha256 and data.content and data.info):
        return None
    return OwnData(data.sha256, data.content, data.info)


@lru_cache(maxsize=1024)
def _with(phase: Phase, **values: Any) -> Phase:
    # A grid names a few learning rates very many times.
    return phase.model_copy(update=values)


def _excluded(config: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    return all(config[axis] == value for axis, value in rule.items())


def _rule_text(rule: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis}: {cell_text(value)}" for axis, value in rule.items())


def check_comparable(spec: Spec, sweep_yaml: bytes | None, folder: str, missing: str | None = None) -> None:
    """Raises where a run folder holds results that could not be compared with those of the resolved spec.

    Args:
        sweep_yaml: what the folder holds under this name; None where there is no such file.
        folder: what messages call it.
        missing: why the data set that the sweep wants could not be had, if so.

    Raises:
        SpecError: data, model, training or seeds differ; or `sweep.yaml` in the folder is no sweep file.
    """
    if sweep_yaml is None:
        return
    earlier = loads(sweep_yaml, f"{folder}/sweep.yaml")
    old, new = (_leaves(s.result_settings()) for s in (earlier, spec))
    changed = [
        f"{key}: {old.get(key)} there, {new.get(key)} now" for key in new | old if old.get(key) != new.get(key)
    ]
    if changed and missing:
        raise user_error(
            f"{missing}; {folder} holds results on {', '.join(earlier.data.names)}: point --data-dir or "
            "QDTUNE_DATA to where that is"
        )
    if changed:
        raise user_error(
            f"{folder} holds results that are not comparable ({'; '.join(changed)}): choose another name, or set "
            "them aside with --fresh"
        )


def _leaves(group: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones."""
    leaves: dict[str, Any] = {}
    for key, value in group.items():
        leaves |= _leaves(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return leaves
