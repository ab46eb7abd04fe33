"""The sweep as a search space of Ray Tune, which any `Tuner` over `QATTrial` takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float

from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import NumberValues, Values, cell_text

GRID = "grid_search"  # the key that Tune uses for values of which it tries each one


def param_space(spec: Spec) -> dict[str, Any]:
    """An ordinary Tune search space: a domain for each axis, by name, or the value of an axis that has only one.

    Args:
        spec: as loaded. Method `grid` gives `tune.grid_search`; the other methods give domains to draw from.
    """
    return {name: _domain(values, spec.method) for name, values in spec.axes.items()}


def check_space(spec: Spec, space: Mapping[str, Any]) -> None:
    """Checks that a search space equals that of the sweep, from which the queue draws.

    Args:
        spec: of the sweep.
        space: the `param_space` of a `Tuner`.

    Raises:
        ValueError: the spaces differ; the message names the axes.
    """
    ours = param_space(spec)
    differing = [name for name in {**ours, **space} if _describe(ours.get(name)) != _describe(space.get(name))]
    if differing:
        wanted = ", ".join(f"{name}: {_describe(ours.get(name))}" for name in differing)
        given = ", ".join(f"{name}: {_describe(space.get(name))}" for name in differing)
        raise ValueError(
            f"param_space must be that of the sweep, with {wanted}; got {given} (pass param_space(spec), or search "
            "another space with a searcher of Ray's instead of QueueSearcher)"
        )


def _domain(values: Values[Any], method: str) -> Any:
    choices = values.choices
    if choices is None:
        assert isinstance(values, NumberValues), "only numbers have a range"
        draw = {"uniform": tune.uniform, "log_uniform": tune.loguniform}[values.distribution or ""]
        return draw(values.min, values.max)  # type: ignore[arg-type]  # a range has both
    cells = [cell_text(value) if isinstance(value, tuple) else value for value in choices]
    if len(cells) == 1:
        return cells[0]
    return tune.grid_search(cells) if method == "grid" else tune.choice(cells)


def _describe(domain: Any) -> str:
    """A domain in words; equal domains give equal words, because Tune's own objects cannot be compared."""
    if isinstance(domain, Mapping) and set(domain) == {GRID}:
        return f"each of {list(domain[GRID])}"
    if isinstance(domain, Categorical):
        return f"one of {list(domain.categories)}"
    if isinstance(domain, Float):
        return f"{type(domain.get_sampler()).__name__.strip('_')} {domain.lower!r} to {domain.upper!r}"
    return domain.domain_str if isinstance(domain, Domain) else repr(domain)
