"""Words of other tools in a sweep file: the mistake says how they are said here, and none hides a word of ours."""

from __future__ import annotations

import pytest

from qdtune.messages import SpecError
from qdtune.spec.choices import METHODS
from qdtune.spec.early_terminate import EarlyTerminate
from qdtune.spec.foreign_words import FOREIGN_WORDS
from qdtune.spec.pruners import PRUNERS
from qdtune.spec.sweep_file import Spec, loads

SWEEP = b"""\
version: 1
name: x
method: %b
run_cap: 3
parameters:
  qat_lr: {min: 0.001, max: 0.1, distribution: %b}
early_terminate: {type: hyperband, %b: 1}
data: {dataset: digits}
"""


def first_line(data: bytes) -> str:
    with pytest.raises(SpecError) as raised:
        loads(data, "x.yaml")
    assert len(raised.value.problems) == 1
    return str(raised.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            (b"bayes", b"uniform", b"min_resource"),
            "x.yaml:3: method: unknown 'bayes' (W&B's bayes is tpe or gp here)",
        ),
        (
            (b"random", b"log_uniform_values", b"min_resource"),
            "x.yaml:6: parameters.qat_lr.distribution: unknown 'log_uniform_values' (it is called log_uniform here)",
        ),
        (
            (b"random", b"uniform", b"min_iter"),
            "x.yaml:7: early_terminate: unknown key 'min_iter'; it is called min_resource here, with type: hyperband "
            "(type, scope, within, min_resource, reduction_factor)",
        ),
    ],
)
def test_a_foreign_word_is_answered_with_ours(words: tuple[bytes, ...], line: str) -> None:
    assert first_line(SWEEP % words) == f"error: {line}"


def test_a_foreign_key_is_answered_with_ours() -> None:
    line = first_line(SWEEP % (b"random", b"uniform", b"min_resource") + b"metric: {name: loss, goal: minimize}\n")
    what = "unknown key 'metric'; it is called data.metric here, and knows its direction"
    assert line == f"error: x.yaml:9: {what} ({', '.join(Spec.model_fields)})"


def test_no_foreign_word_is_ours() -> None:
    ours = {"": Spec.model_fields, "early_terminate": EarlyTerminate.model_fields, "method": METHODS}
    ours |= {"type": [pruner.name for pruner in PRUNERS], "distribution": ["uniform", "log_uniform", "int_uniform"]}
    ours |= {"parameters": ["value", "values", "min", "max", "distribution"]}
    assert {word.home for word in FOREIGN_WORDS} == set(ours)
    assert [word for word in FOREIGN_WORDS if word.word in ours[word.home]] == []
    assert len({word[:2] for word in FOREIGN_WORDS}) == len(FOREIGN_WORDS)
