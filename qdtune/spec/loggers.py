"""The trackers that a sweep can report to, each declared once.

What `run.loggers` may name, what has to be installed, where a tracker writes and the messages about it come from
`LOGGERS`. To add one, add an entry here and the callback that talks to it in `sweep/logger_callbacks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Logger:
    """A tracker of experiments.

    Attributes:
        name: in sweep files.
        modules: what Python must be able to import.
        package: what to install if it cannot.
        text: one sentence for the docs.
        file: what it writes in the run folder, a file or a folder; None if its environment alone decides.
        local_modules: what must be importable, too, if it writes there.
        server_variable: the environment variable that names another place; None if there is none.
    """

    name: str
    modules: tuple[str, ...]
    package: str
    text: str
    file: str | None = None
    local_modules: tuple[str, ...] = ()
    server_variable: str | None = None


MLFLOW = Logger(
    "mlflow",
    ("mlflow",),
    "mlflow",
    "one MLflow run per configuration, in an experiment named after the sweep",
    file="mlflow.db",
    local_modules=("sqlalchemy", "alembic"),  # mlflow-skinny, which is enough for a server, brings neither
    server_variable="MLFLOW_TRACKING_URI",
)
WANDB = Logger(
    "wandb",
    ("wandb",),
    "wandb",
    "one Weights & Biases run per configuration, in a project named after the sweep",
)
TENSORBOARD = Logger(
    "tensorboard",
    ("tensorboardX",),
    "tensorboardX",
    "one folder of TensorBoard events per configuration",
    file="tensorboard",
)
LOGGERS = (MLFLOW, WANDB, TENSORBOARD)
LOGGER_NAMES = tuple(logger.name for logger in LOGGERS)


def find_loggers(names: tuple[str, ...] | None) -> list[Logger]:
    """The loggers of these names, in the order of `LOGGERS`; none for None."""
    return [logger for logger in LOGGERS if logger.name in (names or ())]
