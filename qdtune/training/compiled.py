"""A training step that runs without Python: machine code on a CPU, a captured graph on a GPU.

On a CPU, the whole step is compiled ahead of time (AOTInductor) into a shared library. The user's cache folder keeps
it under a hash of everything that decides it. A later worker, in any run, loads it in a millisecond and without the
compiler. If two workers need a new library at the same time, one of them compiles it. On a GPU, the step is captured
as a CUDA graph, so a step is one launch.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from qdtune.machine import cache_dir
from qdtune.model import chain, dropout, factored, networks, overhead, quantize, quantizer
from qdtune.model.layers import kind, known, matrix
from qdtune.training import losses, step, step_compiler
from qdtune.training.fast_forms import with_fast_forms
from qdtune.training.step import StepShape
from qdtune.training.step_compiler import CompileError, build_library, set_scratch, shorten_error
from qdtune.training.tape import PLAIN_CALLS, Taped

Call = Callable[[Tensor, Tensor], None]  # of a batch (K, B) and a learning rate ()
DIGEST_BYTES = 32  # of the SHA-256 at the end of a library file, which the loader ignores
PAYS_AFTER = 4  # times the steps that a recording takes
WARM_STEPS = 3  # before a capture, because CUDA graphs require them


def gather_rows(data: tuple[Tensor, ...], batch: Tensor) -> Iterator[Tensor]:
    """The rows (K, B, ...) of each tensor at the indices of a batch (K, B).

    Whole rows are copied before the compiled step. The compiled step would look up every pixel by itself, and again
    in every loop that reads it: with quantised inputs, which several loops read, a step took twice as long.
    """
    rows = batch.flatten()
    return (tensor.index_select(0, rows).view(*batch.shape, *tensor.shape[1:]) for tensor in data)


def make_eager_step(
    function: Callable[..., None], state: tuple[Any, ...], data: tuple[Tensor, ...], steps: int = 0
) -> Call:
    """The step as single operations in their fast forms: as Python runs them at first, then from a tape, alike.

    Args:
        function, state, data: as in `compile_step`.
        steps: about as many will be made; a recording that is sure to pay is made after the first.
    """
    flat, structure = tree.tree_flatten(state)

    def run(*tensors: Tensor) -> None:
        function(*tree.tree_unflatten(tensors[: len(flat)], structure), *tensors[len(flat) :])

    plain_calls = 1 if steps > PAYS_AFTER * PLAIN_CALLS else PLAIN_CALLS
    taped = Taped(with_fast_forms(run), plain_calls, lasting=len(flat))
    return lambda batch, rate: taped(*flat, *gather_rows(data, batch), rate)


def compile_step(
    shape: StepShape,
    function: Callable[..., None],
    state: tuple[Any, ...],
    data: tuple[Tensor, ...],
    batch: Tensor,
    rate: Tensor,
) -> Call:
    """The step as machine code for this CPU, from the cache or compiled now (about 15 s).

    If it can be neither, the step is the eager one, and `why_eager` says why.

    Args:
        shape: of the step.
        function: takes `state`, rows of `data` and a rate; made by `step.make_step`.
        state: nested dicts of tensors, which each call changes in place.
        data: tensors (N, ...); each call reads the rows of its batch.
        batch, rate: examples with the shapes of all later ones.
    """
    flat, structure = tree.tree_flatten((*state, *gather_rows(data, batch), rate))

    def run_flat(*tensors: Tensor) -> tuple[()]:
        function(*tree.tree_unflatten(list(tensors), structure))
        return ()

    try:
        library = _load_or_build(_hash_step(shape, structure, flat), lambda: build_library(run_flat, flat))
    except CompileError as error:
        _eager_reasons[:] = [str(error)]
        return make_eager_step(function, state, data)
    tensors = tree.tree_leaves(state)
    return lambda batch, rate: library.run([*tensors, *gather_rows(data, batch), rate])


_eager_reasons: list[str] = []  # the last one, or none


def why_eager() -> str | None:
    """Why a step that should be compiled runs eagerly in this process, in one line; None if none does."""
    return next(iter(_eager_reasons), None)


@lru_cache(maxsize=1)
def describe_machine() -> str:
    """The version of torch and the instruction sets of this CPU, on which machine code depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))  # x86, ARM
    except (OSError, StopIteration):
        features = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__} {features}"


def _hash_step(shape: StepShape, structure: tree.TreeSpec, tensors: list[Tensor]) -> str:
    """A hash of everything that decides the machine code: shapes, threads, the machine, the sources of the step."""
    sources = [inspect.getsource(module) for module in step_sources()]
    shapes = [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]
    described = [shape, str(structure), shapes, torch.get_num_threads(), describe_machine(), sources]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:24]


def step_sources() -> list[ModuleType]:
    """The modules that decide what a step computes, with those of all layer kinds in `known.LAYERS`."""
    ours = [
        step,
        losses,
        networks,
        chain,
        dropout,
        factored,
        overhead,
        quantize,
        quantizer,
        kind,
        matrix,
        known,
        step_compiler,
        sys.modules[__name__],
    ]
    return ours + [sys.modules[type(one).__module__] for one in known.LAYERS]


def _load_or_build(key: str, build: Callable[[], bytes]) -> Any:
    """The compiled step of this key, with `run(tensors)`; kept in the cache folder if that can be written.

    Raises:
        CompileError: it can be neither built nor loaded.
    """
    try:
        return _load_or_build_in(cache_dir() / "steps", key, build)
    except OSError:  # the cache folder is read-only, full, or without locks
        return load_code(build())


def _load_or_build_in(folder: Path, key: str, build: Callable[[], bytes]) -> Any:
    """The compiled step of this key in a folder; built if it is missing, is damaged or cannot be loaded."""
    path = folder / f"{key}.so"
    if (library := _load_whole(path)) is not None:
        return library
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _hold_lock(folder / f".{key}.lock"):  # the second process loads what the first one built
        if (library := _load_whole(path)) is not None:
            return library
        code = build()
        part = folder / f".{key}.part"
        try:
            part.write_bytes(code + hashlib.sha256(code).digest())
            part.replace(path)
        except OSError:  # a full disk must not cost the next 15 s, too
            part.unlink(missing_ok=True)
            return load_code(code)
        return _load(path)


def _load_whole(path: Path) -> Any:
    """The compiled step in a file; None if the file is missing or damaged, or cannot be loaded here."""
    try:
        return _load(path) if _is_whole(path) else None
    except RuntimeError:
        return None


def _is_whole(path: Path) -> bool:
    """Whether a library exists and fits its checksum. Loading a truncated library would kill the process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _load(path: Path) -> Any:
    """The compiled step in a file; on a file system without execution (noexec) it is loaded through memory."""
    try:
        return _open_library(str(path))
    except RuntimeError:
        return load_code(path.read_bytes())


def load_code(code: bytes) -> Any:
    """The compiled step in these bytes, which need no file.

    Raises:
        CompileError: this machine cannot load it.
    """
    number = os.memfd_create("qdtune-step")  # stays open, because the loader knows a library by its name
    try:
        with open(number, "wb", closefd=False) as memory:
            memory.write(code)
        return _open_library(f"/proc/self/fd/{number}")
    except (OSError, RuntimeError) as error:
        os.close(number)
        raise CompileError(f"a compiled training step cannot be loaded: {shorten_error(error)}") from error


def _open_library(path: str) -> Any:
    # aoti_load_package is not used, because it unpacks into a temporary folder, which a killed worker leaves behind.
    return torch._C._aoti.AOTIModelContainerRunnerCpu(path, 1)


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock on a file; the lock ends with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def capture_step(
    function: Callable[..., None],
    state: tuple[Any, ...],
    data: tuple[Tensor, ...],
    batch: Tensor,
    rate: Tensor,
    *,
    compile: bool,
) -> Call:
    """The step as one launch of a CUDA graph.

    Args:
        function, state, data, batch, rate: as in `compile_step`, on a CUDA device.
        compile: whether torch.compile fuses the kernels first; if it fails, `why_eager` says why they stay apart.
    """
    plain = function
    if compile:
        set_scratch()
        # Each shape is another graph of the same function. By default, dynamo gives up after eight graphs.
        torch._dynamo.config.recompile_limit = 256
        function = torch.compile(function, dynamic=False, fullgraph=True)
    batch, rate = batch.clone(), rate.clone()  # a replay reads these tensors
    before = tree.tree_map(torch.clone, state)
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_STEPS):
            try:
                function(*state, *gather_rows(data, batch), rate)
            except Exception as error:  # whatever the compiler raises, at the first call
                if function is plain or isinstance(error, torch.OutOfMemoryError):
                    raise
                _eager_reasons[:] = [f"a training step cannot be compiled: {shorten_error(error)}"]
                function = plain
                function(*state, *gather_rows(data, batch), rate)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*state, *gather_rows(data, batch), rate)
    tree.tree_map(lambda tensor, was: tensor.copy_(was), state, before)

    def call(new_batch: Tensor, new_rate: Tensor) -> None:
        batch.copy_(new_batch)
        rate.copy_(new_rate)
        graph.replay()

    return call


@lru_cache(maxsize=1)
def _side_stream() -> torch.cuda.Stream:
    """One stream for all captures, because cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream()
