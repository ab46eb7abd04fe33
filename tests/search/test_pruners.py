"""Which trials are stopped: the rule against its definition, and Optuna's pruners behind the scope of sizes."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import wilcoxon

from qdtune.search.pareto_pruner import COSTS, SIZE, ParetoPruner
from qdtune.search.pruners import SEEDS, PeerScope, build_pruner, make_pruner
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.pruners import PRUNERS, SIGNALS, Pruner, ScopedPruner, pruner_of

optuna.logging.set_verbosity(optuna.logging.WARNING)
NAN = math.nan
RUNNING, COMPLETE, PRUNED, FAIL = TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
KINDS = [pruner.name for pruner in PRUNERS]
OPTUNA_KINDS = sorted(set(KINDS) - {"none", "pareto"})
SCOPED = sorted(pruner.name for pruner in PRUNERS if issubclass(pruner, ScopedPruner))


def entry(size: int, curve: list[float | None], state: TrialState = COMPLETE, **attrs: Any) -> FrozenTrial:
    """A trial of `size` bytes with these accuracies from epoch 1 on; None where an epoch is missing."""
    values = {epoch: value for epoch, value in enumerate(curve, 1) if value is not None}
    known = [v for v in values.values() if not math.isnan(v)]
    return create_trial(
        state=state,
        value=(known or [0.0])[-1] if state == COMPLETE else None,
        user_attrs={SIZE: size, **attrs},
        intermediate_values=values,
    )


def study_of(entries: list[FrozenTrial]) -> optuna.Study:
    study = optuna.create_study(study_name="curves", direction="maximize")
    study.add_trials(entries)
    return study


def beaten_by(pruner: ParetoPruner, *others: FrozenTrial, curve: list[float | None], size: int = 10) -> bool:
    """Whether a running trial with this curve is stopped."""
    study = study_of([*others, entry(size, curve, RUNNING)])
    return pruner.prune(study, study.trials[-1])


# --- the rule that keeps the front, against its definition in exact fractions

accuracies = st.sampled_from([None, NAN, 0.0, 0.25, 0.5, 0.5, 0.75, 1.0])
states = st.sampled_from([RUNNING, COMPLETE, COMPLETE, PRUNED, FAIL, TrialState.WAITING])
sweeps = st.lists(st.builds(entry, st.integers(1, 3), st.lists(accuracies, max_size=5), states), max_size=8)
costly = st.lists(  # two costs, so that neither of two trials may judge the other
    st.builds(
        lambda size, macs, curve, state: entry(size, curve, state, **{COSTS: [size, macs]}),
        st.integers(1, 3),
        st.integers(1, 3),
        st.lists(accuracies, max_size=5),
        states,
    ),
    max_size=8,
)
pruners = st.builds(
    ParetoPruner, st.sampled_from([0.0, 0.25, 0.5]), st.sampled_from(SIGNALS), st.integers(1, 3), st.integers(1, 3)
)


def signal(kind: str, trial: FrozenTrial, epoch: int) -> Fraction | None:
    """The definition; None where there is no number at this epoch."""
    numbers = {e: Fraction(v) for e, v in trial.intermediate_values.items() if not math.isnan(v)}
    if epoch not in numbers:
        return None
    so_far = [numbers[e] for e in sorted(numbers) if e <= epoch]
    if (
        kind == "ema"
    ):  # the weights of the epochs from the last one back are 1/2, 1/4, ..., and the rest is the first's
        n = len(so_far)
        return sum((v / 2 ** (n - i) for i, v in enumerate(so_far) if i), so_far[0] / 2 ** (n - 1))
    return max(so_far) if kind == "best_so_far" else so_far[-1]


def ahead(pruner: ParetoPruner, other: FrozenTrial, trial: FrozenTrial, epoch: int) -> bool:
    theirs, own = signal(pruner.signal, other, epoch), signal(pruner.signal, trial, epoch)
    return theirs is not None and (own is None or theirs - own > Fraction(pruner.margin))


def spent(trial: FrozenTrial) -> list[int]:
    """Its costs; those of a sweep without others are its bytes."""
    return trial.user_attrs.get(COSTS, [trial.user_attrs[SIZE]])


def admitted(other: FrozenTrial, trial: FrozenTrial) -> bool:
    return (
        other.number != trial.number
        and other.state in (RUNNING, COMPLETE, PRUNED)
        and all(one <= most for one, most in zip(spent(other), spent(trial), strict=True))
        and not any(math.isnan(v) for v in other.intermediate_values.values())
    )


@settings(max_examples=100, deadline=None)
@given(st.one_of(sweeps, costly), pruners, st.randoms(use_true_random=False))
def test_the_rule_equals_its_definition(sweep, pruner, chance):
    chance.shuffle(sweep)
    study = study_of(sweep)
    for trial in study.trials:
        rivals = [other for other in study.trials if admitted(other, trial)]
        last = max(trial.intermediate_values, default=0)
        epochs = range(last - pruner.patience + 1, last + 1)
        stopped = last >= pruner.min_epochs + pruner.patience - 1 and all(
            any(ahead(pruner, other, trial, epoch) for other in rivals) for epoch in epochs
        )
        rival = pruner.rival(study, trial)
        assert pruner.prune(study, trial) is (rival is not None) is stopped
        if rival is not None:
            assert admitted(rival, trial)
            reached = [o for o in rivals if signal(pruner.signal, o, last) is not None]
            leads = {
                o.number: (signal(pruner.signal, o, last), [-cost for cost in spent(o)], -o.number) for o in reached
            }
            assert rival.number == max(leads, key=leads.__getitem__)


@pytest.mark.parametrize(("macs", "is_stopped"), [(99, True), (100, True), (101, False)])
def test_a_trial_is_stopped_only_by_one_that_exceeds_it_in_no_cost(macs, is_stopped):
    ahead, behind = entry(5, [0.9] * 3, **{COSTS: [5, macs]}), entry(9, [0.1] * 3, RUNNING, **{COSTS: [9, 100]})
    study = study_of([ahead, behind])
    assert ParetoPruner().prune(study, study.trials[-1]) is is_stopped


@pytest.mark.parametrize("seed", range(40))
def test_what_is_kept_between_reports_never_goes_stale(seed):
    """Trials begin, report, diverge, end and fail in any order; a pruner that has seen none of it says the same."""
    chance = random.Random(seed)
    study = optuna.create_study(direction=chance.choice(["maximize", "minimize"]))
    kept = ParetoPruner(0.0, chance.choice(SIGNALS), patience=chance.randint(1, 2))
    running: list[tuple[optuna.Trial, int]] = []
    stops = 0
    for _ in range(120):
        if not running or chance.random() < 0.2:
            running.append((optuna.Trial(study, study._storage.create_new_trial(study._study_id)), 0))
            running[-1][0].set_user_attr(SIZE, chance.randint(1, 4))
            if chance.random() < 0.3:
                study.add_trial(entry(chance.randint(1, 4), [chance.random() for _ in range(4)]))
        trial, epoch = running.pop(chance.randrange(len(running)))
        trial.report(chance.choice([0.0, 0.25, 0.5, 0.75] * 4 + [NAN]), epoch + 1)
        frozen = study.get_trials(deepcopy=False)[trial.number]
        rival = kept.rival(study, frozen)
        fresh = ParetoPruner(0.0, kept.signal, patience=kept.patience).rival(study, frozen)
        assert (rival and rival.number) == (fresh and fresh.number)
        stops += rival is not None
        if epoch == 3 or chance.random() < 0.2:
            end = chance.choice([COMPLETE, PRUNED, TrialState.FAIL])
            study.tell(trial, 0.5 if end == COMPLETE else None, state=end)
        else:
            running.append((trial, epoch + 1))
    assert stops


def test_the_definition_is_met_by_many_stops():
    # Guards the test above: random sweeps in which nothing was ever stopped would prove nothing.
    chance = random.Random(0)
    stops = 0
    for _ in range(100):
        curves = [[chance.choice([0.0, 0.25, 0.5, 0.75, NAN]) for _ in range(4)] for _ in range(6)]
        study = study_of([entry(chance.randint(1, 3), curve) for curve in curves])
        stops += sum(ParetoPruner(margin=0.0, patience=2).prune(study, trial) for trial in study.trials)
    assert 50 < stops < 550


def test_a_larger_trial_never_stops_a_smaller_one():
    perfect = [entry(size, [1.0] * 3) for size in (11, 12, 1000)]
    assert not beaten_by(ParetoPruner(), *perfect, curve=[0.0] * 3)
    assert beaten_by(ParetoPruner(), *perfect, entry(10, [0.1] * 3), curve=[0.0] * 3)


@pytest.mark.parametrize(("min_epochs", "patience"), [(1, 1), (3, 1), (1, 3), (2, 3)])
def test_nothing_is_stopped_before_the_epochs_that_count_are_there(min_epochs, patience):
    pruner = ParetoPruner(min_epochs=min_epochs, patience=patience)
    verdicts = [beaten_by(pruner, entry(1, [1.0] * 6), curve=[0.0] * n) for n in range(7)]
    first = min_epochs + patience - 1
    assert verdicts == [False] * first + [True] * (7 - first)


def test_patience_wants_the_lead_at_each_of_the_last_epochs():
    rival = entry(1, [0.5, 0.5, 0.5, 0.5])
    pruner = ParetoPruner(signal="raw", min_epochs=1, patience=2)
    assert not beaten_by(pruner, rival, curve=[0.0, 0.6, 0.0])
    assert beaten_by(pruner, rival, curve=[0.0, 0.6, 0.0, 0.0])


@pytest.mark.parametrize(("margin", "own", "stopped"), [(0, 0.5, False), (0, 0.49, True), (0.1, 0.4, False)])
def test_the_other_must_be_ahead_by_more_than_the_margin(margin, own, stopped):
    assert beaten_by(ParetoPruner(margin=margin), entry(10, [0.5, 0.5]), curve=[own, own]) is stopped


def test_nan_is_behind_every_number():
    assert beaten_by(ParetoPruner(margin=1.0), entry(1, [0.0, 0.0]), curve=[1.0, NAN])
    assert not beaten_by(ParetoPruner(margin=0.0), entry(1, [1.0, NAN]), curve=[0.0, NAN])


@pytest.mark.parametrize("state", [RUNNING, COMPLETE, PRUNED, FAIL])
def test_who_still_runs_or_was_stopped_is_a_rival_and_who_failed_is_not(state):
    assert beaten_by(ParetoPruner(), entry(1, [1.0, 1.0, 1.0], state), curve=[0.0, 0.0]) is (state != FAIL)


@pytest.mark.parametrize("state", [RUNNING, PRUNED, FAIL])
def test_who_diverged_later_is_no_rival_even_where_it_led(state):
    assert not beaten_by(ParetoPruner(), entry(1, [1.0, 1.0, NAN], state), curve=[0.0, 0.0])


def test_a_trial_counts_only_at_the_epochs_it_reached():
    assert not beaten_by(ParetoPruner(), entry(1, [1.0, 1.0], PRUNED), curve=[0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": -0.01}, r"margin must be 0 or more, got -0\.01"),
        ({"margin": NAN}, "margin must be .* got nan"),
        ({"signal": "best"}, "signal .*best.*best_so_far"),
        ({"min_epochs": 0}, "must be 1 or more, got 0 and 1"),
        ({"patience": 0}, "must be 1 or more, got 2 and 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParetoPruner(**arguments)


# --- the scope of sizes


class Spy(BasePruner):
    """Notes what it is shown and stops nothing."""

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        self.seen = {t.number for t in study.get_trials(deepcopy=False)}
        self.complete = {t.number for t in study.get_trials(states=(COMPLETE,))}
        self.best = study.best_trial.number
        assert study.direction == optuna.study.StudyDirection.MAXIMIZE
        return False


def test_an_inner_pruner_sees_exactly_what_is_not_larger():
    chance = random.Random(1)
    sizes = [chance.randint(1, 5) for _ in range(30)]
    study = study_of([entry(s, [chance.random()], chance.choice([COMPLETE, PRUNED, RUNNING])) for s in sizes])
    for trial in study.trials:
        shown = [t for t in study.trials if t.user_attrs[SIZE] <= trial.user_attrs[SIZE]]
        complete = {t.number: t.value for t in shown if t.state == COMPLETE}
        spy = Spy()
        assert not PeerScope(spy).prune(study, trial)
        assert (spy.seen, spy.complete) == ({t.number for t in shown}, set(complete))
        assert spy.best == max(complete, key=complete.__getitem__)


def test_an_inner_pruner_sees_nothing_that_exceeds_one_of_several_costs():
    chance = random.Random(1)
    costs = [[chance.randint(1, 3), chance.randint(1, 3)] for _ in range(30)]
    study = study_of([entry(9, [chance.random()], **{COSTS: each}) for each in costs])
    for trial in study.trials:
        spy = Spy()
        PeerScope(spy).prune(study, trial)
        assert spy.seen == {
            k for k, (a, b) in enumerate(costs) if a <= costs[trial.number][0] and b <= costs[trial.number][1]
        }


def options(kind: str, scope: str | None = None) -> EarlyTerminate:
    """A rule that judges early and often."""
    eager = {"n_startup_trials": 1, "p_threshold": 0.2, "patience": 1, "lower": 0.4, "reduction_factor": 2}
    given = {key: value for key, value in eager.items() if key in pruner_of(kind).defaults()}
    return EarlyTerminate.model_validate({"type": kind, **given} | ({"scope": scope} if scope else {}))


@pytest.mark.parametrize("kind", SCOPED)
def test_a_scoped_pruner_judges_as_if_larger_trials_were_not_there(kind):
    chance = random.Random(2)
    scoped, verdicts = make_pruner(options(kind, "size"), 8), []
    study = study_of([])
    for _ in range(25):
        study.add_trial(entry(chance.randint(1, 4), [], RUNNING))
        trial = optuna.Trial(study, study.trials[-1]._trial_id)
        size, top = study.trials[-1].user_attrs[SIZE], chance.random()
        for epoch in range(1, 8):
            seeds = [round(top * epoch / 8 + chance.uniform(-0.05, 0.05), 2) for _ in range(4)]
            trial.report(sum(seeds) / 4, epoch)
            trial.set_user_attr(f"{SEEDS}{epoch}", seeds)
            # The same study with all that is larger blank, so that numbers, and with them brackets, stay.
            blank = [t if t.user_attrs[SIZE] <= size else entry(t.user_attrs[SIZE], [], FAIL) for t in study.trials]
            alone = study_of(blank)
            expected = make_pruner(options(kind, "all"), 8).prune(alone, alone.trials[-1])
            assert scoped.prune(study, study.trials[-1]) == expected
            verdicts.append(expected)
            assert study.trials[-1].system_attrs == alone.trials[-1].system_attrs  # rungs reach the real study
            if expected:
                break
        study.tell(trial, None if expected else top, PRUNED if expected else COMPLETE)
    assert {True, False} <= set(verdicts)


@pytest.mark.parametrize("kind", ["median", "percentile", "successive_halving"])
def test_scope_decides_whether_a_small_weak_model_lives(kind):
    for scope, stopped in (("all", True), ("size", False)):
        pruner = make_pruner(options(kind, scope), 8)
        study = study_of([])
        for size, accuracy in ((100, 0.9), (100, 0.8), (1, 0.2)):
            study.add_trial(entry(size, [accuracy], RUNNING))
            verdict = pruner.prune(study, study.trials[-1])
            study.tell(study.trials[-1].number, accuracy)
        assert bool(verdict) is stopped


# --- the rules of a sweep file


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_of_a_sweep_file_makes_its_pruner_without_a_warning(kind):
    pruner = make_pruner(EarlyTerminate(type=kind), 10)
    assert (pruner is None) is (kind == "none")
    assert isinstance(pruner, PeerScope) is (kind in SCOPED)
    if kind in SCOPED:
        assert not isinstance(make_pruner(EarlyTerminate(type=kind, scope="all"), 10), PeerScope)


def test_a_pruner_without_a_builder_is_refused():
    class Homeless(Pruner):
        name = "homeless"

    with pytest.raises(NotImplementedError, match="pruner homeless must have a builder, got none"):
        build_pruner(Homeless(), 10)


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("median", {"n_startup_trials": 7, "n_warmup_steps": 8, "interval_steps": 9}, (50.0, 7, 8, 9)),
        (
            "percentile",
            {"percentile": 6.0, "n_startup_trials": 7, "n_warmup_steps": 8, "interval_steps": 9},
            (6.0, 7, 8, 9),
        ),
    ],
)
def test_values_of_a_sweep_file_reach_the_percentile_pruners(kind, given, expected):
    inner = make_pruner(EarlyTerminate(type=kind, scope="all", **given), 10)
    assert (inner._percentile, inner._n_startup_trials, inner._n_warmup_steps, inner._interval_steps) == expected


def test_values_of_a_sweep_file_reach_the_other_pruners():
    def made(kind, **given):
        return make_pruner(EarlyTerminate(type=kind, **given), 10)

    given = {"margin": 0.3, "signal": "ema", "min_epochs": 4, "patience": 5}
    assert given.items() <= vars(made("pareto", **given)).items()
    pruner = made("hyperband", scope="all", min_resource=2, reduction_factor=5)
    assert (pruner._min_resource, pruner._max_resource, pruner._reduction_factor) == (2, 10, 5)
    pruner = made("successive_halving", scope="all", min_resource=2, reduction_factor=5)
    assert (pruner._min_resource, pruner._reduction_factor) == (2, 5)
    pruner = made("patient", patience=3, min_delta=0.5)
    assert (pruner._wrapped_pruner, pruner._patience, pruner._min_delta) == (None, 3, 0.5)
    pruner = made("threshold", lower=0.6, n_warmup_steps=3, interval_steps=4)
    for sign, limit in ((1, "_lower"), (-1, "_upper")):
        theirs = pruner.by_sign[sign]
        assert (getattr(theirs, limit), theirs._n_warmup_steps, theirs._interval_steps) == (0.6, 3, 4)
    pruner = made("wilcoxon", scope="all", p_threshold=0.3, n_warmup_steps=4)
    assert (pruner.inner._p_threshold, pruner.n_warmup_steps) == (0.3, 4)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # NumPy's; a sweep is spared of it by its study
@pytest.mark.parametrize("kind", OPTUNA_KINDS)
def test_a_trial_without_any_number_is_judged(kind):
    whole = entry(1, [0.5] * 6, **{f"{SEEDS}{e}": [0.5] * 4 for e in range(1, 7)})
    lost = entry(1, [NAN] * 6, RUNNING, **{f"{SEEDS}{e}": [0.5, None, 0.5, 0.5] for e in range(1, 7)})
    study = study_of([whole, whole, lost])
    assert make_pruner(options(kind), 8).prune(study, study.trials[-1]) in (True, False)


@pytest.mark.parametrize(
    ("kind", "curve"),
    [
        ("median", [0.0] * 4),
        ("percentile", [0.0] * 4),
        ("threshold", [0.0] * 4),
        ("wilcoxon", [0.0] * 4),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_n_warmup_steps_is_the_first_epoch_that_may_stop_a_trial(kind, curve, steps):
    rule = options(kind).model_copy(update={"n_warmup_steps": steps})
    seeds = {f"{SEEDS}{e}": [0.5] * 4 for e in range(1, 5)}, {f"{SEEDS}{e}": [0.0] * 4 for e in range(1, 5)}
    verdicts = []
    for n in range(1, 5):
        study = study_of([entry(1, [0.5] * 4, **seeds[0]), entry(1, curve[:n], RUNNING, **seeds[1])])
        verdicts.append(make_pruner(rule, 8).prune(study, study.trials[-1]))
    assert verdicts == [epoch >= steps for epoch in range(1, 5)]


# --- the test over seeds

TEST_OF_SEEDS = make_pruner(EarlyTerminate(type="wilcoxon", scope="all"), 8)


def seeded(size: int, seeds: list[float | None], state: TrialState = COMPLETE, epoch: int = 2) -> FrozenTrial:
    numbers = [s for s in seeds if s is not None]
    mean = sum(numbers) / len(numbers) if len(numbers) == len(seeds) else NAN
    curve: list[float | None] = [None] * (epoch - 1) + [mean]
    return entry(size, curve, state, **{f"{SEEDS}{epoch}": seeds})


@pytest.mark.parametrize(("scope", "p"), [("all", 0.1), ("all", 0.4), ("size", 0.1)])
def test_wilcoxon_is_scipys_over_the_seeds_at_the_epoch(scope, p):
    chance = random.Random(3)
    pruner = make_pruner(EarlyTerminate(type="wilcoxon", p_threshold=p, scope=scope), 8)
    stops = 0
    for _ in range(40):
        own, *others = [(chance.randint(1, 3), [chance.randint(4, 12) / 16 for _ in range(6)]) for _ in range(4)]
        study = study_of([*[seeded(*other) for other in others], seeded(*own, RUNNING)])
        shown = [seeds for size, seeds in others if scope == "all" or size <= own[0]]
        stopped = False
        if shown:
            best = max(shown, key=sum)
            gains = [mine - theirs for mine, theirs in zip(own[1], best, strict=True)]
            test = wilcoxon(gains, alternative="less", zero_method="zsplit")
            stopped = bool(test.pvalue < p) and sum(own[1]) < sum(best)
        assert pruner.prune(study, study.trials[-1]) is stopped
        stops += stopped
    assert 3 < stops < 37


def test_wilcoxon_compares_at_the_same_epoch_only():
    study = study_of([seeded(1, [0.9] * 5, epoch=1), seeded(1, [0.1, 0.2, 0.1, 0.2, 0.1], RUNNING, epoch=2)])
    assert not TEST_OF_SEEDS.prune(study, study.trials[-1])


def test_wilcoxon_never_stops_where_a_seed_has_no_number():
    study = study_of([seeded(1, [0.9] * 6), seeded(1, [None, *[0.1] * 5], RUNNING)])
    assert not TEST_OF_SEEDS.prune(study, study.trials[-1])
    study = study_of([seeded(1, [0.9] * 6), seeded(1, [0.1] * 6, RUNNING)])
    assert TEST_OF_SEEDS.prune(study, study.trials[-1])


def test_wilcoxon_waits_for_the_first_epoch():
    study = study_of([seeded(1, [0.9] * 6), entry(1, [], RUNNING)])
    assert not TEST_OF_SEEDS.prune(study, study.trials[-1])


def test_wilcoxon_says_nothing_about_a_best_trial_with_fewer_seeds():
    study = study_of([seeded(1, [0.9] * 2), seeded(1, [0.1] * 6, RUNNING)])
    assert not TEST_OF_SEEDS.prune(study, study.trials[-1])
