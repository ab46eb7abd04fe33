"""Numbers of every metric are printed with the digits that tell them apart, fractions as they always were."""

import pytest

from qdtune.spec.metric_text import (
    column_head,
    difference_cells,
    format_briefly,
    format_differences,
    format_metric,
    format_plain,
    say_difference,
    say_distance,
    say_interval,
    say_metric,
)
from qdtune.spec.tasks import ACCURACY, AUC, MAE, MSE, R2


@pytest.mark.parametrize(
    ("metric", "numbers", "text"),
    [
        (ACCURACY, (0.9712, None, None), "97.12%"),
        (AUC, (0.9712, 0.9682, 0.9742), "97.12% ± 0.30"),
        (ACCURACY, (0.9652, 0.8324, 1.0), "96.52% ± 13.28"),  # cut off at 1
        (ACCURACY, (0.05, 0.0, 0.2), "5.00% ± 15.00"),
        (ACCURACY, (0.5, 0.0, 1.0), "50.00%"),  # cut off at both ends
        (ACCURACY, (1.0, 1.0, 1.0), "100.00% ± 0.00"),
        (MAE, (0.02, 0.0, 0.05), "0.020 ± 0.030"),
        (R2, (0.9, 0.7, 1.0), "0.90 ± 0.20"),
        (MAE, (0.021342,), "0.02134"),
        (MAE, (0.021342, 0.021222, 0.021462), "0.02134 ± 0.00012"),
        (MAE, (0.02, 0.02, 0.02), "0.02000"),
        (MSE, (12345.6, 12225.6, 12465.6), "12,346 ± 120"),
        (MSE, (12345.6,), "12,346"),
        (MSE, (0.0,), "0.000"),
        (MSE, (1.5e-11,), "1.500e-11"),
        (R2, (-0.05, -0.3, 0.2), "-0.05 ± 0.25"),
        (R2, (None,), "-"),
    ],
)
def test_a_cell_has_the_digits_of_its_interval(metric, numbers, text):
    assert format_metric(metric, *numbers) == text


def test_differences_share_their_digits_and_name_their_unit():
    assert format_differences(ACCURACY, 0.012, -0.0321) == ["+1.2", "-3.2"]
    assert difference_cells(ACCURACY, 0.012) == ["+1.20"]
    assert format_differences(MAE, 0.0123, -0.0002, 0.0248) == ["+0.0123", "-0.0002", "+0.0248"]
    assert format_differences(MSE, 0.0, 1234.5) == ["0", "+1,234"]
    assert difference_cells(MAE, 0.0) == ["0.00"]
    assert (say_difference(AUC, "+1.2"), say_difference(MAE, "-0.013")) == ("+1.2 points", "mae -0.013")
    assert (say_distance(AUC, "1.2"), say_distance(MAE, "0.013")) == ("1.2 points", "0.013 in mae")


def test_every_metric_but_accuracy_is_named():
    assert [say_metric(one, 0.97) for one in (ACCURACY, AUC, R2)] == ["97.0 %", "auc 97.0 %", "r2 0.9700"]
    assert [column_head(one, "test") for one in (ACCURACY, AUC, MAE)] == ["test", "test auc", "test mae"]
    assert (say_interval(ACCURACY, 0.969, 0.973), say_interval(MAE, 0.0209, 0.0217)) == (
        "96.9 to 97.3",
        "0.02090 to 0.02170",
    )
    assert (format_briefly(ACCURACY, 0.5), format_briefly(MAE, 0.02134)) == ("50.0%", "0.0213")
    assert format_plain(0.9996, 3) == "1.000"  # rounded up: one digit more does no harm
