"""Compiles a training step into a shared library, in a scratch folder in which the compiler can work."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdtune.machine import cache_dir


class CompileError(RuntimeError):
    """The compiler failed, or what it made cannot be loaded."""


def build_library(function: Callable[..., Any], tensors: list[Tensor]) -> bytes:
    """Compiles a function of tensors into a shared library.

    Raises:
        CompileError: the compiler failed, in its own scratch folder and in a new temporary one.
    """
    # Imported here because they take seconds, and a step from the cache does not need them.
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache
    from torch.fx.experimental.proxy_tensor import make_fx

    def package() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            packed = aoti_compile_and_package(program, package_path=f"{folder}/step.pt2")
            with zipfile.ZipFile(packed) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(".so")]
                return archive.read(name)

    try:
        # make_fx traces first, because it sees through vmap and grad; torch.export alone does not.
        traced = make_fx(function, tracing_mode="fake")(*tensors)
        program = torch.export.export(traced, tuple(tensors), strict=False)
        if is_scratch(set_scratch()):
            with suppress(Exception):  # whatever the compiler raises; its scratch may be full
                return package()
        with fresh_cache():
            return package()
    except Exception as error:  # whatever the compiler raises
        raise CompileError(f"a training step cannot be compiled: {shorten_error(error)}") from error


def set_scratch() -> Path:
    """The folder in which the compiler works: the user's TORCHINDUCTOR_CACHE_DIR, else one in the cache folder."""
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor")))


def is_scratch(folder: Path) -> bool:
    """Whether the compiler can work in a folder: it writes files, and runs some of them to know the processor."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        return False


def shorten_error(error: Exception) -> str:
    """The message of an error in one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
