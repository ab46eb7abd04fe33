"""What the check of exported C says, by the task of the model."""

from types import SimpleNamespace

import numpy as np
import pytest

from qdtune.model.c.host import Comparison, Program
from qdtune.model.c.program import EXACT
from qdtune.model.formats.c import C, judge
from qdtune.spec.tasks import ABOVE_0, LARGEST, NO_CLASS, TASKS
from tests.model.c.networks import draw_model


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_card_names_the_function_of_classes_if_there_are_classes(task):
    said = C.usage_of(SimpleNamespace(trial=SimpleNamespace(task=task.name)))
    assert ("qd_TRIAL_class(row)" in said) == (task.name in ("classification", "binary")) == task.has_class
    assert "qd_TRIAL_logits(row, logits)" in said


def judged(rule, exact, **found):
    """What is said of these answers to 10 rows."""
    model, _ = draw_model(0, "mlp")
    program = Program("m", {".h": f"#define QD_M{EXACT}" if exact else ""}, model, rule)
    numbers = {"rows": 10, "logits": 0, "largest": 0.0, "classes": 0, "wrong": 0, "mean": 0.0} | found
    return judge(Comparison(**numbers), program, "10 rows")


def test_answers_of_floats_are_judged_by_classes_if_there_are_any():
    few = {"logits": 7, "largest": 2e-7, "mean": 1e-8}
    assert judged(LARGEST, False, **few).note == (
        "0 of 10 classes differ from those of reader.py, logits by up to 2e-07 of the largest (10 rows), because the "
        "C sums floats; with act_bits in the sweep file none would"
    )
    assert judged(NO_CLASS, False, **few).note == (
        "logits by up to 2e-07 of the largest differ from those of reader.py (10 rows), because the C sums floats; "
        "with act_bits in the sweep file none would"
    )
    assert judged(LARGEST, False, classes=1).fault.startswith(
        "must give nearly all classes of reader.py, got: 1 of 10"
    )
    assert judged(NO_CLASS, False, mean=0.02).fault.startswith(
        "must give nearly the logits of reader.py, got others by"
    )
    assert judged(LARGEST, False, mean=0.02).fault is None
    assert judged(NO_CLASS, True, logits=1).fault.startswith("must give the logits of reader.py, got 1 others of")


@pytest.mark.parametrize(
    ("classes", "places", "wrong"),
    [(LARGEST, [1, 0, 0], 1), (LARGEST, [1, 0, 1], 0), (NO_CLASS, [0, 0, 0], 0)],
)
def test_a_class_is_wrong_if_another_logit_is_larger_by_more_than_rounding(classes, places, wrong):
    program = Program("m", {}, draw_model(0, "mlp")[0], classes)
    logits = np.array([[0.0, 1.0], [0.5, 0.5 + 1e-8], [-1.0, 1.0]], np.float32)
    assert program.count_wrong(logits, np.array(places)) == wrong


def test_a_sign_is_wrong_beyond_rounding():
    program = Program("m", {}, draw_model(0, "mlp")[0], ABOVE_0)
    logits = np.array([[2.0], [-1e-8], [-0.5]], np.float32)
    assert program.count_wrong(logits, np.array([1, 1, 0])) == 0
    assert program.count_wrong(logits, np.array([0, 1, 1])) == 2
