"""Each tracker of `spec.loggers` as one of Ray's logger callbacks.

TensorBoard's is Ray's own. Those of MLflow and W&B speak to the library directly. Ray's callback for MLflow (2.60)
sends two requests per number, begins a new run for every start and drops the state, which is text. Ray's callback for
W&B starts two processes per trial: 4 s of a core each, where `wandb.init` takes 0.15 s.
"""

from __future__ import annotations

import logging
import netrc
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ray.tune.logger import LoggerCallback, TBXLoggerCallback
from ray.tune.result import TRAINING_ITERATION

from qdtune.spec.loggers import MLFLOW, TENSORBOARD, WANDB, Logger

STEP = TRAINING_ITERATION  # where Ray's callbacks look for the step of a result
PATIENCE_S = 30.0  # how long W&B may take to begin a run, or to end one


@dataclass(frozen=True)
class LoggedSweep:
    """What the callbacks know of a sweep.

    Attributes:
        name: of the sweep.
        key: of its run folder: a later launch finds its own runs by it, and nobody else's.
        folder: the run folder, a path.
    """

    name: str
    key: str
    folder: str


@dataclass(frozen=True)
class LoggedTrial:
    """A configuration as Ray's callbacks see a trial; equal ones are the same run.

    Attributes:
        trial_id: of the configuration.
        name: its label.
        config: its parameters.
        local_path: a folder for its files.
        state: how it ended; empty until then.
    """

    trial_id: str
    name: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)
    local_path: str = field(compare=False)
    state: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.name

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """What TensorBoard lists as hyperparameters."""
        return self.config | ({"state": self.state} if self.state else {})

    def init_local_path(self) -> None:
        """Makes the folder."""
        os.makedirs(self.local_path, exist_ok=True)


class MlflowRuns(LoggerCallback):
    """One MLflow run per configuration; a run of an earlier attempt is deleted when the next one begins."""

    logger: ClassVar[Logger] = MLFLOW

    def __init__(self, sweep: LoggedSweep) -> None:
        self.sweep = sweep
        self.run_ids: dict[str, str] = {}  # by trial_id

    def setup(self, *args: Any, **info: Any) -> None:
        """Finds the experiment, or makes it, and in it the runs of earlier launches on the same run folder."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.ERROR)  # it tells how it makes its tables
        local = f"sqlite:///{os.path.join(self.sweep.folder, str(MLFLOW.file))}"
        self.client = MlflowClient(tracking_uri=os.environ.get(str(MLFLOW.server_variable)) or local)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.sweep.name
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)
        token, ours = None, f"tags.`qdtune.run` = '{self.sweep.key}'"
        while token != "":
            page = self.client.search_runs([self.experiment], ours, page_token=token)
            self.run_ids |= {run.data.tags["qdtune.trial_id"]: run.info.run_id for run in page}
            token = page.token or ""

    def log_trial_start(self, trial: Any) -> None:
        from mlflow.entities import Param

        if trial.trial_id in self.run_ids:
            self.client.delete_run(self.run_ids.pop(trial.trial_id))
        tags = {"qdtune.run": self.sweep.key, "qdtune.trial_id": trial.trial_id}
        run = self.client.create_run(self.experiment, run_name=trial.name, tags=tags)
        self.run_ids[trial.trial_id] = run.info.run_id
        params = [Param(name, str(value)) for name, value in trial.config.items()]
        self.client.log_batch(run.info.run_id, params=params)

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = [Metric(name, float(x), now, result[STEP]) for name, x in result.items() if name != STEP]
        self.client.log_batch(self.run_ids[trial.trial_id], metrics=numbers)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        run_id = self.run_ids[trial.trial_id]
        self.client.set_tag(run_id, "state", trial.state)
        self.client.set_terminated(run_id, "FAILED" if failed else "FINISHED")


class WandbRuns(LoggerCallback):
    """One W&B run per configuration; its id is that of any earlier attempt, whose data it replaces.

    Whether it is online, and where offline runs lie, is up to W&B's own environment (`WANDB_MODE`, `WANDB_DIR` ...).
    """

    logger: ClassVar[Logger] = WANDB

    def __init__(self, sweep: LoggedSweep) -> None:
        self.sweep = sweep
        self.runs: dict[str, Any] = {}  # by trial_id

    def setup(self, *args: Any, **info: Any) -> None:
        """Imports W&B.

        Raises:
            RuntimeError: nobody is logged in; W&B would ask at the terminal, where a sweep shows its progress.
        """
        if not is_logged_in():
            raise RuntimeError("no API key (run `wandb login`, or set WANDB_MODE=offline)")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # before a run begins, too
        import wandb

        self.wandb: Any = wandb
        self.settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=PATIENCE_S,
            finish_timeout=PATIENCE_S,
            disable_git=True,  # what follows describes this machine, not the sweep
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )

    def log_trial_start(self, trial: Any) -> None:
        run_id = f"{self.sweep.key}-{trial.trial_id}"
        for earlier in Path(os.environ.get("WANDB_DIR") or ".", "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(earlier)  # online a run of the same id takes the other's place
        self.runs[trial.trial_id] = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT") or self.sweep.name,
            id=run_id,
            name=trial.name,
            config=trial.config,
            reinit="create_new",  # several at a time
            settings=self.settings,
        )

    def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
        numbers = {name: value for name, value in result.items() if name != STEP}
        self.runs[trial.trial_id].log(numbers, step=result[STEP])

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        run = self.runs.pop(trial.trial_id)
        run.summary["state"] = trial.state
        run.finish(exit_code=int(failed))


def is_logged_in() -> bool:
    """Whether W&B can begin a run without asking for a key."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return True
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    with suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    return False


class TensorBoardRuns(TBXLoggerCallback):
    """One folder of events per configuration; those of an earlier attempt are deleted when the next one begins."""

    logger: ClassVar[Logger] = TENSORBOARD

    def __init__(self, sweep: LoggedSweep) -> None:
        super().__init__()

    def log_trial_start(self, trial: Any) -> None:
        for earlier in Path(trial.local_path).glob("events.out.tfevents.*"):
            earlier.unlink()
        super().log_trial_start(trial)


CALLBACKS = (MlflowRuns, WandbRuns, TensorBoardRuns)


def events_folder(sweep: LoggedSweep, name: str, trial_id: str) -> str:
    """Where TensorBoard's events of a configuration lie; TensorBoard shows the last part as the run's name."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    # A file system allows 255 characters, and `blocks` have no limit.
    return os.path.join(sweep.folder, str(TENSORBOARD.file), f"{plain[:200]}-{trial_id}")
