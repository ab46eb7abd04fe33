"""Opens the folder at a location: `open_folder(path or URL)`."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from qdtune.store.disk_folder import DiskFolder
from qdtune.store.folder import Folder, check_location, is_url, location_errors
from qdtune.store.object_folder import ObjectFolder


def open_folder(where: str | os.PathLike[str]) -> Folder:
    """The folder at a path, or under a URL such as s3://bucket/prefix. The first write creates it.

    Credentials and the endpoint of an object store come from the environment (AWS_ACCESS_KEY_ID,
    AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL ...), because URLs end up in logs.

    Raises:
        LocationError: `check_location` refuses it, or it cannot be opened.
    """
    check_location(where)
    if not is_url(where):
        return DiskFolder(Path(where))
    url, shown = urlsplit(os.fspath(where)), os.fspath(where)
    with location_errors(shown):
        if url.scheme == "s3":
            region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            filesystem = fs.S3FileSystem(
                region=region, endpoint_override=endpoint, connect_timeout=5, request_timeout=20
            )
        else:
            filesystem, _ = fs.FileSystem.from_uri(shown)
    return ObjectFolder(filesystem, f"{url.netloc}{url.path}".rstrip("/"), shown.rstrip("/"))
