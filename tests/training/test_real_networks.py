"""Networks that people put on microcontrollers are taken, or refused in one line that says what to do."""

from pathlib import Path

import pytest

from qdtune import plugins
from qdtune.messages import SpecError
from qdtune.plugins import Grant
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.sweep.prepare import call_own_data
from qdtune.training.own_model import describe_own_model, try_own_model

TESTS = Path(__file__).parents[1]
SWEEP = """\
version: 1
name: real
parameters: {depth: {values: [1, 2]}, weight_bits: {values: [2, 8]}}
data: {factory: 'real_networks:DATA', task: TASK, val_size: 20}
model: {factory: 'real_networks:MODEL'}
train: {batch_size: 16}
"""


def prepared(data: str, model: str, task: str) -> Spec:
    plugins.allow(Grant(("real_networks",), (str(TESTS / "data"),)))
    text = SWEEP.replace("DATA", data).replace("MODEL", model).replace("TASK", task)
    spec, samples = call_own_data(loads(text.encode(), "real.yaml"), TESTS)
    spec = describe_own_model(spec, samples)
    try_own_model(spec, samples)
    return spec


@pytest.mark.parametrize(
    ("data", "model", "task", "outputs"),
    [
        ("machine_sounds", "autoencoder", "autoencoder", 640),
        ("keywords", "ds_cnn", "classification", 12),
        ("activities", "activity_cnn", "classification", 6),
        ("heartbeats", "heartbeat_cnn", "classification", 5),
        ("houses", "house_mlp", "regression", 1),
        ("genes", "gene_mlp", "multilabel", 14),
        ("gestures", "magic_wand", "binary", 1),
    ],
)
def test_it_is_taken(data, model, task, outputs):
    trials = plan(prepared(data, model, task)).trials
    assert len(trials) == 4
    assert {trial.structure.layers[-1].outputs for trial in trials} == {outputs}
    assert trials[0].sizes.size_bytes < trials[0].sizes.fp32_bytes


def test_a_recurrent_one_is_refused_in_a_line_that_names_it():
    with pytest.raises(SpecError) as caught:
        prepared("activities", "activity_lstm", "classification")
    message = str(caught.value)
    assert "\n" not in message
    assert "recurrent" in message
    assert "nn.Linear" in message
