"""What only a GPU can show: captured steps, memory over many cohorts, and the probe. Skipped where there is none."""

import pytest
import torch

from qdtune.datasets.load import load
from qdtune.spec.groups import Qat
from qdtune.training.tensors import Tensors
from tests.training.test_cohort import a_cohort, a_trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    loaded, _ = load(["synthetic"], tmp_path_factory.mktemp("data"), 128)
    return Tensors.of(loaded, torch.device("cuda"))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"qat": Qat(epochs=2, lr=0.03, momentum=0.9)},
        {"qat": Qat(epochs=2, lr=0.003, optimizer="adam")},
        {"batch_norm": True},
        {"act_bits": 8},
    ],
)
def test_a_captured_step_equals_the_same_on_a_cpu(changes, compile, data, tmp_path):
    trial = a_trial(batch_size=384, **changes)  # one step, as in the test of the compiled one
    loaded, _ = load(["synthetic"], tmp_path, 128)
    there = a_cohort(trial, data, (0, 1), compile=compile)
    here = a_cohort(trial, Tensors.of(loaded, torch.device("cpu")), (0, 1))
    before = {name: p.clone() for name, p in here.params.items()}
    assert there.train(0) == pytest.approx(here.train(0), rel=1e-3)
    for name, tensor in here.params.items():
        moved = (tensor - before[name]).abs().max().item()
        torch.testing.assert_close(there.params[name].cpu(), tensor, rtol=0, atol=0.05 * moved + 1e-6, msg=name)


def test_memory_does_not_grow_from_cohort_to_cohort(data):
    held = []
    for _ in range(20):
        a_cohort(a_trial(), data, (0, 1)).train(0)
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    assert max(held[5:]) <= held[4]


def test_a_trial_is_measured(tmp_path):
    from qdtune.training.gpu_need import measure

    loaded, _ = load(["synthetic"], tmp_path, 128)
    need = measure(a_trial(), loaded, "never")
    assert 0 < need.busy <= 1
    assert 0 < need.memory < need.total
