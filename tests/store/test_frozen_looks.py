"""Looks, alpha and questions are fixed once a run folder holds results of a later look."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qdtune.messages import SpecError
from qdtune.spec.sweep_file import Spec
from qdtune.store.frozen_looks import check_frozen_looks
from qdtune.store.store import Store
from tests.decided import Launches, noisy, rows_of, sweep

AXES = {"depth": [1, 2], "weight_bits": [1, 8]}


def folder_of(path: Path, spec: Spec, kill_after: int | None = None) -> str:
    launches, store = Launches(spec, noisy()), Store(path)
    launches.launch(random.Random(0), kill_after=kill_after)
    with store.lock():
        store.create(spec.to_yaml())
        for result in launches.results:
            store.write(result.trial_id, rows_of([result]), [], {})
    assert store.trials().num_rows == sum(len(result.seeds) for result in launches.results)
    return str(path)


def check(spec: Spec, earlier: Spec, folder: str) -> None:
    check_frozen_looks(spec, earlier.to_yaml().encode(), folder)


EARLIER = sweep(AXES)
CHANGED = [
    ({"looks": [3, 6, 9]}, r"replicate.looks: \[3, 6, 9, 12\] there, \[3, 6, 9\] now"),
    ({"alpha": 0.1}, r"replicate.alpha: 0.05 there, 0.1 now"),
    ({"same_within": 0.003}, r"replicate.same_within: None there, 0.003 now"),
    ({"questions": ["depth", "front"]}, r"replicate.questions: \['depth'\] there, \['depth', 'front'\] now"),
]


@pytest.mark.parametrize(("more", "told"), CHANGED)
def test_a_change_after_results_of_a_later_look_is_refused_in_one_line(tmp_path, more, told):
    folder = folder_of(tmp_path / "a", EARLIER)
    with pytest.raises(SpecError, match=told) as caught:
        check(sweep(AXES, replicate=more), EARLIER, folder)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"error: {folder} holds results with more seeds, which fixes how they are tested (")
    assert line.endswith("set it back, choose another name, or set them aside with --fresh")


@pytest.mark.parametrize("instead", [None, {"front": 5}])
def test_another_rule_is_a_change_too(tmp_path, instead):
    folder = folder_of(tmp_path / "a", EARLIER)
    other = Spec.model_validate(EARLIER.to_dict() | {"replicate": instead})
    with pytest.raises(SpecError, match=r"replicate.until: decided there, None now; replicate.looks: "):
        check(other, EARLIER, folder)


def test_seeds_that_another_rule_added_are_a_change_too(tmp_path):
    front = Spec.model_validate(EARLIER.to_dict() | {"replicate": {"front": 5}})
    folder = folder_of(tmp_path / "a", front)
    with pytest.raises(SpecError, match=r"replicate.until: None there, decided now"):
        check(EARLIER, front, folder)
    check(front, front, folder)


@pytest.mark.parametrize(("more", "told"), CHANGED)
def test_after_the_first_look_alone_all_may_change(tmp_path, more, told):
    check(sweep(AXES, replicate=more), EARLIER, folder_of(tmp_path / "a", EARLIER, kill_after=4))


def test_the_budget_may_change_and_so_may_the_way_a_file_writes_the_same(tmp_path):
    folder = folder_of(tmp_path / "a", EARLIER)
    check(sweep(AXES, replicate={"budget": 3, "looks": [3, 6, 9, 12], "questions": ["depth"]}), EARLIER, folder)


def test_a_sweep_may_begin_to_decide_in_a_folder_without_looks(tmp_path):
    earlier = Spec.model_validate(EARLIER.to_dict() | {"replicate": None})
    check(EARLIER, earlier, folder_of(tmp_path / "a", earlier))


FRONT = sweep(AXES, replicate={"questions": ["front"]})
OTHER = Spec.model_validate(FRONT.to_dict() | {"objectives": ["val_accuracy", "macs"]})


def test_other_objectives_are_refused_only_if_the_front_is_a_question(tmp_path):
    folder = folder_of(tmp_path / "a", EARLIER)
    with pytest.raises(
        SpecError, match=r"objectives: \['val_accuracy', 'size_bytes'\] there, \['val_accuracy', 'macs'\]"
    ):
        check(OTHER, FRONT, folder)
    check(Spec.model_validate(EARLIER.to_dict() | {"objectives": ["val_accuracy", "macs"]}), EARLIER, folder)
    check(Spec.model_validate(FRONT.to_dict() | {"objectives": ["val_accuracy", "size_bytes"]}), FRONT, folder)
