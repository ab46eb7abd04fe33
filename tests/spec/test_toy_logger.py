"""A tracker added through its entry and its callback: the rest of the package follows without an edit."""

import pytest

from tests.toy import copy_package, evaluate

ENTRY = 'TOY = Logger("toy", ("json",), "toy-tracker", "a line per call", file="toy.txt")\n'
CALLBACK = """class ToyRuns(LoggerCallback):
    logger: ClassVar[Logger] = TOY

    def __init__(self, sweep: LoggedSweep) -> None:
        self.lines: list[str] = []
        self.path = os.path.join(sweep.folder, "toy.txt")

    def log_trial_start(self, trial: Any) -> None:
        self.lines.append(f"{trial} {trial.config['depth']}")

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        self.lines.append(f"{result[STEP]} {result.get('val_accuracy')}")

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        Path(self.path).write_text("\\n".join([*self.lines, trial.state]))


CALLBACKS = (MlflowRuns, WandbRuns, TensorBoardRuns, ToyRuns)
"""
SCRIPT = """
import json
from qdtune.messages import SpecError
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.store.store import Store
from qdtune.sweep.loggers import sweep_loggers
from qdtune.sweep.preflight import check_loggers

TEXT = "version: 1\\nname: a\\nparameters: {depth: {value: 2}}\\ndata: {dataset: digits, val_size: 100}\\n"

def read(name):
    return loads(f"{TEXT}run: {{loggers: {name}}}\\n".encode(), "a.yaml")

def refusal(call, *arguments):
    try:
        call(*arguments)
    except SpecError as error:
        return str(error)

spec = read("toy")
(trial,) = plan(spec.resolve("digits")).trials
history = [{"seed": 0, "phase": "qat", "epoch": 1, "train_loss": 1.0, "val_accuracy": 0.5}]
with sweep_loggers(spec, Store("run"), [], None) as loggers:
    loggers.start(trial)
    loggers.finish(trial, [{"test_accuracy": 0.5}], history, "ok")
check_loggers(("toy",), "runs")
print(json.dumps({
    "canonical": [line for line in spec.to_yaml().splitlines() if "toy" in line],
    "written": open("run/toy.txt").read().splitlines(),
    "unknown": refusal(read, "toi"),
    "store": refusal(check_loggers, ("toy",), "s3://bucket"),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    last = "LOGGERS = (MLFLOW, WANDB, TENSORBOARD)\n"
    tree = copy_package(
        tmp_path_factory.mktemp("tree"),
        edits={
            "spec/loggers.py": {last: f"{ENTRY}LOGGERS = (MLFLOW, WANDB, TENSORBOARD, TOY)\n"},
            "sweep/logger_callbacks.py": {
                "import MLFLOW, TENSORBOARD, WANDB, Logger": "import MLFLOW, TENSORBOARD, TOY, WANDB, Logger",
                "CALLBACKS = (MlflowRuns, WandbRuns, TensorBoardRuns)\n": CALLBACK,
            },
        },
    )
    return evaluate(tree, SCRIPT)


def test_a_sweep_file_may_name_it(found):
    assert found["canonical"] == ["  loggers: [toy]"]
    assert found["unknown"].endswith("did you mean 'toy'? (mlflow, wandb, tensorboard, toy)")


def test_it_is_told_what_a_sweep_learns(found):
    assert found["written"] == ["d2 w32 identity 2", "6 0.5", "6 None", "ok"]


def test_messages_name_it(found):
    what = "error: run.loggers: toy writes to a run folder on disk, got s3://bucket"
    assert found["store"] == f"{what} (choose another --runs-dir, or leave it out)"
