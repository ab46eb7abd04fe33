"""What a file says about its metric decides what its keys may hold, and what the columns are called."""

import copy
import pickle

import pytest

from qdtune.messages import SpecError
from qdtune.spec.comparable import check_comparable
from qdtune.spec.judging import find_metric, read_metric
from qdtune.spec.sweep_file import Spec, loads
from qdtune.spec.tasks import (
    ACCURACY,
    AUTOENCODER,
    BINARY,
    CLASSIFICATION,
    F1,
    MAE,
    METRICS,
    MSE,
    R2,
    REGRESSION,
    TASKS,
)
from tests.judged import make_spec


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"data": {"task": "regression"}}, (REGRESSION, R2)),
        ({"data": {"task": "regression", "metric": "mae"}}, (REGRESSION, MAE)),
        ({"data": {"task": "autoencoder", "metric": None}}, (AUTOENCODER, MSE)),
        ({"data": {"task": "binary", "metric": "f1"}}, (BINARY, F1)),
        *[(wrong, (CLASSIFICATION, ACCURACY)) for wrong in ({}, None, [], {"data": []}, {"data": {"task": ["a"]}})],
    ],
)
def test_a_file_names_its_metric_or_has_the_default(content, found):
    assert find_metric(content) == found


def test_bytes_that_are_no_yaml_are_refused():
    assert read_metric(b"data: {task: regression, metric: mse}\n", "a.yaml") == (REGRESSION, MSE)
    with pytest.raises(SpecError, match=r"a\.yaml"):
        read_metric(b"data: {task\n", "a.yaml")


KEYS = [
    ("early_terminate", "{type: pareto, margin: %s}", "margin"),
    ("early_terminate", "{type: patient, min_delta: %s}", "min_delta"),
    ("early_terminate", "{type: threshold, lower: %s}", "lower"),
    ("replicate", "{front: 9, within: %s}", "within"),
]


@pytest.mark.parametrize(("group", "text", "key"), KEYS)
def test_keys_have_the_unit_of_the_metric(group, text, key):
    spec = make_spec("regression", "mae", [f"{group}={text % 25}"])
    assert getattr(getattr(spec, group), key) == 25
    assert Spec.model_validate(spec.to_dict()) == spec  # as a worker gets it
    for metric, value, right in (
        ("mae", -1, "0 or more, in the unit of mae"),
        ("f1", 25, "an f1, 0 to 1"),
        ("accuracy", 25, "an accuracy, 0 to 1"),
    ):
        with pytest.raises(SpecError) as refused:
            make_spec("regression" if metric == "mae" else "binary", metric, [f"{group}={text % value}"])
        assert f"{group}.{key}: {value} is not allowed ({right})" in str(refused.value)


@pytest.mark.parametrize("one", [*METRICS, *TASKS], ids=lambda one: one.name)
def test_there_is_one_object_of_each_name_also_after_a_copy(one):
    assert pickle.loads(pickle.dumps(one)) is one
    assert copy.deepcopy(one) is one


def test_a_metric_that_is_written_out_is_the_one_that_a_task_has_anyway():
    text = "version: 1\nname: a\nparameters: {}\ndata: {dataset: digits, val_size: 100METRIC}\n"
    plain, named = (loads(text.replace("METRIC", one).encode(), "a.yaml") for one in ("", ", metric: accuracy"))
    assert plain.result_settings() == named.result_settings()
    check_comparable(named, plain.to_yaml().encode(), "runs/a")
