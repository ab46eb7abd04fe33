"""Data of the user's own: what a sample is a picture of is part of it, and decides what `augment` may do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qdtune import plugins
from qdtune.datasets.load import Samples
from qdtune.messages import SpecError
from qdtune.plugins import Grant
from qdtune.spec.comparable import check_comparable
from qdtune.spec.sweep_file import Spec, loads
from qdtune.sweep.prepare import call_own_data
from qdtune.training.augment import distort_images
from qdtune.training.tensors import Tensors

SWEEP = """\
version: 1
name: own
parameters: {depth: {values: [1, 2]}}
data: {factory: 'NAME:f', val_size: 40}
train: {batch_size: 16, qat: {augment: AUGMENT}}
"""
DATA = """\
import numpy as np
def f(root):
    x = np.arange(200 * 400).reshape(200, 400) % 251
    y = np.arange(200) % 4
    x = x.astype('u1')RESHAPED
    return x[:150], y[:150], x[150:], y[150:]
"""


def called(folder: Path, reshaped: str = "", augment: str = "shift") -> tuple[Spec, Samples]:
    name = f"data_{abs(hash(reshaped))}"
    (folder / f"{name}.py").write_text(DATA.replace("RESHAPED", reshaped))
    plugins.allow(Grant((name,), (str(folder),)))
    sweep = SWEEP.replace("NAME", name).replace("AUGMENT", augment)
    return call_own_data(loads(sweep.encode(), "x.yaml"), folder)


def test_images_are_rows_channel_by_channel_and_keep_their_shape(tmp_path):
    spec, data = called(tmp_path, ".reshape(200, 4, 10, 10)")
    assert (data.inputs, data.image) == (400, (4, 10, 10))  # not the one colour of 20 x 20 that 400 numbers could be
    assert loads(spec.to_yaml().encode(), "x.yaml") == spec
    tensors = Tensors.of(data, torch.device("cpu"))
    assert tensors.image == (4, 10, 10)
    moved = distort_images(tensors.train_x, "shift", torch.Generator().manual_seed(0), tensors.image)
    whole = np.pad(data.train_x.reshape(-1, 4, 10, 10), [(0, 0), (0, 0), (1, 1), (1, 1)])
    ways = [whole[..., i : i + 10, j : j + 10].reshape(-1, 400) for i in range(3) for j in range(3)]
    hits = np.stack([(way == moved.numpy()).all(1) for way in ways])
    assert hits.any(0).all()
    assert hits.any(1).all()
    bent = distort_images(tensors.train_x, "elastic", torch.Generator().manual_seed(0), tensors.image)
    assert bent.shape == tensors.train_x.shape


@pytest.mark.parametrize("reshaped", ["", ".reshape(200, 1, 10, 40)", ".reshape(200, 10, 4, 10)"])
def test_what_is_no_square_image_is_not_distorted(tmp_path, reshaped):
    with pytest.raises(SpecError) as caught:
        called(tmp_path, reshaped)
    what = "shift needs square images, which a factory returns as (rows, channels, height, width)"
    assert str(caught.value) == f"error: train.qat.augment: {what}; data_{abs(hash(reshaped))}:f has 400 numbers " + (
        "a sample (or none)"
    )
    spec, data = called(tmp_path, reshaped, augment="none")
    assert spec.data.info is not None
    assert spec.data.info.square is None
    assert data.inputs == 400


def test_images_of_one_channel_need_no_axis_for_it(tmp_path):
    found = [
        called(tmp_path, shape, augment="shift") for shape in (".reshape(200, 20, 20)", ".reshape(200, 1, 20, 20)")
    ]
    assert [data.image for _, data in found] == [(1, 20, 20)] * 2
    assert found[0][0].data.content == found[1][0].data.content


def test_channels_come_first(tmp_path):
    with pytest.raises(SpecError, match=r"train_x must have its channels before height and width: use \.transpose"):
        called(tmp_path, ".reshape(200, 10, 10, 4)", augment="none")


def test_rows_keep_their_hash_and_images_of_other_shapes_have_others(tmp_path):
    shapes = ("", ".reshape(200, 1, 20, 20)", ".reshape(200, 4, 10, 10)")
    found = [called(tmp_path, shape, augment="none")[0].data.content for shape in shapes]
    assert found[0] == "37dc1046194dd79a57cd6e1293c126d8262158de66bc71e1d9ccbf4da55bca9a"
    assert len({*found}) == 3


def test_a_run_of_an_older_version_is_read_and_finished(tmp_path):
    spec, _ = called(tmp_path, augment="none")
    assert "image: [1, 1, 400]" in spec.to_yaml()
    older = spec.to_yaml().replace("image: [1, 1, 400]", "")
    assert loads(older.encode(), "x.yaml").data.image is None
    check_comparable(spec, older.encode(), "run")
    loads(older.replace("augment: none", "augment: shift").encode(), "x.yaml")  # 20 x 20, as it was taken then


TARGETS = """\
import numpy as np
def f(root):
    random = np.random.RandomState(0)
    x = random.normal(size=(200, 6)) * [1, 1, 1, 1, 1, 1000]
    y = TARGETS
    return x[:150], y[:150], x[150:], y[150:]
"""


def targeted(folder: Path, targets: str, task: str, metric: str, val_size: int = 40) -> tuple[Spec, Samples]:
    name = f"targets_{abs(hash((targets, task)))}"
    (folder / f"{name}.py").write_text(TARGETS.replace("TARGETS", targets))
    plugins.allow(Grant((name,), (str(folder),)))
    data = (
        f"data: {{factory: '{name}:f', task: {task}, metric: {metric}, normalize: feature, val_size: {val_size}}}\n"
    )
    head = "version: 1\nname: own\nparameters: {depth: {value: 1}}\n"
    sweep = f"{head}{data}train: {{batch_size: 16}}\n"
    return call_own_data(loads(sweep.encode(), "x.yaml"), folder)


@pytest.mark.parametrize(
    ("task", "metric", "targets", "shape", "outputs"),
    [
        ("binary", "auc", "np.arange(200) % 2", (110, 1), 1),
        ("binary", "f1", "np.arange(200) % 2 == 0", (110, 1), 1),
        ("multilabel", "f1", "random.randint(0, 2, (200, 3))", (110, 3), 3),
        ("regression", "r2", "x[:, 0]", (110, 1), 1),
        ("regression", "mae", "x[:, :2]", (110, 2), 2),
        ("autoencoder", "mse", "np.arange(200) % 2", (110, 1), 6),
    ],
)
def test_targets_of_a_task_are_float32_and_decide_the_outputs(tmp_path, task, metric, targets, shape, outputs):
    spec, data = targeted(tmp_path, targets, task, metric)
    assert (data.train_y.dtype, data.train_y.shape) == (np.float32, shape)
    assert spec.task.outputs(spec.data.info) == outputs
    assert spec.data.dtype == "float32"
    assert data.scale.shape == data.shift.shape == (6,)
    assert loads(spec.to_yaml().encode(), "x.yaml") == spec


@pytest.mark.parametrize(
    ("task", "metric", "targets", "message"),
    [
        ("binary", "auc", "np.arange(200) % 3", "train_y must be a label 0 or 1 for each of the 150 rows"),
        ("binary", "auc", "np.zeros(200)", "train_y must have both labels, 0 and 1, got 0 alone"),
        ("multilabel", "f1", "np.arange(200) % 2", r"train_y must be labels 0 or 1 of shape \(150, labels\)"),
        ("regression", "r2", "np.full(200, np.nan)", "train_y must be finite float32, got 150 numbers that are not"),
        ("regression", "r2", "np.arange(200) * 1e300", "train_y must be finite float32, got 149 numbers"),
        (
            "regression",
            "r2",
            "np.where(np.arange(200) < 3, 0, np.nan)",
            "got 147 numbers that are not, the first in row 3",
        ),
        ("regression", "mae", "1e8 + np.arange(200) % 30", r"\(30 distinct values become 5\): subtract an offset"),
        ("regression", "mae", "2**60 + np.arange(200) % 3", r"\(3 distinct values become 1\): subtract an offset"),
        (
            "regression",
            "r2",
            "1700000000 + x[:, :2]",
            r"which rounds column 0 by up to 2.38, and its standard dev",
        ),
        (
            "regression",
            "mse",
            "x[:, 0] * 1e20",
            r"because squared errors overflow float32 above that, got 2.\d*e\+20",
        ),
        (
            "binary",
            "f1",
            "np.where(np.arange(200) == 7, np.nan, 1)",
            "got 1 numbers that are not, the first in row 7",
        ),
        (
            "multilabel",
            "f1",
            "np.full((200, 2), np.nan)",
            "train_y must be finite float32, got 300 numbers that are not",
        ),
        ("autoencoder", "mse", "np.full(200, np.nan)", "test_y must be finite float32, got 50 numbers that are not"),
        ("regression", "r2", "np.ones((200, 2))", "each target in train_y must vary: column 0 is the same"),
        ("regression", "r2", "np.array(['a'] * 200)", "train_y must be numbers of shape"),
        ("autoencoder", "mse", "np.arange(200)", "test_y must be a label, 0 for normal and 1 for an anomaly"),
    ],
)
def test_targets_that_do_not_fit_a_task_are_told_in_one_line(tmp_path, task, metric, targets, message):
    with pytest.raises(SpecError, match=message) as caught:
        targeted(tmp_path, targets, task, metric)
    assert "\n" not in str(caught.value)


def test_a_metric_that_the_validation_split_leaves_undefined_is_told_before_training(tmp_path):
    with pytest.raises(SpecError, match=r"data.val_size: 1 leaves a target that is the same .*: auc is undefined"):
        targeted(tmp_path, "np.arange(200) % 2", "binary", "auc", val_size=1)
    targeted(tmp_path, "np.arange(200) % 2", "binary", "f1", val_size=1)


def test_targets_far_from_zero_are_taken_if_float32_keeps_their_differences(tmp_path):
    _, data = targeted(tmp_path, "np.stack([1e8 + 1e6 * x[:, 0], 300 + x[:, 1] / 10], 1)", "regression", "r2")
    assert data.train_y.std(0) == pytest.approx([1e6, 0.1], rel=0.3)


@pytest.mark.parametrize("dtype", [">i2", ">u2", ">f4", ">f8"])
def test_rows_of_another_order_of_bytes_train_as_native_ones(tmp_path, dtype):
    found = []
    for order in (dtype, dtype.replace(">", "<")):
        targets = f"x[:, 0]\n    x = (x * 10 + 5000).astype('{order}')"
        found.append(targeted(tmp_path, targets, "regression", "r2"))
    (spec, swapped), (plain, native) = found
    assert swapped.train_x.dtype.isnative
    assert (swapped.test_x == native.test_x).all()
    assert spec.data.content == plain.data.content
    assert len(Tensors.of(swapped, torch.device("cpu")).train_x) == 110
