"""Whether a launch may change how the comparisons in a run folder are decided: not once one has more seeds."""

from __future__ import annotations

from typing import Any

from qdtune.messages import name_option, user_error
from qdtune.spec.choices import FRONT_QUESTION
from qdtune.spec.objectives import front_of
from qdtune.spec.replicate import questions_of
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.store import Store


def check_frozen_looks(spec: Spec, sweep_yaml: bytes, folder: str) -> None:
    """Checks that a sweep tests comparisons as the sweep file in the run folder does, if they have results of a look.

    The first look is no obstacle. After results of a later one, other looks would void the level of the tests. So
    would seeds that another rule has added: results chose who got them.

    Args:
        spec: resolved.
        sweep_yaml: the content of `sweep.yaml` in the folder.
        folder: a path or a URL.

    Raises:
        SpecError: looks, alpha, the margin or questions differ, or the objectives if the front is a question; or
            `sweep.yaml` in the folder is not a sweep file.
        StorageError: the folder cannot be read.
    """
    old, new = _frozen_settings(loads(sweep_yaml, f"{folder}/sweep.yaml")), _frozen_settings(spec)
    keys = dict.fromkeys((*old, *new))
    changed = [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys if old.get(key) != new.get(key)]
    if changed and set(Store(folder).trials()["seed"].to_pylist()) - set(spec.seeds):
        raise user_error(
            f"{folder} holds results with more seeds, which fixes how they are tested ({'; '.join(changed)}): set it "
            f"back, choose another name, or set them aside with {name_option('--fresh')}"
        )


def _frozen_settings(spec: Spec) -> dict[str, Any]:
    if spec.replicate is None or spec.looks is None:
        return {}
    questions = sorted(questions_of(spec))
    frozen = {
        "replicate.until": spec.replicate.until,
        "replicate.looks": list(spec.looks),
        "replicate.alpha": spec.replicate.alpha,
        "replicate.same_within": spec.replicate.same_within,
        "replicate.questions": questions,
    }
    if FRONT_QUESTION in questions:  # the front of the first seeds chooses which neighbours are compared
        frozen["objectives"] = [one.name for one in front_of(spec.metric, spec.costs)]
    return frozen
