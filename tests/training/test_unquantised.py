"""Which parts of a user's model are said to stay float32."""

import pytest
from torch import nn

from qdtune.model.quantize import count_sizes
from qdtune.spec.sweep_file import loads
from qdtune.training.unquantised import BARE, count_unquantised, find_unquantised

SWEEP = b"""
version: 1
name: coder
parameters: {depth: {value: 1}, weight_bits: {value: 4}, resolution: {value: 4}}
data: {dataset: digits, val_size: 287, task: autoencoder}
model: {factory: "mine:net"}
"""


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.scale = nn.Parameter(self.layer.weight.detach()[0].clone())


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2)), {}),
        (nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2)), {"nn.Embedding": 80}),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3), nn.LayerNorm(3)), {"nn.LayerNorm": 56}),
        (Bare(), {BARE: 12}),
    ],
)
def test_modules_of_no_kind_are_counted_with_the_bytes_that_other_bytes_has(
    model: nn.Module, found: dict[str, int]
) -> None:
    assert count_unquantised(model) == found
    assert sum(found.values()) == count_sizes(model).other_bytes


def test_an_autoencoder_has_the_outputs_of_images_averaged_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdtune.training.unquantised.build_own", lambda *given, seed: nn.LayerNorm(given[4]))
    spec = loads(SWEEP, "coder.yaml").resolve("digits").changed("model", sha256="0" * 64)
    assert sum(find_unquantised(spec).values()) == 2 * 4 * 16  # a scale and a shift for each of 4 x 4 pixels
