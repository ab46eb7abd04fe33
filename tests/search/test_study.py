"""What a search proposes, what it is told, and the journal that others read meanwhile."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from qdtune.search.samplers import OPENING, SPREAD_FROM, STARTUP, choose_opening, make_sampler
from qdtune.search.study import REPEATS, TRIES, Study
from qdtune.spec.axes import decisive_axes
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import MACS
from qdtune.spec.plan import draw_candidates, keep_possible
from qdtune.spec.pruners import PRUNERS, pruner_of
from qdtune.spec.sweep_file import Spec
from qdtune.store.folder import StorageError
from qdtune.store.results import Result

METHODS = ["tpe", "nsga2", "nsga3", "gp", "qmc"]
NOW = datetime(2030, 1, 2, tzinfo=timezone.utc)
GRID: dict[str, Any] = {
    "depth": {"values": [1, 2, 3]},
    "weight_bits": {"values": [1, 2, 4, 8]},
    "activation": {"values": ["identity", "relu"]},
}
LR = {"qat_lr": {"min": 0.003, "max": 0.3, "distribution": "log_uniform"}}
NO_RELU = [{"depth": 1, "activation": "relu"}]


def spec(axes: dict[str, Any] = GRID, method: str = "tpe", run_cap: int = 20, **given: Any) -> Spec:
    data = {"version": 1, "name": "a", "parameters": axes, "data": {"dataset": "digits", "val_size": 100}}
    return Spec.model_validate(data | {"method": method, "run_cap": run_cap} | given)


def result(trial: Configuration, accuracy: float, state: str = "ok") -> Result:
    seen = {1: [accuracy] * len(trial.seeds)}
    return Result(trial, state, accuracy if state == "ok" else None, seen, {1: 1.0}, None, NOW)


def run(study: Study, count: int, state: str = "ok") -> list[Configuration]:
    """What was proposed up to `count` times, each trial ended before the next one is asked for."""
    found = []
    for i in range(count):
        trial = study.propose()
        if trial is None:
            break
        study.start(trial)
        study.finish(trial.trial_id, state, round(0.3 + math.sin(i) / 5, 3) if state == "ok" else None)
        found.append(trial)
    return found


def quiet(sweep: Spec, **options: Any) -> Study:
    """A study that has nothing to begin with, so that its sampler speaks at once."""
    study = Study(sweep, **options)
    study.opening = []  # over
    return study


# --- the space


@pytest.mark.parametrize("method", METHODS)
def test_a_search_is_told_the_costs_that_the_file_chooses(method):
    sweep = spec(method=method, objectives=["val_accuracy", "macs", "size_bytes"])
    study = Study(sweep)
    (first, *_) = found = run(study, 14)  # the sampler has proposed some of them
    assert len({trial.trial_id for trial in found}) == 14
    assert [one.name for one in study.search.directions] == ["MAXIMIZE", "MINIMIZE", "MINIMIZE"]
    assert study.search.metric_names == ["val_accuracy", "macs", "size_bytes"]
    costs = [first.structure.macs(first.depth), first.sizes.size_bytes]
    told = next(one for one in study.search.trials if one.user_attrs.get("trial_id") == first.trial_id)
    assert told.values == [0.3, *costs]
    assert told.user_attrs["costs"] == costs
    again = Study(sweep)
    again.restore([result(first, 0.3)])
    assert again.search.trials[0].values == [0.3, *costs]
    assert again.curves.trials[0].user_attrs["costs"] == costs
    assert "costs" not in Study(spec())._attributes(first)  # a study over bytes is as it was


def test_axes_become_distributions_and_constants_do_not():
    axes = {
        "depth": {"values": [2, 3, 4]},
        "weight_bits": {"values": [1, 2, 4]},
        "act_bits": {"values": [None, 4]},
        "scale": {"value": "lsq"},
        "hidden": {"values": [[8], [16, 8]]},
        "warmup_lr": {"min": 0.1, "max": 0.5},
        **LR,
    }
    assert Study(spec(axes)).space == {
        "depth": IntDistribution(2, 4),
        "weight_bits": CategoricalDistribution([1, 2, 4]),
        "act_bits": CategoricalDistribution([None, 4]),
        "hidden": CategoricalDistribution(["8", "16-8"]),
        "warmup_lr": FloatDistribution(0.1, 0.5),
        "qat_lr": FloatDistribution(0.003, 0.3, log=True),
    }
    whole = Study(spec({"weight_bits": {"min": 2, "max": 9}, "depth": {"values": [3, 2, 1]}})).space
    assert whole == {"weight_bits": IntDistribution(2, 9), "depth": CategoricalDistribution([3, 2, 1])}


@pytest.mark.parametrize("method", METHODS)
def test_rates_have_six_digits_and_stay_within_their_ends(method):
    axes = {"qat_lr": {"min": 0.0123456789, "max": 0.0123467891, "distribution": "log_uniform"}}
    rates = [trial.qat.lr for trial in run(quiet(spec(axes, method)), 8)]
    assert len(set(rates)) == len(rates) > 1
    for rate in rates:
        assert rate == float(f"{rate:.6g}") or rate in (0.0123456789, 0.0123467891)
        assert 0.0123456789 <= rate <= 0.0123467891


@pytest.mark.parametrize("method", METHODS)
def test_proposals_are_trials_of_the_sweep(method):
    sweep = spec(GRID | LR | {"act_bits": {"values": [None, 4]}, "hidden": {"values": [[8], [16, 8]]}}, method)
    found = run(Study(sweep), 12)
    assert len({trial.trial_id for trial in found}) == 12
    for trial in found:
        assert keep_possible(sweep, [trial]) == [trial]
        assert trial.seeds == sweep.seeds
        assert type(trial.depth) is type(trial.weight_bits) is int


# --- what is not returned


@pytest.mark.parametrize("method", METHODS)
def test_what_breaks_a_rule_is_told_with_its_excess_and_not_returned(method):
    sweep = spec(method=method, exclude=NO_RELU, constraints=["size_bytes <= 3000", "depth < 3"])
    study = quiet(sweep)
    found = run(study, 6)
    assert len(found) == 6
    assert keep_possible(sweep, found) == found
    assert all(trial.sizes.size_bytes <= 3000 and trial.depth < 3 for trial in found)
    known = [t for t in study.search.trials if t.constraints]
    for trial in known:
        assert set(trial.constraints) == {"exclude depth: 1, activation: relu", "size_bytes <= 3000", "depth < 3"}
        broken = max(trial.constraints.values()) > 0
        assert not (broken and "trial_id" in trial.user_attrs)
        assert trial.state == (TrialState.PRUNED if broken else trial.state)
        assert (trial.params["depth"] == 3) is (trial.constraints["depth < 3"] > 0)
    started = [t for t in study.search.trials if "trial_id" in t.user_attrs and t.constraints]
    assert started
    assert all(max(t.constraints.values()) <= 0 for t in started)
    assert len(started) < len(known), "the test sees nothing infeasible"


def test_the_excess_is_in_bytes():
    sweep = spec(constraints=["size_bytes <= 3000"])
    study = quiet(sweep)
    run(study, 8)
    sizes = {tuple(t.cells[n] for n in study.space): t.sizes.size_bytes for t in draw_candidates(spec())}
    for trial in study.search.trials:
        if trial.constraints:
            size = sizes[tuple(trial.params[name] for name in study.space)]
            assert trial.constraints == {"size_bytes <= 3000": size - 3000}


@pytest.mark.parametrize("tries", [TRIES, 1], ids=["tried", "drawn"])
@pytest.mark.parametrize("method", METHODS)
def test_a_small_space_is_exhausted_to_its_last_configuration(method, tries, monkeypatch):
    monkeypatch.setattr("qdtune.search.study.TRIES", tries)
    axes = {"depth": {"values": [1, 2]}, "weight_bits": {"values": [1, 4, 8]}, "activation": GRID["activation"]}
    sweep = spec(axes, method, 100, exclude=NO_RELU, constraints=["weight_bits <= 4"])
    study = quiet(sweep)
    found = run(study, 100)
    assert Counter(t.key for t in found) == Counter(t.key for t in draw_candidates(sweep))
    assert len(found) == 6
    assert [study.propose() for _ in range(2)] == [None, None]
    study.close()
    assert not study.search.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))


def test_a_space_of_one_configuration_is_proposed_once():
    study = Study(spec({"depth": {"value": 2}}))
    assert study.space == {}
    assert [trial.depth for trial in run(study, 5)] == [2]


@pytest.mark.parametrize("method", METHODS)
def test_what_runs_or_failed_is_not_proposed_again(method):
    axes = {"depth": {"values": [1, 2]}, "weight_bits": {"values": [1, 8]}}
    study = Study(spec(axes, method, duplicates="replicate"))
    seen = set()
    for state in ("failed", "diverged", "pruned", None):
        trial = study.propose()
        study.start(trial)
        if state:
            study.finish(trial.trial_id, state)
        seen.add(trial.key)
    assert len(seen) == 4
    assert study.propose() is None


def test_repeated_proposals_become_new_seeds_of_what_is_ok():
    axes = {"depth": {"values": [1, 2]}, "weight_bits": {"values": [1, 8]}}
    found = run(quiet(spec(axes, duplicates="replicate")), 100)
    groups: dict[Any, list[Configuration]] = {}
    for trial in found:
        groups.setdefault(trial.key, []).append(trial)
    assert len(groups) == 4
    assert max(map(len, groups.values())) == REPEATS
    for group in groups.values():
        assert [trial.seeds for trial in group] == [(0, 1, 2), (3, 4, 5), (6, 7, 8)][: len(group)]
    assert len({trial.trial_id for trial in found}) == len(found)


def test_seeds_that_are_not_consecutive_are_continued_above_the_highest():
    found = run(quiet(spec({"depth": {"value": 1}}, duplicates="replicate", seeds=[5, 2])), 10)
    assert [trial.seeds for trial in found] == [(5, 2), (6, 7), (8, 9)]


# --- what a search knows


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_proposals(method, tmp_path):
    sweep = spec(GRID | LR, method)
    first, again, on_disk, other = (
        run(quiet(sweep, **options), 9)
        for options in ({"seed": 3}, {"seed": 3}, {"seed": 3, "path": tmp_path / "j"}, {"seed": 4})
    )
    assert first == again == on_disk
    assert first != other


@pytest.mark.parametrize("method", METHODS)
def test_a_search_begins_with_all_sizes(method):
    sweep = spec(method=method, exclude=NO_RELU, constraints=["size_bytes <= 5000"])
    found = run(Study(sweep), OPENING[0])
    sizes = sorted(trial.sizes.size_bytes for trial in draw_candidates(sweep))
    begun = [trial.sizes.size_bytes for trial in found]
    assert begun == sorted(begun)
    assert begun[0] == sizes[0]
    thirds = [sizes[len(sizes) // 3], sizes[2 * len(sizes) // 3]]
    counts = Counter(sum(size > third for third in thirds) for size in begun)
    assert len(counts) == 3
    assert max(counts.values()) <= 4


def test_a_search_begins_with_sizes_that_grow_by_the_same_factor():
    """Most candidates are large here: as many from each share of them would leave out the small ones."""
    sweep = spec({"hidden": {"values": [[1], [2], [4], [8], *([width] for width in range(60, 128))]}})
    sizes = sorted(math.log2(trial.sizes.size_bytes) for trial in islice(draw_candidates(sweep), SPREAD_FROM))
    edges = [sizes[0] + (sizes[-1] - sizes[0]) * i / OPENING[0] for i in range(1, OPENING[0])]
    filled = {sum(size >= edge for edge in edges) for size in sizes}
    chosen = choose_opening(sweep)
    begun = {sum(math.log2(trial.sizes.size_bytes) >= edge for edge in edges) for trial in chosen}
    assert len(filled) > 4
    assert begun == filled
    assert len({trial.trial_id for trial in chosen}) == OPENING[0]  # a part without candidates takes from the next


def test_a_search_begins_with_the_costs_that_its_front_has():
    """Small networks make many multiplications here, because their images are large."""
    axes = {"resolution": {"values": [4, 6, 8]}, "hidden": {"values": [[1], [2], [4], [8], [16]]}}
    sweep = spec(axes, objectives=["val_accuracy", "macs"], data={"dataset": "digits", "val_size": 287})
    begun = [MACS.value(trial) for trial in reversed(choose_opening(sweep))]
    assert begun == sorted(begun)
    assert begun[0] == min(MACS.value(trial) for trial in draw_candidates(sweep))


@pytest.mark.parametrize("run_cap", [1, 2, 3, 5, 8])
def test_a_short_search_begins_with_all_sizes_too(run_cap):
    sizes = [trial.sizes.size_bytes for trial in draw_candidates(spec())]
    begun = [trial.sizes.size_bytes for trial in choose_opening(spec(run_cap=run_cap))]
    assert len(begun) == run_cap
    assert begun[-1] == min(sizes)
    if run_cap > 2:
        assert begun[0] > (min(sizes) * max(sizes)) ** 0.5


def test_a_search_does_not_begin_with_one_network_twice():
    """Between the factors of one there is nothing, so that its activations make the same network."""
    axes = {"depth": {"values": [1, 2]}, "activation": {"values": ["identity", "relu", "tanh"]}}
    axes |= {"hidden": {"values": [[8], [9], [10], [11]]}, "weight_bits": {"value": 2}}
    chosen = choose_opening(spec(axes))
    assert len({tuple(decisive_axes(trial.cells).items()) for trial in chosen}) == len(chosen) == OPENING[0]


def test_a_search_that_is_beyond_its_beginning_does_not_choose_it_again(monkeypatch):
    sweep = spec()
    begun = run(Study(sweep), OPENING[0])
    study = Study(sweep)
    study.restore([result(trial, 0.5) for trial in begun])
    monkeypatch.setattr("qdtune.search.samplers.draw_candidates", lambda spec: pytest.fail("it takes seconds"))
    assert study.propose() is not None


def test_a_search_begins_with_many_values_of_all_axes():
    """A value that few candidates have is among them: tanh, which goes with one number of bits only."""
    axes = {
        "depth": {"values": [1, 2, 3]},
        "weight_bits": {"values": [1, 2, 3, 4, 6, 8]},
        "scale": {"values": ["minmax", "absmean", "lsq"]},
        "hidden": {"values": [[8], [12], [16], [24]]},
        "activation": {"values": ["identity", "relu", "tanh"]},
    }
    rare = [{"activation": "tanh", "depth": 3}, {"activation": "tanh", "hidden": [8]}]
    rare += [{"activation": "tanh", "weight_bits": bits} for bits in (1, 2, 3, 4, 6)]
    sweep = spec(axes, exclude=rare)
    candidates = list(islice(draw_candidates(sweep), SPREAD_FROM))
    assert 0 < sum(trial.activation == "tanh" for trial in candidates) < 10
    cells = [trial.cells for trial in choose_opening(sweep)]
    assert len(cells) == OPENING[0]
    unseen = {(axis, trial.cells[axis]) for trial in candidates for axis in axes}
    unseen -= {(axis, one[axis]) for one in cells for axis in axes}
    assert len(unseen) <= 1
    assert not any(axis == "activation" for axis, _ in unseen)


def test_a_search_that_goes_on_does_not_begin_again():
    sweep = spec()
    begun = run(Study(sweep), 5)
    study = Study(sweep)
    study.restore([result(trial, 0.5) for trial in begun])
    assert not {t.key for t in begun} & {t.key for t in run(study, 10)}
    study = Study(spec(duplicates="replicate"))
    study.restore([result(trial, 0.5) for trial in begun])
    assert {trial.seeds for trial in run(study, OPENING[0] - 5)} == {(0, 1, 2)}


@pytest.mark.parametrize("method", ["nsga2", "nsga3"])
def test_a_genetic_search_goes_on_from_the_generations_of_earlier_results(method):
    sweep = spec(GRID | LR, method, run_cap=40)
    trials = list(islice(draw_candidates(sweep), 20))
    results = [result(trial, round(0.3 + i / 100, 2)) for i, trial in enumerate(trials)]
    results[5:5] = [result(replace(trials[0], seeds=(9,)), 0.1, state) for state in ("pruned", "diverged")]
    study = quiet(sweep)
    study.restore(results)
    sampler = study.search.sampler
    key = sampler._get_generation_key()
    generations = [t.system_attrs.get(key) for t in study.search.trials]
    assert generations == [*[0] * 5, None, None, *[0] * 3, *[1] * 8, *[2] * 4]
    run(study, 1)
    assert study.search.trials[-1].system_attrs[key] == 2
    parents = sampler.get_parent_population(study.search, 2)
    assert len(parents) == sampler.population_size == 8
    assert {t.number for t in parents} <= {i for i, g in enumerate(generations) if g in (0, 1)}
    best = max((r for r, g in zip(results, generations, strict=True) if g in (0, 1)), key=lambda r: r.score or 0)
    assert best.trial.trial_id in {t.user_attrs["trial_id"] for t in parents}


def test_tpe_learns_from_earlier_results():
    sweep = spec(LR, run_cap=60)
    trials = list(islice(draw_candidates(sweep), 40))
    rates = []
    for good in (0.005, 0.2):
        study = quiet(sweep)
        study.restore([result(t, round(1 - abs(math.log(t.qat.lr / good)) / 9, 3)) for t in trials])
        rates.append(sorted(trial.qat.lr for trial in run(study, 9))[4])
    assert rates[0] < 0.02 < 0.08 < rates[1]


def test_gp_listens_to_results_once_it_has_enough():
    sweep = spec(LR, "gp")
    proposed: dict[int, list[list[Configuration]]] = {}
    for known in (STARTUP - 1, STARTUP):
        for sign in (1, -1):
            study = quiet(sweep)
            study.restore([result(t, round(0.5 + sign * t.qat.lr, 3)) for t in islice(draw_candidates(sweep), known)])
            proposed.setdefault(known, []).append(run(study, 1))
    assert proposed[STARTUP - 1][0] == proposed[STARTUP - 1][1]
    assert proposed[STARTUP][0] != proposed[STARTUP][1]


def test_every_search_has_its_sampler_and_a_plan_needs_none():
    names = [type(make_sampler(method, 100, 0)).__name__ for method in (*METHODS, "grid", "random")]
    assert names == [
        *(
            "TPESampler",
            "NSGAIISampler",
            "NSGAIIISampler",
            "GPSampler",
            "QMCSampler",
            "RandomSampler",
            "RandomSampler",
        )
    ]
    assert [make_sampler("nsga2", cap, 0).population_size for cap in (1, 40, 60, 1000)] == [8, 8, 12, 50]
    assert make_sampler("tpe", 100, 0)._multivariate, "as the docs say"


# --- the journal


def reader(path: Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path)))


def test_a_second_reader_sees_both_studies_while_they_are_written(tmp_path):
    path = tmp_path / "run" / "study.journal"
    study = Study(spec(name="grid-1"), path)
    trial = study.propose()
    study.start(trial)
    study.report(trial.trial_id, 1, [0.25, 0.5, 0.75])
    storage = reader(path)
    assert {s.study_name for s in optuna.get_all_study_summaries(storage)} == {"grid-1", "grid-1-curves"}
    search = optuna.load_study(study_name="grid-1", storage=storage)
    curves = optuna.load_study(study_name="grid-1-curves", storage=storage)
    assert [d.name for d in search.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert search.metric_names == ["val_accuracy", "size_bytes"]
    assert curves.direction.name == "MAXIMIZE"
    assert [t.state for t in (*search.trials, *curves.trials)] == [TrialState.RUNNING] * 2
    assert curves.trials[0].intermediate_values == {1: 0.5}
    study.finish(trial.trial_id, "ok", 0.5)
    assert search.trials[0].values == [0.5, trial.sizes.size_bytes]
    assert search.trials[0].user_attrs == {
        **{"trial_id": trial.trial_id, "size_bytes": trial.sizes.size_bytes, "state": "ok"}
    }
    assert search.best_trials[0].params == {name: trial.cells[name] for name in study.space}


@pytest.mark.timeout(20)  # Optuna waits half a minute for a lock that nobody holds
def test_a_stale_journal_and_its_lock_are_replaced(tmp_path):
    path = tmp_path / "study.journal"
    run(Study(spec(name="old"), path), 2)
    path.write_bytes(path.read_bytes() + b'{"torn')
    os.symlink(path, f"{path}.lock")
    run(Study(spec(name="new"), path), 1)
    assert {s.study_name for s in optuna.get_all_study_summaries(reader(path))} == {"new", "new-curves"}
    assert not Path(f"{path}.lock").exists()
    assert b"torn" not in path.read_bytes()


@pytest.mark.parametrize("where", ["a file/study.journal", "a folder"])
def test_a_journal_that_cannot_be_written_is_a_storage_error(tmp_path, where):
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(StorageError, match=f"{where} must be readable and writable, got "):
        Study(spec(), tmp_path / where)


def test_a_journal_that_goes_away_is_missed_by_its_readers_only(tmp_path):
    """As on a full disk: the study goes on in memory, and the file has all of it once that is possible again."""
    path = tmp_path / "run" / "study.journal"
    study = Study(spec(), path)
    first = study.propose()
    study.start(first)
    path.rename(tmp_path / "kept")
    path.mkdir()
    study.report(first.trial_id, 1, [0.5] * 3)
    study.finish(first.trial_id, "ok", 0.5)
    second = study.propose()
    path.rmdir()
    (tmp_path / "kept").rename(path)
    study.start(second)
    study.close()
    whole = optuna.load_study(study_name=study.search.study_name, storage=reader(path))
    assert [t.state.name for t in whole.trials] == ["COMPLETE", "FAIL"]
    assert whole.trials[0].values == [0.5, first.sizes.size_bytes]


def test_reports_of_a_restarted_trial_change_nothing():
    study = Study(spec(early_terminate={"type": "pareto"}))
    trial = study.propose()
    study.start(trial)
    for epoch, accuracy in [(1, 0.1), (2, 0.2), (1, 0.9), (2, 0.9), (3, 0.3)]:
        assert study.report(trial.trial_id, epoch, [accuracy] * 3) is None
        if epoch == 2:
            study.start(trial)  # its new worker begins
    assert study.curves.trials[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    assert len(study.search.trials) == len(study.curves.trials) == 1


@pytest.mark.parametrize("kind", sorted(pruner.name for pruner in PRUNERS))
def test_a_trial_without_any_number_is_judged_without_a_warning(kind):
    few = {key: 0 for key in ("n_startup_trials",) if key in pruner_of(kind).defaults()}
    study = Study(spec(early_terminate={"type": kind, **few}, seeds=[0, 1, 2, 3]))
    lost = next(draw_candidates(study.spec))
    whole = replace(lost, seeds=(4, 5, 6, 7))
    for trial, seen, state in ((whole, [0.5] * 4, "ok"), (lost, [0.5, None, 0.5, 0.5], "diverged")):
        study.start(trial)
        for epoch in range(1, 8):
            study.report(trial.trial_id, epoch, seen)
        study.finish(trial.trial_id, state, 0.5)
    study = Study(study.spec)
    study.restore([Result(lost, "diverged", None, {e: [None] * 4 for e in range(1, 8)}, {}, None, NOW)])
    assert math.isnan(study.curves.trials[0].intermediate_values[7])


def test_a_stopped_trial_names_who_beat_it():
    small, large = sorted(draw_candidates(spec()), key=lambda trial: trial.sizes.size_bytes)[:: len(GRID) * 7]
    study = Study(spec(early_terminate={"type": "pareto"}))
    study.start(small)
    study.start(large)
    assert study.report(small.trial_id, 2, [0.9] * 3) is None
    assert study.report(large.trial_id, 2, [0.5] * 3) == study.pruned_by(large.trial_id) == small.trial_id
    unjudged = replace(large, seeds=(7,))
    study.start(unjudged, judged=False)
    assert study.report(unjudged.trial_id, 2, [0.1]) is None
    study = Study(spec(early_terminate={"type": "threshold"}))
    study.start(small)
    assert study.report(small.trial_id, 1, [0.01] * 3) == study.pruned_by(small.trial_id) == "threshold"
    assert study.pruned_by("another") is None


def test_gp_goes_on_from_earlier_results_under_a_constraint():
    sweep = spec(GRID | LR, "gp", constraints=["size_bytes <= 5000"])
    earlier = list(islice(draw_candidates(sweep), STARTUP))
    study = quiet(sweep)
    study.restore([result(trial, round(0.3 + i / 50, 2)) for i, trial in enumerate(earlier)])
    assert len(run(study, 2)) == 2


@pytest.mark.parametrize("method", ["nsga2", "nsga3"])
def test_the_first_configurations_are_the_first_population(method):
    study = Study(spec(method=method))
    run(study, OPENING[0] + 1)
    key = study.search.sampler._get_generation_key()
    assert [t.system_attrs.get(key) for t in study.search.trials][: OPENING[0]] == [0] * OPENING[0]


def test_two_proposals_in_a_row_are_two_configurations():
    study = quiet(spec({"depth": {"values": [1, 2]}}))
    pair = [study.propose(), study.propose()]
    study.close()
    assert len({trial.key for trial in pair}) == 2
    assert not study.search.get_trials(states=(TrialState.RUNNING,))
