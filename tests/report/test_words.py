"""Networks that others have published, beside ours."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from qdtune.report import words
from qdtune.report.published import published
from qdtune.report.words import match_published
from qdtune.spec.tasks import ACCURACY
from qdtune.store.parquet import complete_table
from tests.schemas import PARETO

TABLE = Path(__file__).parents[2] / "sweeps" / "reference" / "front_mnist_final.parquet"


@pytest.mark.parametrize("more", [-1e-6, 0, 1e-6])
def test_the_smallest_that_is_at_least_as_accurate_stands_beside_a_published_network(more, monkeypatch):
    ours = complete_table(pq.read_table(TABLE), PARETO)
    front = sorted((row for row in ours.to_pylist() if row["is_pareto"]), key=lambda row: row["size_bytes"])
    other = published("mnist", ACCURACY)[0]._replace(test_accuracy=front[2]["test_accuracy"] + more, act_bits=None)
    monkeypatch.setattr(words, "published", lambda dataset, metric: [other])
    ((_, beside),) = match_published(ours, "mnist")
    assert beside["trial_id"] == front[2 if more <= 0 else 3]["trial_id"]
