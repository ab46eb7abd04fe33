"""What a launch decides before it starts."""

from __future__ import annotations

from pathlib import Path

from qdtune.datasets.load import Samples, cut
from qdtune.datasets.own import load_own
from qdtune.spec.sweep_file import Spec


def with_own_data(spec: Spec, root: Path) -> tuple[Spec, Samples]:
    """The data that the factory of a spec gives, and the spec with what is now known of it.

    Args:
        spec: its `data` has a factory.
        root: the folder of the data sets.

    Raises:
        SpecError: the factory cannot be used, or its data does not fit the rest of the spec.
    """
    data = spec.data
    splits, known = load_own(data.factory or "", root, data.sha256, data.content)
    spec = spec.changed("data", **known)  # raises where there are too few rows
    return spec, cut(data.factory or "", splits, data.val_size)
