"""Each task trains on rows of each type, and what is shipped gives the numbers of the table."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from qdtune import reader
from qdtune.datasets.dataset import DTYPES, DatasetInfo
from qdtune.datasets.load import cut
from qdtune.model.formats.card import make_card
from qdtune.model.formats.format import TrainedModel
from qdtune.model.formats.known import FORMATS
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.model.signed_file import split_file
from qdtune.spec.configuration import OwnData
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.tasks import AUTOENCODER, TASKS, metric_of, task_of
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU
from tests.training.test_cohort import a_short_trial as a_trial

ROWS, INPUTS = 600, 12
METRICS = [(task, metric) for task in TASKS for metric in task.metrics]


def given(task, dtype):
    """Rows that have something to learn, in units of their own, and their targets."""
    random = np.random.RandomState(0)
    hidden = random.normal(size=(ROWS, 3))
    x = hidden @ random.normal(size=(3, INPUTS)) + 0.1 * random.normal(size=(ROWS, INPUTS))
    units, zero = (1, 0) if dtype == "float32" else (20, 120)
    x = x * units + zero
    x *= 10.0 ** random.randint(0, 2, INPUTS) if dtype in ("float32", "uint16") else 1
    limits = np.iinfo(dtype) if dtype != "float32" else None
    x = x.astype(dtype) if limits is None else np.rint(x).clip(limits.min, limits.max).astype(dtype)
    y = {
        "classification": hidden[:, :2].argmax(1),
        "binary": hidden[:, 0] > 0,
        "multilabel": hidden > 0,
        "regression": hidden[:, :2] + 3,
        "autoencoder": np.zeros(ROWS),
    }[task.name]
    train_x, test_x, train_y, test_y = x[:400], x[400:], y[:400], y[400:]
    if task is AUTOENCODER:
        test_y = np.arange(200) % 2
        test_x = test_x.copy()
        test_x[test_y == 1] = random.permutation(test_x[test_y == 1].ravel()).reshape(-1, INPUTS)
    train_y, test_y, count = task.targets.read(train_y, test_y, 400, 200)
    return (train_x, train_y, test_x, test_y), DatasetInfo(400, INPUTS, count, dtype=dtype)


LEARN = 40  # epochs of warm-up after which every task is learned


@cache  # nobody changes what it returns
def trained(task, metric, dtype="float32", normalize="feature", learns=False, **changes):
    """A trial, its data and its last report, after a few steps or as many as it takes to learn."""
    splits, info = given(task, dtype)
    data = cut("mine:data", splits, 100, info, normalize)
    values = {"hidden": (24,), "depth": 2, "activation": "tanh", "weight_bits": 8, "act_bits": 8, "scale": "lsq"}
    trial = replace(
        a_trial(),
        **values | changes,
        dataset="mine:data",
        val_size=100,
        batch_size=20 if learns else 60,
        warmup=Warmup(epochs=LEARN if learns else 1, lr=0.01, optimizer="adam"),
        qat=Qat(epochs=3 if learns else 1, lr=0.003, optimizer="adam"),
        own_data=OwnData("0" * 64, "1" * 64, info),
        task=task.name,
        metric=metric.name,
        normalize=normalize,
    )
    *_, report = train_configuration(trial, Tensors.of(data, CPU), NoWarmups(), "never")
    return trial, data, report


def test_each_metric_is_one_of_a_task():
    assert {metric.name for _, metric in METRICS} == {"accuracy", "f1", "auc", "r2", "mae", "mse"}
    for task, metric in METRICS:
        assert task_of(task.name) is task
        assert metric_of(metric.name) is metric


@pytest.mark.parametrize(("task", "metric"), METRICS, ids=lambda one: one.name)
def test_a_task_is_learned_and_judged_by_its_metric(task, metric):
    _, _, report = trained(task, metric, learns=True)
    for row in report["rows"]:
        assert row["state"] == "ok", row["error"]
        assert metric.val in row
        good = {"accuracy": 0.85, "f1": 0.85, "auc": 0.9, "r2": 0.7, "mae": -0.35, "mse": -0.35}[metric.name]
        assert metric.sign * row[metric.val] > good
        assert metric.sign * row[metric.float_val] > good
        for also in task.also_tested(metric):
            assert also.sign * row[also.test] > {"r2": 0.8, "mae": -0.35, "auc": 0.8}[also.name]
    first, last = report["history"][0], report["history"][-1]
    assert first["train_loss"] > last["train_loss"]
    assert set(first) == {"seed", "phase", "epoch", "train_loss", metric.val, "seconds"}


@pytest.mark.parametrize("normalize", ["none", "dataset", "feature"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_shipped_takes_the_rows_as_they_were(dtype, normalize):
    import onnxruntime

    task = task_of("regression")
    if dtype == "uint8" and normalize != "none":
        pytest.skip("pixels have a normalisation of their own")
    trial, data, report = trained(task, task.metrics[0], dtype, normalize)
    alone = one_seed(report["weights"], 1)
    assert len(split_file(alone)[1]) == trial.sizes.size_bytes
    counts = {"none": 0, "dataset": 1, "feature": INPUTS}
    assert trial.sizes.other_bytes == 8 * counts[normalize]
    model = reader.load(alone)
    assert model.program.get("input", "uint8") == dtype
    outputs = model.logits(data.test_x)
    row = next(row for row in report["rows"] if row["seed"] == 1)
    errors = ((outputs - data.test_y) ** 2).sum(0)
    r2 = np.mean(1 - errors / ((data.test_y - data.test_y.mean(0)) ** 2).sum(0))
    assert row["test_r2"] == pytest.approx(r2, rel=1e-4, abs=1e-6)
    session = onnxruntime.InferenceSession(to_onnx(model, "x"), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.name == ("pixels" if dtype == "uint8" else "rows")
    assert np.allclose(session.run(None, {entry.name: data.test_x})[0], outputs, rtol=1e-4, atol=1e-4)


def test_rows_are_normalised_by_what_is_trained_on_and_a_constant_feature_is_shifted_only():
    splits, info = given(task_of("regression"), "float32")
    splits[0][:, 3] = splits[2][:, 3] = 7
    data = cut("mine:data", splits, 100, info, "feature")
    tensors = Tensors.of(data, CPU)
    found = tensors.train_x.numpy().astype(float)
    assert np.allclose(found.mean(0), 0, atol=1e-3)
    assert np.allclose(np.delete(found.std(0), 3), 1, atol=1e-3)
    assert (found[:, 3] == 0).all()
    whole = Tensors.of(cut("mine:data", splits, 100, info, "dataset"), CPU).train_x.numpy().astype(float)
    assert (whole.mean(), whole.std()) == pytest.approx((0, 1), abs=1e-3)
    plain = Tensors.of(cut("mine:data", splits, 100, info), CPU)
    assert torch.equal(plain.test_x, torch.from_numpy(splits[2]))


@pytest.mark.parametrize("normalize", ["dataset", "feature"])
@pytest.mark.parametrize("spread", [1e-7, 1e-44])
def test_a_spread_that_is_rounding_does_not_blow_up_the_next_row(normalize, spread):
    splits, info = given(task_of("regression"), "float32")
    columns = slice(3, 4) if normalize == "feature" else slice(None)
    splits[0][:, columns] = 1 if spread > 1e-37 else 0
    splits[0][::150, columns] += np.float32(spread)
    splits[2][:, columns] = 0.5
    assert splits[0][:, columns].max() > splits[0][:, columns].min()
    data = Tensors.of(cut("mine:data", splits, 100, info, normalize), CPU)
    found = data.normalise(data.test_x)[:, columns]
    assert abs(float(found.mean())) == pytest.approx(0.5)
    assert bool(data.train_x.isfinite().all())


def test_a_small_spread_that_is_real_is_normalised():
    splits, info = given(task_of("regression"), "float32")
    splits[0][:, 3] = splits[0][:, 3] * 1e-4 + 7
    splits[0][:, 4] *= 1e-30
    found = Tensors.of(cut("mine:data", splits, 100, info, "feature"), CPU).train_x.numpy().astype(float)
    assert found.std(0) == pytest.approx(np.ones(found.shape[1]), rel=0.05)


def test_a_reader_refuses_rows_that_are_not_finite_and_an_older_one_refuses_the_file():
    _, data, report = trained(task_of("regression"), metric_of("r2"))
    alone = one_seed(report["weights"], 0)
    assert split_file(alone)[0]["__metadata__"]["qdtune.packed"] == "3"
    rows = data.test_x[:2].copy()
    rows[1, 0] = np.nan
    with pytest.raises(reader.ReaderError, match="finite float32 as the training data"):
        reader.load(alone).logits(rows)


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_a_reader_takes_the_numbers_of_its_type_and_no_others(dtype):
    _, data, report = trained(task_of("regression"), metric_of("r2"), dtype, "feature")
    model = reader.load(one_seed(report["weights"], 0))
    row = data.test_x[:1]
    assert (model.logits(row.tolist()) == model.logits(row)).all()
    limits = np.finfo(dtype) if dtype == "float32" else np.iinfo(dtype)
    low, high = limits.min, limits.max
    with np.errstate(over="ignore", invalid="ignore"):  # the normalisation of such floats
        assert model.logits(np.array([[low, high] * (INPUTS // 2)], dtype)).shape == (1, 2)
    if dtype == "float32":
        wrong = [row.astype("f8") * 1e300, row * np.nan]
    else:
        wrong = [row / 1, row - row + (np.array(0) + (high + 1)), row.astype(int) * 0 + low - 1]
    for given_rows in wrong:
        with pytest.raises(
            reader.ReaderError, match=f"x must be finite {dtype} as the training data, not normalised"
        ):
            model.logits(given_rows)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((task.name, "float32") for task in TASKS), ("autoencoder", "uint8"), ("classification", "uint8")],
)
def test_a_card_says_what_the_outputs_are_and_what_to_make_of_them(name, dtype):
    task = task_of(name)
    metric = task.metrics[0]
    trial, data, report = trained(task, metric, dtype, "none" if dtype == "uint8" else "feature")
    row = report["rows"][0]
    blob = one_seed(report["weights"], row["seed"])
    spread = {f"{split}{end}": 0.0 for split in (metric.val, metric.test) for end in ("", "_low", "_high")}
    entry = trial.columns | spread | {"model": "mlp", "n_seeds": 2}
    model = TrainedModel(entry, row, trial, blob, reader.load(blob), {})
    for form in FORMATS:
        card = json.loads(make_card(model, form, "a", 1))
        assert (card["task"], card["outputs"], card["decision"]) == (name, task.answers, task.decision)
        assert ("normalisation" in card) == (name == "autoencoder")
        has_classes = dtype == "uint8" and name == "classification" and "{outputs}" in form.usage
        assert ("classes" in card["read_with"]) == has_classes
    outputs = model.model.logits(data.test_x)
    if name == "autoencoder":
        scale, shift = (np.array(card["normalisation"][part]) for part in ("scale", "shift"))
        errors = (outputs - (data.test_x * scale + shift)) ** 2
        assert errors.mean() == pytest.approx(row["test_mse"], rel=1e-4)
    if name == "binary":
        assert ((outputs > 0) == data.test_y).mean() == row["test_accuracy"]


@pytest.mark.parametrize("depth", [1, 2])
def test_a_network_without_hidden_layers_trains_and_ships(depth):
    task = task_of("regression")
    trial, data, report = trained(task, task.metrics[0], learns=True, hidden=(), depth=depth, decompose="all")
    assert trial.cells["hidden"] == "none"
    assert len(trial.structure.layers) == 1
    alone = one_seed(report["weights"], 0)
    assert len(split_file(alone)[1]) == trial.sizes.size_bytes
    assert reader.load(alone).logits(data.test_x).shape == (200, 2)
    assert all(row["val_r2"] > 0.5 for row in report["rows"])


def test_diverged_replicas_have_no_metric():
    task = task_of("regression")
    splits, info = given(task, "float32")
    trial, _, _ = trained(task, task.metrics[0])
    trial = replace(trial, warmup=Warmup(epochs=2, lr=1e9), normalize="none")
    data = Tensors.of(cut("mine:data", splits, 100, info), CPU)
    *_, report = train_configuration(trial, data, NoWarmups(), "never")
    assert {row["state"] for row in report["rows"]} == {"diverged"}
    assert {row["val_r2"] for row in report["rows"]} == {None}
    assert {row["test_mae"] for row in report["rows"]} == {None}
