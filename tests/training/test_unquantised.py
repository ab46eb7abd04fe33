"""Which parts of a user's model are said to stay float32."""

import pytest
from torch import nn

from qdtune.model.quantize import count_sizes
from qdtune.training.unquantised import BARE, count_unquantised


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
