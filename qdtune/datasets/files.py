"""Files of data sets: their bytes, and whether these are the published ones."""

from __future__ import annotations

import hashlib
from pathlib import Path

from qdtune.datasets.dataset import DataError, DataFile, Dataset
from qdtune.messages import name_option


def check_file(dataset: Dataset, file: DataFile, root: Path) -> bytes:
    """The content of one file of a data set, checked.

    Raises:
        DataError: it cannot be read, or is not what was published.
    """
    content = read_content(root / file.path)
    if fault := dataset.find_fault(dataset, file, content):
        raise damage_error(root / file.path, fault)
    return content


def read_content(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise damage_error(path, f"it cannot be read ({error.strerror})") from error


def find_md5_fault(content: bytes, md5: str) -> str | None:
    """What is wrong with the md5 of a file, if anything."""
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return None if found == md5 else f"its md5 must be {md5}, found {found}"


def damage_error(path: Path, fault: str) -> DataError:
    """The error for a damaged file, with the way out."""
    return DataError(
        f"{path} is damaged: {fault}; delete it to have it fetched anew, or point {name_option('--data-dir')} or "
        "QDTUNE_DATA elsewhere"
    )
