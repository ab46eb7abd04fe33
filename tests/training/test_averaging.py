"""Images averaged down: the filter by hand, and alike in the reader, in ONNX, in training and in what is shipped."""

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import qdtune
from qdtune import reader
from qdtune.datasets.dataset import Averaging, DatasetInfo
from qdtune.datasets.known import dataset_of
from qdtune.datasets.load import cut, default_root, load, on_disk
from qdtune.model.formats.format import input_words
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.onnx_graph import EXACT_AREA, Graph
from qdtune.model.formats.packed import one_seed
from qdtune.model.signed_file import split_file
from qdtune.spec.configuration import OwnData, OwnModel
from qdtune.spec.groups import Qat, Warmup
from qdtune.spec.structure import mlp_structure
from qdtune.training.augment import distort_images, flip_images
from qdtune.training.averaging import average_images, blur_images
from qdtune.training.tensors import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups
from tests.training.test_cohort import CPU, a_trial

# Channels, height and width, and what is left of them; the last has weights that float32 could not sum.
SIZES = [
    ((1, 28, 28), (16, 16)),
    ((1, 28, 28), (8, 8)),
    ((3, 32, 32), (20, 20)),
    ((1, 6, 9), (4, 6)),
    ((3, 5, 5), (5, 2)),
    ((1, 101, 103), (64, 64)),
]


def images(shape, rows=20):
    found = np.random.default_rng(0).integers(0, 256, (rows, *shape), np.uint8)
    found[0], found[1] = 255, 0
    found[2] = found[2] % 2 * 255  # means that are halves
    return found.reshape(rows, -1)


def covers(side, fewer):
    """For each new pixel of one side, the old ones that it covers, each with its share of the new one."""
    found = []
    for new in range(fewer):
        low, high = Fraction(new * side, fewer), Fraction((new + 1) * side, fewer)
        shares = [(old, (min(high, old + 1) - max(low, old)) / (high - low)) for old in range(side)]
        found.append([(old, share) for old, share in shares if share > 0])
    return found


@pytest.mark.parametrize(("shape", "size"), SIZES[:-1], ids=str)
def test_a_new_pixel_is_the_mean_of_those_under_it(shape, size):
    x = images(shape, 4)
    found = reader.average(x, {"image": list(shape), "size": list(size)})
    rows, columns = (covers(n, m) for n, m in zip(shape[1:], size, strict=True))
    expected = []
    for channel in x.reshape(-1, *shape[1:]).tolist():
        for row in rows:
            for column in columns:
                mean = sum(p * q * channel[r][c] for r, p in row for c, q in column)
                expected.append(floor(mean + Fraction(1, 2)))
    assert found.ravel().tolist() == expected
    assert found.dtype == np.uint8


@pytest.mark.parametrize(("shape", "size"), SIZES, ids=str)
@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_onnx_averages_alike(shape, size, level):
    op, x = {"op": "average", "image": list(shape), "size": list(size)}, images(shape, 500)
    graph = Graph(reader.Model({"ops": [op]}, {}, {}))
    end = graph.average(op, graph.add("Cast", ["pixels"], to=onnx.TensorProto.FLOAT))
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, ["batch", None])
        for name, kind in (("pixels", onnx.TensorProto.UINT8), (end, onnx.TensorProto.FLOAT))
    ]
    whole = onnx.helper.make_graph(graph.nodes, "average", ends[:1], ends[1:], graph.tensors)
    model = onnx.helper.make_model(whole, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"pixels": x})[0], reader.average(x, op))
    weights = np.prod([reader.area_weights(n, m)[0].sum() for n, m in zip(shape[1:], size, strict=True)])
    assert bool(weights >= EXACT_AREA) is (shape == SIZES[-1][0])


def test_both_sides_shrink_by_the_same_factor():
    info = DatasetInfo(9, 3 * 20 * 30, 2, (3, 20, 30))
    assert info.averaging(10) == Averaging((3, 20, 30), (10, 15))
    assert info.averaging(7) == Averaging((3, 20, 30), (7, 11))  # 10.5, halves up
    assert info.averaging(20) is info.averaging(None) is None
    assert info.averaged(10) == DatasetInfo(9, 450, 2, (3, 10, 15))
    assert dataset_of("mnist").info.averaged(8)[1:4] == (64, 10, (1, 8, 8))


class Net(torch.nn.Module):
    """Its widths follow from the number of inputs."""

    def __init__(self, inputs, classes):
        super().__init__()
        self.a, self.b = torch.nn.Linear(inputs, 6), torch.nn.Linear(6, classes)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


def colours(rows=260, side=6):
    """Images of two classes, which the brightness of one corner tells."""
    draw = np.random.default_rng(1)
    y = draw.integers(0, 2, rows)
    x = draw.integers(0, 200, (rows, 3, side, side))
    x[:, :, : side // 2, : side // 2] += 55 * y[:, None, None, None]
    return (x[:200].reshape(200, -1).astype(np.uint8), y[:200], x[200:].reshape(60, -1).astype(np.uint8), y[200:])


def train_colours(task="classification", own_model=None, **changes):
    info = DatasetInfo(200, 108, 2, (3, 6, 6))
    phases = {"warmup": Warmup(epochs=3, lr=0.1), "qat": Qat(epochs=2, lr=0.02)}
    settings = phases | {"seeds": (0, 1), "own_data": OwnData("a", "b", info), "own_model": own_model, **changes}
    metric = "mse" if task == "autoencoder" else "accuracy"
    trial = a_trial(resolution=4, task=task, metric=metric, batch_size=16, **settings)
    data = Tensors.of(cut("mine:data", colours(), 50, info), CPU)
    *_, report = train_configuration(trial, data, NoWarmups(), "never")
    return trial, data, report


@pytest.mark.parametrize("augment", ["none", "shift", "elastic"])
def test_the_table_is_what_the_reader_finds_on_images_as_they_are(augment):
    trial, data, report = train_colours(qat=Qat(epochs=2, lr=0.02, augment=augment))
    assert trial.structure.layers[0].inputs == 3 * 4 * 4
    for row in report["rows"]:
        blob = one_seed(report["weights"], row["seed"])
        assert len(split_file(blob)[1]) == trial.sizes.size_bytes  # averaging costs none
        model = reader.load(blob)
        assert (model.program["inputs"], model.program["ops"][0]["op"]) == (108, "average")
        x = data.test_x.numpy()
        logits = model.logits(x)
        assert row["test_accuracy"] == (logits.argmax(1) == data.test_y.numpy()).mean()
        assert np.array_equal(logits, model.logits(x / 127.5 - 1))  # floats that were pixels
        session = onnxruntime.InferenceSession(to_onnx(model, "t"), providers=["CPUExecutionProvider"])
        assert np.allclose(session.run(None, {"pixels": x})[0], logits, atol=1e-5)
        assert "averaged down to 4 x 4" in input_words(model.program)["inside"]


def test_a_wide_image_is_averaged_down_once_for_all_trials():
    data = Tensors.of(cut("mine:data", colours(), 50, DatasetInfo(200, 108, 2, (3, 4, 9))), CPU)
    how = DatasetInfo(200, 108, 2, (3, 4, 9)).averaging(2)
    assert how == Averaging((3, 4, 9), (2, 5))
    seen = data.averaged(how)
    assert data.averaged(how) is seen
    assert (seen.inputs, seen.train_x.shape, seen.test_x.shape, seen.image) == (30, (150, 30), (60, 108), None)
    assert torch.equal(seen.train_x, average_images(data.train_x, how))
    assert replace(data, val_x=data.train_x).averaged(how).val_x.shape == (150, 30)


def test_images_are_averaged_as_the_reader_does_whatever_the_sums():
    for shape, size in SIZES:
        op, x = {"image": list(shape), "size": list(size)}, images(shape, 250)
        assert np.array_equal(average_images(torch.from_numpy(x), Averaging(shape, size)), reader.average(x, op))


def test_blurred_images_are_what_the_weights_say():
    """At half the side, a pixel averaged down has the weights 1/2, 1/2: a variance of 1/4, as 1/8, 3/4, 1/8."""
    x = torch.zeros(1, 36, dtype=torch.uint8)
    x[0, 7] = 200  # the second row and column
    found = blur_images(x, Averaging((1, 6, 6), (3, 3))).view(6, 6)
    weights = torch.tensor([0.125, 0.75, 0.125, 0, 0, 0])
    assert torch.equal(found, (200 * weights[:, None] * weights + 0.5).floor().to(torch.uint8))
    assert torch.equal(blur_images(x, Averaging((1, 6, 6), (6, 6))), x)


def test_images_are_moved_before_they_are_averaged_down():
    info = DatasetInfo(200, 108, 2, (3, 6, 6))
    data = Tensors.of(cut("mine:data", colours(), 50, info), CPU)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = data.averaged(info.averaging(4)).distort("shift", draws[0])
    whole = distort_images(data.train_x, "shift", draws[1], (3, 6, 6))
    assert torch.equal(found, average_images(whole, info.averaging(4)))


@pytest.mark.parametrize(("augment", "share"), [("flip", 0.0), ("shift_flip", 0.0), ("affine_flip", 0.5)])
def test_images_are_mirrored_after_they_are_averaged_down(augment, share):
    info = DatasetInfo(200, 108, 2, (3, 6, 6))
    data = Tensors.of(cut("mine:data", colours(), 50, info), CPU).averaged(info.averaging(4))
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = data.distort(augment, draws[0], share)
    distortion = augment.removesuffix("flip").removesuffix("_")
    before = data.distort(distortion, draws[1], share) if distortion else data.train_x
    is_mirrored = (found != before).any(1)
    assert torch.equal(found[is_mirrored], flip_images(before[is_mirrored], 3))
    assert 75 * (1 - share) - 25 < is_mirrored.sum() < 75 * (1 - share) + 25


@pytest.mark.parametrize("augment", ["affine", "elastic"])
def test_other_distortions_average_images_down_in_the_same_step(augment):
    info = DatasetInfo(200, 108, 2, (3, 6, 6))
    data = Tensors.of(cut("mine:data", colours(), 50, info), CPU)
    how = info.averaging(4)
    seen = data.averaged(how)
    draws = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = seen.distort(augment, draws[0], 0.5)
    blurred = blur_images(data.train_x, how)
    assert torch.equal(found, distort_images(blurred, augment, draws[1], (3, 6, 6), 0.5, seen.train_x))
    assert 40 < (found == seen.train_x).all(1).sum() < 110


def test_an_autoencoder_gives_back_the_images_averaged_down():
    trial, data, report = train_colours("autoencoder")
    assert trial.structure.layers[-1].outputs == 48
    for row in report["rows"]:
        model = reader.load(one_seed(report["weights"], row["seed"]))
        wanted = model.first_inputs(data.test_x.numpy())
        error = ((model.logits(data.test_x.numpy()) - wanted) ** 2).mean()
        assert row["test_mse"] == pytest.approx(error, rel=1e-5)


def test_a_model_of_ones_own_gets_the_smaller_inputs(monkeypatch):
    monkeypatch.setattr("qdtune.model.networks.build_own", lambda *a, seed: Net(a[2], a[4]))
    own = OwnModel("mine:net", "a" * 64, mlp_structure(48, (6,), 2))
    _, data, report = train_colours(own_model=own, act_bits=8)
    blob, x = one_seed(report["weights"], 0), data.test_x.numpy()
    module = qdtune.load_into(Net(48, 2), blob)
    with torch.no_grad():
        logits = module(torch.from_numpy(reader.load(blob).first_inputs(x))).numpy()
    assert report["rows"][0]["test_accuracy"] == (logits.argmax(1) == data.test_y.numpy()).mean()
    session = onnxruntime.InferenceSession(qdtune.to_onnx(Net(48, 2), blob), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run(None, {"pixels": x})[0], logits)


@pytest.mark.parametrize("size", [[7, 4], [0, 4], [4], [4, 4, 4], [2**40, 4]], ids=str)
def test_sizes_that_lie_are_refused(size):
    with pytest.raises((reader.ReaderError, ValueError)):
        reader.average(np.zeros((2, 36), np.uint8), {"image": [1, 6, 6], "size": size})


@pytest.mark.slow
@pytest.mark.skipif(not on_disk("mnist", default_root()), reason="MNIST is not on this disk")
@pytest.mark.parametrize("resolution", [8, 16])
def test_mnist_is_answered_alike_to_the_last_sample(resolution):
    samples, _ = load(["mnist"], default_root(), 5000)
    data = Tensors.of(samples, CPU)
    phases = {"warmup": Warmup(epochs=1, lr=0.1), "qat": Qat(epochs=1, lr=0.02), "batch_size": 128}
    trial = a_trial(dataset="mnist", resolution=resolution, act_bits=4, scale="lsq", seeds=(0, 1), **phases)
    *_, report = train_configuration(trial, data, NoWarmups(), "never")
    for row in report["rows"]:
        model = reader.load(one_seed(report["weights"], row["seed"]))
        logits = model.logits(samples.test_x)
        assert row["test_accuracy"] == (logits.argmax(1) == samples.test_y).mean() > 0.3
        session = onnxruntime.InferenceSession(to_onnx(model, "t"), providers=["CPUExecutionProvider"])
        assert np.array_equal(session.run(None, {"pixels": samples.test_x})[0], logits)
