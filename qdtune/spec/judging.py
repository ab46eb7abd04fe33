"""What a sweep file says about its task and its metric, before anything else of it is checked.

A run folder names its columns by it, and the checks of some keys depend on it.
"""

from __future__ import annotations

from typing import Any

from qdtune.messages import SpecError
from qdtune.spec.tasks import CLASSIFICATION, METRIC_NAMES, TASK_NAMES, Metric, Task, metric_of, task_of
from qdtune.spec.yaml_reader import parse_yaml


def find_metric(content: Any) -> tuple[Task, Metric]:
    """The task and the metric that the content of a sweep file names; what it names wrongly has its default.

    Args:
        content: as YAML has it, valid or not.
    """
    data = content.get("data") if isinstance(content, dict) else None
    named = data if isinstance(data, dict) else {}
    task = task_of(named["task"]) if named.get("task") in TASK_NAMES else CLASSIFICATION
    metric = metric_of(named["metric"]) if named.get("metric") in METRIC_NAMES else task.metrics[0]
    return task, metric


def read_metric(sweep_yaml: bytes, source: str) -> tuple[Task, Metric]:
    """As `find_metric`, of the bytes of a sweep file.

    Args:
        source: its name in messages.

    Raises:
        SpecError: it is not YAML.
    """
    document = parse_yaml(sweep_yaml, source)
    if document.value is None and document.problems:
        raise SpecError(document.problems)
    return find_metric(document.value)
