"""What a sweep will run: counted against brute force, in the order that lets warm-ups be shared."""

from __future__ import annotations

import itertools
import math
import operator
import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from qdtune.messages import SpecError
from qdtune.spec.axes import AXIS_NAMES, LEVELS
from qdtune.spec.choices import ORDERS
from qdtune.spec.configuration import Configuration
from qdtune.spec.groups import Resources
from qdtune.spec.objectives import BOUNDED, find_known
from qdtune.spec.plan import (
    Plan,
    draw_candidates,
    keep_possible,
    list_violations,
    make_trial,
    measure_excess,
    plan,
    put_warmups_first,
    sort_trials,
)
from qdtune.spec.points import round_to_six_digits
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.placement import Need, Node, Placement, place_trials


def spec(**given: Any) -> Spec:
    data = {"version": 1, "name": "a", "parameters": {}, "data": {"dataset": "digits", "val_size": 100}}
    return Spec.model_validate(data | given)


def values(**axes: list[Any]) -> dict[str, Any]:
    return {axis: {"values": given} for axis, given in axes.items()}


def planned(**given: Any) -> Plan:
    return plan(spec(**given))


AXES = {
    "depth": [1, 2, 3],
    "weight_bits": [1, 4, 32],
    "activation": ["identity", "relu"],
    "act_bits": [None, 4],
    "scale": ["minmax", "lsq"],
    "hidden": [[8], [16, 8]],
    "qat_lr": [0.1, 0.01],
}
axes = st.fixed_dictionaries(
    {}, optional={name: st.lists(st.sampled_from(v), min_size=1, unique_by=str) for name, v in AXES.items()}
)


@settings(max_examples=60, deadline=None)
@given(axes, st.integers(0, 10_000), st.integers(0, 3000))
def test_grid_equals_brute_force(axes: dict[str, list[Any]], seed: int, limit: int) -> None:
    generator = random.Random(seed)
    rules = [{name: generator.choice(axes[name]) for name in axes if generator.random() < 0.6} for _ in range(2)]
    rules = [rule for rule in rules if rule]
    wanted = []
    counts = [0] * len(rules)
    points = [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    for point in points:
        hits = [all(point[name] == value for name, value in rule.items()) for rule in rules]
        if any(hits):
            counts[hits.index(True)] += 1
        else:
            wanted.append(point)
    everything = planned(parameters=values(**axes)).trials
    fits = [trial for trial in everything if trial.sizes.weight_bytes >= limit]
    kept = [trial for trial in fits if any(_is(trial, point) for point in wanted)]
    given = {"parameters": values(**axes), "exclude": rules, "constraints": [f"weight_bytes >= {limit}"]}
    if not kept:
        with pytest.raises(SpecError, match="nothing is left to run"):
            planned(**given)
        return
    found = planned(**given)
    assert sorted(trial.trial_id for trial in found.trials) == sorted(trial.trial_id for trial in kept)
    assert len({trial.trial_id for trial in found.trials}) == len(kept)
    assert found.points == len(points)
    assert [count for _, count in found.excluded] == counts
    assert found.infeasible == len(wanted) - len(kept)
    assert found.distinct_sizes == sorted({trial.sizes.size_bytes for trial in kept})


def _is(trial: Any, point: dict[str, Any]) -> bool:
    config = trial.cells | {"hidden": list(trial.hidden)}
    return all(config[name] == value for name, value in point.items())


def test_grid_runs_in_the_order_of_the_file_where_that_is_wanted() -> None:
    listed = values(weight_bits=[8, 1, 4], scale=["lsq", "absmean"])
    found = planned(parameters=listed, run={"order": "as_listed"}).trials
    points = list(itertools.product([8, 1, 4], ["lsq", "absmean"]))
    assert [(trial.weight_bits, trial.scale) for trial in found] == points
    for order, bits in {"small_first": [1, 4, 8], "large_first": [8, 4, 1]}.items():
        found = planned(parameters=listed, run={"order": order}).trials
        # One warm-up serves them all, so nothing else changes the order; equal sizes stay as they were listed.
        assert [(t.weight_bits, t.scale) for t in found] == list(itertools.product(bits, ["lsq", "absmean"]))
    assert [t.weight_bits for t in planned(parameters=listed).trials] == [1, 1, 4, 4, 8, 8]  # small first by default
    shuffled = [(t.weight_bits, t.scale) for t in planned(parameters=listed, run={"order": "shuffled"}).trials]
    assert sorted(shuffled) == sorted(points)


def test_random_trials_are_ordered_by_size_too() -> None:
    one = {"weight_bits": {"min": 1, "max": 16}, "qat_lr": {"min": 0.1, "max": 1.0}}
    trials = planned(method="random", run_cap=30, parameters=one).trials
    sizes = [trial.sizes.size_bytes for trial in trials]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 5


@given(axes, st.randoms(use_true_random=False))
def test_ordered_sorts_by_size_and_is_stable(axes: dict[str, list[Any]], generator: random.Random) -> None:
    trials = planned(parameters=values(**axes)).trials
    generator.shuffle(trials)
    given = list(trials)
    place = {trial: k for k, trial in enumerate(trials)}
    size = {trial: trial.sizes.size_bytes for trial in trials}
    assert sort_trials(trials, "small_first") == sorted(trials, key=lambda t: (size[t], place[t]))
    assert sort_trials(trials, "large_first") == sorted(trials, key=lambda t: (-size[t], place[t]))
    assert sort_trials(trials, "as_listed") == trials
    shuffled = sort_trials(trials, "shuffled")
    assert sorted(shuffled, key=place.__getitem__) == trials
    assert sort_trials(trials, "shuffled") == shuffled
    assert shuffled != trials or len(trials) < 9
    assert trials == given  # and the list itself was left alone


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_keeps_a_warmup_waiting_for_its_own_turn(order: str) -> None:
    found = planned(parameters=values(depth=[1, 2], weight_bits=[1, 2, 4]), run={"order": order}).trials
    assert len({trial.warmup_id for trial in found[:2]}) == 2


@pytest.mark.parametrize(
    ("constraint", "depths"),
    [("depth <= 2", [1, 2]), ("depth < 2", [1]), ("depth >= 2", [2, 3]), ("depth > 2", [3]), ("depth == 2", [2])],
)
def test_constraint_compares_as_it_is_written(constraint: str, depths: list[int]) -> None:
    found = planned(parameters=values(depth=[3, 1, 2]), constraints=[constraint])
    assert sorted(trial.depth for trial in found.trials) == depths
    assert found.infeasible == 3 - len(depths)


COMPARE = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt, "==": operator.eq}


@settings(max_examples=80, deadline=None)
@given(
    axes,
    st.sampled_from(BOUNDED),
    st.sampled_from(sorted(COMPARE)),
    st.sampled_from([-1000, -1, -0.5, 0, 0, 0.5, 1, 1000]),
    st.randoms(use_true_random=False),
)
def test_excess_is_how_far_a_constraint_is_broken(
    axes: dict[str, list[Any]], name: str, sign: str, offset: float, generator: random.Random
) -> None:
    trial = generator.choice(planned(parameters=values(**axes)).trials)
    value = getattr(trial, name) if name in AXIS_NAMES else find_known(trial, name)
    bound = value + offset
    over = measure_excess(f"{name} {sign} {bound}", trial)
    assert (over <= 0) == COMPARE[sign](value, bound)
    if over > 0 and value != bound:
        assert over == abs(value - bound)
    if over > 0 and value == bound:
        assert over < 1e-300  # next to nothing, but more than nothing
    assert math.isfinite(over)


def test_one_factor_is_the_same_network_whether_or_not_factors_are_normalised() -> None:
    ids = {
        (trial.depth, norm): trial.trial_id
        for norm in (True, "factors", False)
        for trial in planned(parameters=values(depth=[1, 2]), model={"batch_norm": norm}).trials
    }
    assert ids[1, True] == ids[1, "factors"]
    assert len(set(ids.values())) == len(ids) - 1 == 5


def test_violations_name_every_rule_and_constraint() -> None:
    rules = [{"depth": 2, "activation": "relu"}, {"depth": 1}]
    some = spec(
        parameters=values(depth=[1, 2], activation=["identity", "relu"]), exclude=rules, constraints=["depth < 2"]
    )
    config = planned().trials[0].cells
    found = {
        (d, a): list_violations(some, make_trial(some, config | {"depth": d, "activation": a}))
        for d, a in itertools.product([1, 2], ["identity", "relu"])
    }
    names = ("exclude depth: 2, activation: relu", "exclude depth: 1", "depth < 2")
    assert all(tuple(broken) == names for broken in found.values())
    assert {key: [broken[name] > 0 for name in names] for key, broken in found.items()} == {
        (1, "identity"): [False, True, False],
        (1, "relu"): [False, True, False],
        (2, "identity"): [False, False, True],
        (2, "relu"): [True, False, True],
    }
    assert list_violations(spec(), planned().trials[0]) == {}


@settings(max_examples=60, deadline=None)
@given(axes, st.randoms(use_true_random=False))
def test_held_and_candidates_are_what_a_grid_would_plan(axes: dict[str, list[Any]], generator: random.Random) -> None:
    """Of a space that is wider in every axis, a sweep holds its own plan, which is what a search may choose from."""
    everything = planned(parameters=values(**AXES)).trials
    rules = [{name: generator.choice(axes[name]) for name in axes if generator.random() < 0.6}]
    limit = generator.choice(everything).sizes.size_bytes
    given = {
        "parameters": values(**axes),
        "exclude": [r for r in rules if r],
        "constraints": [f"size_bytes <= {limit}"],
    }
    some = spec(**given)
    try:
        wanted = {trial.trial_id for trial in plan(some).trials}
    except SpecError:
        wanted = set()
    pool = generator.sample(everything, 60)
    assert keep_possible(some, pool) == [trial for trial in pool if trial.trial_id in wanted]
    for method in ("grid", "random", "tpe"):
        asked = spec(**given, method=method, run_cap=None if method == "grid" else 3)
        found = [trial.trial_id for trial in draw_candidates(asked)]
        assert len(found) == len(wanted)
        assert set(found) == wanted
        assert [trial.trial_id for trial in draw_candidates(asked)] == found


def test_candidates_of_a_grid_do_not_come_as_they_are_listed() -> None:
    some = spec(parameters=values(depth=list(range(1, 30))))
    found = [trial.depth for trial in draw_candidates(some)]
    assert sorted(found) == list(range(1, 30))
    assert found != sorted(found)


def test_candidates_of_a_range_are_distinct_and_feasible() -> None:
    some = spec(method="tpe", run_cap=20, parameters=RANDOM, exclude=[{"depth": 3}], constraints=["depth > 1"])
    found = list(itertools.islice(draw_candidates(some), 50))
    assert len({trial.trial_id for trial in found}) == 50
    assert {trial.depth for trial in found} == {2, 4}
    assert keep_possible(some, found) == found


@pytest.mark.parametrize(
    ("change", "inside"),
    [
        ({}, True),
        ({"depth": 4}, True),
        ({"depth": 5}, False),
        ({"qat_lr": 0.00009}, False),
        ({"qat_lr": 1.0}, True),
        ({"act_bits": 4}, False),
        ({"hidden": "24-24"}, False),
        ({"scale": "lsq"}, False),
    ],
    ids=str,
)
def test_held_looks_at_every_axis(change: dict[str, Any], inside: bool) -> None:
    some = spec(method="random", run_cap=3, parameters=RANDOM)
    config = plan(some).trials[0].cells
    assert len(keep_possible(some, [make_trial(some, config | change)])) == inside


@given(st.floats(1e-9, 1e9), st.floats(1e-9, 1e9), st.floats(0, 1))
def test_six_digits_stay_inside_and_close(a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    value = min(max(low, low + share * (high - low)), high)
    found = round_to_six_digits(value, low, high)
    assert low <= found <= high
    assert found == pytest.approx(value, rel=1e-5)
    assert found in (low, high, float(f"{found:.6g}"))
    assert round_to_six_digits(found, low, high) == found


def test_make_trial_takes_seeds_of_its_own() -> None:
    some = spec(seeds=[3, 4])
    (usual,) = plan(some).trials
    other = make_trial(some, usual.cells, (7, 8, 9))
    assert make_trial(some, usual.cells) == usual
    assert other == replace(usual, seeds=(7, 8, 9))
    assert (usual.seeds, other.trial_id == usual.trial_id) == ((3, 4), False)
    assert isinstance(other, Configuration)


def test_constraint_on_size_is_exact() -> None:
    size = planned().trials[0].sizes.size_bytes
    assert len(planned(constraints=[f"size_bytes <= {size}"]).trials) == 1
    with pytest.raises(
        SpecError, match=r"^error: nothing is left to run: 0 of 1 points excluded, 1 left out by size_bytes < .*$"
    ):
        planned(constraints=[f"size_bytes < {size}"])


def test_first_rule_that_matches_is_counted() -> None:
    rules = [{"depth": 1, "activation": "relu"}, {"activation": "relu"}]
    found = planned(parameters=values(depth=[1, 2], activation=["identity", "relu"]), exclude=rules)
    assert found.excluded == [("depth: 1, activation: relu", 1), ("activation: relu", 1)]
    assert (found.points, len(found.trials)) == (4, 2)


def test_trials_that_share_a_warmup_start_after_its_first() -> None:
    found = planned(parameters=values(depth=[1, 2], weight_bits=[1, 2, 4], scale=["lsq", "minmax"])).trials
    groups = [trial.warmup_id for trial in found]
    assert len(set(groups[:2])) == 2
    assert set(groups[2:]) == set(groups[:2])


@settings(max_examples=30, deadline=None)
@given(axes, st.randoms(use_true_random=False))
def test_warmups_first_keeps_the_order_otherwise(axes: dict[str, list[Any]], generator: random.Random) -> None:
    trials = planned(parameters=values(**axes)).trials
    generator.shuffle(trials)
    seen: set[str] = set()
    firsts = [trial for trial in trials if not (trial.warmup_id in seen or seen.add(trial.warmup_id))]  # type: ignore[func-returns-value]
    assert put_warmups_first(trials) == firsts + [trial for trial in trials if trial not in firsts]
    assert planned(parameters=values(**axes)).warmups == len(firsts)


def test_twins_are_networks_under_two_names() -> None:
    assert planned(parameters=values(depth=[1, 2], activation=["identity", "relu"])).twins == 1
    assert planned(parameters=values(weight_bits=[4, 32], scale=["lsq", "minmax", "absmean"])).twins == 2
    assert planned(parameters=values(weight_bits=[32], scale=["lsq", "minmax"], act_bits=[4])).twins == 0
    split = planned(parameters=values(depth=[1, 2], decompose=["all", "hidden"]))
    assert (split.twins, split.twin_rules) == (1, ["{depth: 1, decompose: hidden}"])
    assert planned(parameters=values(weight_bits=[4, 32], granularity=["tensor", "channel"])).twins == 1
    # One bit has one kind of levels, three bits have no ternary ones; float weights have none.
    assert planned(parameters=values(weight_bits=[1, 2, 3, 32], levels=list(LEVELS.names))).twins == 2 + 0 + 1 + 2
    # The same bits in both layers are those of all weights.
    layers = planned(parameters=values(weight_bits=[2, 4], layer_bits=[None, [2, 2], [2, 4]]))
    assert layers.twins == 1 + 1 + 1  # [2, 2] with 2 is null; with 4 it is, too; [2, 4] has the same bits with both


def test_sizes_follow_levels_granularity_and_decompose() -> None:
    def size(**one: object) -> int:
        (trial,) = planned(parameters=values(**{name: [value] for name, value in one.items()})).trials
        return trial.sizes.size_bytes

    plain = size(depth=2, weight_bits=2)  # of 64 x 17, 17 x 24, 24 x 7 and 7 x 10 weights
    assert plain - size(depth=2, weight_bits=2, levels="ternary") == (272 + 102 + 42 + 18) - (218 + 82 + 34 + 14)
    assert size(depth=2, weight_bits=2, levels="full") == plain
    assert size(depth=2, weight_bits=2, granularity="channel") - plain == 4 * (17 + 24 + 7 + 10 - 4)
    assert size(depth=2, weight_bits=2, decompose="hidden") - plain == 60 - (42 + 18) - 4  # 24 x 10, one step less


@settings(max_examples=60, deadline=None)
@given(axes, st.integers(0, 10_000))
def test_rules_against_twins_drop_them_and_nothing_else(axes: dict[str, list[Any]], seed: int) -> None:
    generator = random.Random(seed)
    idle = [{"depth": 1, "activation": name} for name in axes.get("activation", ()) if 1 in axes.get("depth", ())]
    exclude = generator.sample(idle, max(0, len(idle) - 1)) if generator.random() < 0.5 else []
    found = planned(parameters=values(**axes), exclude=exclude)
    assert bool(found.twins) == bool(found.twin_rules) == bool(found.warning)
    text = f"exclude: [{', '.join(found.twin_rules)}]"
    after = planned(parameters=values(**axes), exclude=[*exclude, *YAML(typ="safe").load(text)["exclude"]])
    assert (after.twins, after.warning) == (0, None)
    assert len(after.trials) == len(found.trials) - found.twins


def test_warning_names_the_rules_or_says_that_they_are_the_users_own() -> None:
    three = values(depth=[1, 2], weight_bits=[1, 4], activation=["relu", "tanh", "gelu"])
    assert planned(parameters=three).warning == (
        "4 configurations would repeat another one, for some of their axes change nothing there, such as an "
        "activation at depth 1 or levels at one bit (add to exclude: {depth: 1, activation: tanh}, {depth: 1, "
        "activation: gelu})"
    )
    partly = [{"depth": 1, "activation": "relu", "weight_bits": 4}]  # with ours beside it no tanh and gelu were left
    assert (planned(parameters=three, exclude=partly).warning or "").endswith("one bit (exclude them)")
    searched = planned(parameters=three, method="random", run_cap=12).warning or ""
    assert searched.startswith("4 configurations would")
    searched = planned(parameters=three, method="tpe", run_cap=12).warning or ""
    assert searched.startswith("4 configurations of a random sample would")


@pytest.mark.parametrize("bits", range(1, 4))
def test_grid_is_counted_before_it_is_built(bits: int) -> None:
    big = values(
        depth=list(range(1, 65)),
        weight_bits=list(range(1, 17)),
        act_bits=list(range(1, 17)),
        scale=["minmax", "absmean", "lsq"],
        hidden=[[n] for n in range(1, 10**bits)],
        qat_lr=[n / 10**bits for n in range(1, 10**bits)],
    )
    points = 64 * 16 * 16 * 3 * (10**bits - 1) ** 2
    with pytest.raises(ValueError, match=f"the grid has {points:,} points \\(limit 100,000; write method: random"):
        spec(parameters=big)


def test_grid_beyond_every_integer_type_is_counted() -> None:
    lrs = [float(n) for n in range(1, 9000)]
    points = 8999**2 * 8999 * 64 * 16 * 16
    big = values(hidden=[[n] for n in range(1, 9000)], qat_lr=lrs, warmup_lr=lrs)
    more = values(depth=list(range(1, 65)), weight_bits=list(range(1, 17)), act_bits=list(range(1, 17)))
    assert points > 10**16
    with pytest.raises(ValueError, match=f"the grid has {points:,} points"):
        spec(parameters=big | more)


RANDOM = {"depth": {"min": 1, "max": 4}, "qat_lr": {"min": 1e-4, "max": 1.0, "distribution": "log_uniform"}}


def drawn(run_cap: int, **parameters: Any) -> set[str]:
    return {t.trial_id for t in planned(method="random", run_cap=run_cap, parameters=parameters or RANDOM).trials}


@pytest.mark.parametrize("parameters", [RANDOM, values(depth=[1, 2, 3], weight_bits=[1, 2, 3, 4], seeds=[])])
def test_larger_run_cap_keeps_what_is_done(parameters: dict[str, Any]) -> None:
    parameters = {name: axis for name, axis in parameters.items() if name != "seeds"}
    draws = [drawn(n, **parameters) for n in (1, 5, 9)]
    assert [len(draw) for draw in draws] == [1, 5, 9]
    assert draws[0] < draws[1] < draws[2]


def test_random_gives_all_of_a_small_space() -> None:
    parameters = values(depth=[1, 2, 3], activation=["identity", "relu"])
    rules = [{"depth": 1}]
    found = planned(method="random", run_cap=1000, parameters=parameters, exclude=rules)
    assert {t.trial_id for t in found.trials} == {
        t.trial_id for t in planned(parameters=parameters, exclude=rules).trials
    }
    assert found.points == 6


def test_random_values_lie_inside_their_range() -> None:
    trials = planned(method="random", run_cap=400, parameters=RANDOM).trials
    rates = sorted(trial.qat.lr for trial in trials)
    assert {trial.depth for trial in trials} == {1, 2, 3, 4}
    assert 1e-4 <= rates[0] < 2e-4
    assert 0.5 < rates[-1] <= 1
    assert 0.003 < rates[200] < 0.03  # half of them below the geometric middle
    assert all(float(f"{rate:.6g}") == rate for rate in rates)
    even = RANDOM | {"qat_lr": {"min": 0.0001, "max": 1.0}}
    evenly = sorted(t.qat.lr for t in planned(method="random", run_cap=400, parameters=even).trials)
    assert 0.4 < evenly[200] < 0.6


def test_random_ends_where_nothing_fits() -> None:
    with pytest.raises(
        SpecError, match=r"nothing is left to run: 0 of 60 points excluded, 60 left out by size_bytes < 1"
    ):
        planned(method="random", run_cap=3, parameters=RANDOM, constraints=["size_bytes < 1"])


def test_plan_wants_one_data_set() -> None:
    both = spec(data={"dataset": ["digits", "synthetic"], "val_size": 100})
    with pytest.raises(ValueError, match="plan needs one data set, got digits, synthetic: call Spec"):
        plan(both)
    assert plan(both.resolve("synthetic")).trials[0].dataset == "synthetic"


# --- Placement.


def place(gpu: Any, cpu: Any = 1, *, cpus: int = 16, gpus: int = 1, most: int | None = None) -> Placement:
    return place_trials(Resources(gpu=gpu, cpu=cpu), [Node(cpus, gpus)], most)


@pytest.mark.parametrize(
    ("gpu", "per_gpu"), [("1/3", 3), (0.3333, 3), (0.125, 8), (0.5, 2), (1, 1), (0.0625, 16), ("1/7", 7)]
)
def test_even_share_of_a_gpu_needs_no_note(gpu: Any, per_gpu: int) -> None:
    found = place(gpu, gpus=1)
    assert (found.per_gpu, found.concurrent, found.notes) == (per_gpu, per_gpu, ())


@pytest.mark.parametrize(
    ("gpu", "note"),
    [
        (0.3, "resources.gpu 0.3 leaves 10 % of each GPU idle, with 3 trial(s) on it; 1/3 uses all of it"),
        (0.34, "resources.gpu 0.34 lets only 2 share a GPU; 1/3 lets 3"),
        (0.6, "resources.gpu 0.6 leaves 40 % of each GPU idle, with 1 trial(s) on it; 1 uses all of it"),
        (0.51, "resources.gpu 0.51 lets only 1 share a GPU; 1/2 lets 2"),
    ],
)
def test_uneven_share_of_a_gpu_is_noted(gpu: float, note: str) -> None:
    assert place(gpu).notes == (note,)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 8), st.integers(1, 64))
def test_trials_at_once_fit_and_one_more_would_not(gpu: int, cpu: int, gpus: int, cpus: int) -> None:
    found = place(gpu / 10_000, cpu / 10_000, cpus=cpus, gpus=gpus)
    assert found.per_gpu * gpu <= 10_000 < (found.per_gpu + 1) * gpu
    n = found.concurrent
    assert n <= found.per_gpu * gpus
    assert n * cpu <= cpus * 10_000
    assert n == found.per_gpu * gpus or (n + 1) * cpu > cpus * 10_000


@pytest.mark.parametrize(("trials", "waves"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (17, 3)])
def test_waves_count_the_last_one_too(trials: int, waves: int) -> None:
    assert place(0.125).waves(trials) == waves


def test_without_a_gpu_trials_take_the_cpu_and_a_note_says_so() -> None:
    found = place(0.125, cpus=4, gpus=0)
    assert (found.gpu, found.per_gpu, found.concurrent) == (0, 0, 4)
    assert found.notes == ("no GPU here: trials run on CPU only, and resources.gpu 0.125 is not used",)
    unnamed = place_trials(Resources(cpu=1), [Node(4, 0)])  # a default is no wish of the user's
    assert unnamed.notes == ("no GPU here: trials run on CPU only",)
    assert place(0, cpus=4, gpus=0).notes == ()
    assert place(0, cpus=4, gpus=2).concurrent == 4


def test_cpus_that_hold_gpus_back_are_noted() -> None:
    found = place(0.125, cpus=2)
    assert found.concurrent == 2
    assert found.notes == ("8 trials fit on the GPUs, but 2 CPUs let only 2 run at once",)


def test_whole_gpus_and_limits_are_counted() -> None:
    assert place(2, gpus=5).concurrent == 2
    assert place(0.125, most=3).concurrent == 3
    assert place(0.125, most=300).concurrent == 8
    assert place(0, 0.5, cpus=2).concurrent == 4


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^error: resources.cpu: 64 CPUs per trial asked, largest node has 2$"):
        place(0, 64, cpus=2)
    with pytest.raises(SpecError, match=r"^error: resources.gpu: 2 GPUs per trial asked, largest node has 1$"):
        place(2, gpus=1)


def test_an_unmeasured_share_counts_as_a_whole_gpu() -> None:
    found = place("auto", gpus=2)
    assert (found.gpu, found.concurrent) == (1, 2)
    assert found.notes == ("gpu: auto: how many trials share a GPU is measured on one of them when the sweep starts",)
    assert place("auto", gpus=0).notes == ("no GPU here: trials run on CPU only, and resources.gpu auto is not used",)


@pytest.mark.parametrize(
    ("memory", "busy", "sharers"),
    [
        (1, 1.0, 1),  # one keeps it busy
        (1, 0.9, 2),
        (1, 0.3, 4),
        (1, 0.0, 32),
        (30, 0.3, 3),  # no more fit in
        (46, 0.3, 1),
        (99, 0.3, 1),
    ],
)
def test_a_gpu_is_shared_by_as_many_as_fit_and_keep_it_busy(memory: int, busy: float, sharers: int) -> None:
    need = Need(memory=memory * 2**20, total=100 * 2**20, busy=busy)
    assert need.sharers == sharers
    assert sharers * need.gpu <= 1
    assert place(need.gpu, cpus=64).per_gpu == sharers


def test_a_gpu_is_not_shared_by_more_than_there_are_cpus_for() -> None:
    assert Need(memory=1, total=1000, busy=0.0, most=3).sharers == 3


def test_the_plan_for_a_gpu_is_told() -> None:
    told = str(Need(memory=700 * 2**20, total=80_000 * 2**20, busy=0.3))
    assert told == "gpu: auto: one trial took 700 of 80,000 MiB and kept the GPU busy 30% of the time: 1/4 each"


NODES = st.lists(st.builds(Node, st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=5)


def packed(node: Node, cpu: int, gpu: int) -> int:
    """How many trials a node takes if they are put on it one by one, each where a GPU has room."""
    free, devices, count = node.cpus * 10_000, [10_000] * node.gpus, 0
    while free >= cpu:
        whole = -(-gpu // 10_000) if gpu > 10_000 else 1
        takers = [k for k, left in enumerate(devices) if left >= min(gpu, 10_000)][:whole]
        if gpu and len(takers) < whole:
            break
        for k in takers if gpu else []:
            devices[k] -= min(gpu, 10_000)
        free, count = free - cpu, count + 1
    return count


@given(NODES, st.integers(2_000, 40_000), st.sampled_from([0, 2_500, 3_333, 6_000, 10_000, 20_000]))
def test_trials_at_once_are_what_each_node_takes(nodes: list[Node], cpu: int, gpu: int) -> None:
    asked = Resources(gpu=gpu / 10_000, cpu=cpu / 10_000 if cpu <= 10_000 else cpu // 10_000)
    cpu, gpu = round(asked.cpu * 10_000), gpu if any(node.gpus for node in nodes) else 0
    expected = sum(packed(node, cpu, gpu) for node in nodes)
    if expected:
        found = place_trials(asked, nodes)
        assert found.concurrent == found.at_once(nodes) == expected
        assert found.at_once(nodes[1:]) == sum(packed(node, cpu, gpu) for node in nodes[1:])
        idle = sum(node.cpus > 0 and not packed(node, cpu, gpu) for node in nodes)
        assert any(note.startswith(f"{idle} of {len(nodes)} nodes take no trial") for note in found.notes) == (
            idle > 0
        )
    else:
        with pytest.raises(SpecError, match=r"per trial asked, (largest node has|and no node has both)"):
            place_trials(asked, nodes)


def test_halves_of_two_nodes_make_no_place() -> None:
    three = Resources(gpu=0, cpu=2)
    assert place_trials(three, [Node(3), Node(3)]).concurrent == 2  # a plain sum would say 3
    with pytest.raises(
        SpecError, match=r"^error: resources: 8 CPUs and 1 GPUs per trial asked, and no node has both$"
    ):
        place_trials(Resources(gpu=1, cpu=8), [Node(16), Node(4, 2)])
    beside = place_trials(Resources(gpu=0.25, cpu=1), [Node(16), Node(2, 1)])
    assert beside.concurrent == 2
    assert beside.notes[-1] == "1 of 2 nodes take no trial, which holds 0.25 GPU and 1 CPU"


def test_what_is_left_out_is_counted_by_what_it_breaks() -> None:
    widths = {"hidden": {"values": [8, 16, 32]}, "depth": {"value": 1}}
    small, middle, large = (planned(parameters={**widths, "hidden": {"value": h}}).trials[0] for h in (8, 16, 32))
    limits = [f"size_bytes < {large.sizes.size_bytes}", f"params <= {small.sizes.params}"]
    found = planned(parameters=widths, constraints=limits)
    assert [trial.hidden for trial in found.trials] == [(8,)]
    assert found.broken == {limits[1]: 1, ", ".join(limits): 1}
    assert found.infeasible == 2
    assert middle.sizes.params > small.sizes.params
