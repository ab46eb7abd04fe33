"""The models in `sweeps/reference/models` have the accuracy of their cards."""

import json

import numpy as np

from qdtune.reader import load
from tests.benchmarks.models import MODELS, measure, read


def test_the_smallest_model_has_the_accuracy_of_its_card(data_dir):
    cards = {path: json.loads(path.with_suffix(".json").read_text()) for path in MODELS.glob("*.safetensors")}
    path, card = min(cards.items(), key=lambda item: item[1]["size_bytes"])
    x, y = read("mnist", data_dir)
    assert card["dataset"] == "mnist"
    assert measure(path, x, y) == card["accuracy"]["test"]
    assert measure(path, x, np.roll(y, 1)) < 0.2  # what it finds depends on the answers


def test_a_model_is_printed_in_one_line():
    path = MODELS / "bfbc4f1d7a4b.safetensors"
    card = json.loads(path.with_suffix(".json").read_text())
    layers = "conv2d [14, 1, 3, 3], conv2d [21, 14, 3, 3], conv2d [28, 21, 3, 3], linear [10, 28]"
    assert repr(load(path)) == f"Model({card['size_bytes']:,} bytes of tensors: {layers})"
