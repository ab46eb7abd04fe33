"""The floor in steps of a phase: epochs of a data set that stands in, ids, what a sweep file may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from qdtune.messages import SpecError
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads

FILE = """version: 1
name: floors
parameters: {{depth: {{values: [1, 2]}}, weight_bits: {{value: 2}}}}
data: {{dataset: {data}, val_size: {val}}}
train:
  batch_size: {batch}
  warmup: {{epochs: 3{floor}}}
  qat: {{epochs: 10, lr: 0.01{floor}}}
"""


def spec_of(data: str = "[mnist, digits]", val: int = 5000, batch: int = 64, floor: str = "") -> object:
    return loads(FILE.format(data=data, val=val, batch=batch, floor=floor).encode(), "floors.yaml")


def epochs(spec: object, dataset: str) -> tuple[int, int]:
    train = spec.resolve(dataset).train  # type: ignore[attr-defined]
    return train.warmup.epochs, train.qat.epochs


def test_a_small_data_set_gets_as_many_epochs_as_the_steps_need() -> None:
    spec = spec_of(floor=", min_steps: 500")
    assert epochs(spec, "mnist") == (3, 10)  # 859 steps an epoch
    assert epochs(spec, "digits") == (30, 30)  # 1,150 // 64 = 17 steps an epoch: 30 of them are 510


@pytest.mark.parametrize("batch", [1, 7, 64, 1150])
@pytest.mark.parametrize("floor", [1, 17, 1150, 99_999])
def test_the_epochs_are_the_fewest_that_reach_the_floor(batch: int, floor: int) -> None:
    warmup, qat = epochs(spec_of("digits", 287, batch, f", min_steps: {floor}"), "digits")
    steps = 1150 // batch
    for given, found in ((3, warmup), (10, qat)):
        assert found * steps >= floor or found == given
        assert found == given or (found - 1) * steps < floor


def test_what_min_steps_turned_into_is_a_file_of_its_own() -> None:
    resolved = spec_of(floor=", min_steps: 500").resolve("digits")  # type: ignore[attr-defined]
    assert "min_steps" not in resolved.to_yaml()
    again = loads(resolved.to_yaml().encode(), "sweep.yaml")
    assert again == resolved
    assert again.resolve("digits") == resolved


def test_a_floor_that_is_reached_anyway_changes_no_id() -> None:
    plain, floored = (plan(spec_of(floor=floor).resolve("mnist")) for floor in ("", ", min_steps: 500"))  # type: ignore[attr-defined]
    assert [trial.trial_id for trial in plain.trials] == [trial.trial_id for trial in floored.trials]
    assert [trial.warmup_id for trial in plain.trials] == [trial.warmup_id for trial in floored.trials]


def test_the_floor_is_a_whole_number_of_steps(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"floors.yaml:7: train.warmup.min_steps: 0 is not allowed"):
        spec_of(floor=", min_steps: 0")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("{type: pareto, min_epochs: 2, patience: 1}", {"min_epochs": 6, "patience": 3, "margin": 0.005}),
        ("{type: median, n_warmup_steps: 0}", {"n_warmup_steps": 0, "interval_steps": 3, "n_startup_trials": 5}),
        ("{type: hyperband}", {"min_resource": 3, "reduction_factor": 3}),
        ("{type: patient}", {"patience": 6, "min_delta": 0.0}),
        ("{type: none}", {}),
    ],
)
def test_epochs_of_the_pruner_are_stretched_with_qat(rule: str, expected: dict[str, object]) -> None:
    text = FILE.format(data="[mnist, digits]", val=5000, batch=64, floor=", min_steps: 500")
    spec = loads(f"{text}early_terminate: {rule}\n".encode(), "floors.yaml")
    options = spec.resolve("digits").early_terminate.options  # 30 epochs of QAT instead of 10
    assert {key: options[key] for key in expected} == expected
    assert spec.resolve("mnist").early_terminate == spec.early_terminate
    assert spec.resolve("digits").resolve("digits") == spec.resolve("digits")
