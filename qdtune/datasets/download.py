"""Downloads of data sets, by torchvision, which is imported only when one is needed."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdtune.datasets.dataset import Dataset
from qdtune.datasets.files import check_file, damage_error, find_md5_fault, read_content

TIMEOUT_S = 20.0


def download(dataset: Dataset, root: Path) -> None:
    """Puts the missing files of a data set under `root`, each whole or not at all; nothing there is replaced.

    Archives that lie where torchvision would put them are unpacked instead of downloaded.

    Raises:
        DataError: a file or archive that is there is damaged.
        OSError, RuntimeError, HTTPException: no network, no such host, no space, a download cut short.
    """
    from torchvision import datasets

    source: Any = getattr(datasets, dataset.source)
    for file in dataset.files:
        if (root / file.path).exists():
            check_file(dataset, file, root)
    # `root` itself, or the folder that it will be made in: a failed download makes none.
    home = next((folder for folder in (root, *root.absolute().parents) if folder.exists()), root)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=home) as folder:
        scratch = Path(folder)
        for archive in dataset.list_archives(source):
            if (root / archive.path).exists():
                if fault := find_md5_fault(read_content(root / archive.path), archive.md5):
                    raise damage_error(root / archive.path, fault)
                (scratch / archive.path).parent.mkdir(parents=True, exist_ok=True)
                (scratch / archive.path).symlink_to((root / archive.path).resolve())
        with _quiet_network():
            source(scratch, download=True)
        for file in dataset.files:
            if not (root / file.path).exists():
                (root / file.path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / file.path, root / file.path)


@contextlib.contextmanager
def _quiet_network() -> Iterator[None]:
    """No progress bars, and no connection that hangs longer than the timeout."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_S)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)
