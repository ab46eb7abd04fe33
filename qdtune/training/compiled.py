"""A training step with nothing left of Python in it: machine code on a CPU, a captured graph on a GPU.

On a CPU the whole step is compiled ahead of time (AOTInductor) into a shared library, which is kept in the user's
cache folder under a hash of all that decides it. A worker that meets it again, in this run or another, loads it in a
millisecond and without importing the compiler; two workers that want a new one compile it once. On a GPU the step is
captured as a CUDA graph, so that a step is one launch.
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from qdtune.machine import cache_dir
from qdtune.model import chain, factored, networks, quantize, quantizer
from qdtune.model.layers import kind, known, matrix
from qdtune.training import step
from qdtune.training.step import Shape

Call = Callable[[Tensor, Tensor], None]  # of a batch (K, B) and a learning rate ()
DIGEST_BYTES = 32  # of SHA-256, behind a library's own bytes, where the loader does not look
WARM_STEPS = 3  # before a capture, as CUDA graphs ask for


def gathered(data: tuple[Tensor, ...], batch: Tensor) -> Iterator[Tensor]:
    """The rows of each tensor that a batch (K, B) asks for, (K, B, ...).

    Whole rows are copied, and before the compiled step: it would look up each pixel by itself, and again in every
    loop that reads it (quantised inputs have several: a step took twice as long).
    """
    rows = batch.flatten()
    return (tensor.index_select(0, rows).view(*batch.shape, *tensor.shape[1:]) for tensor in data)


def eager(function: Callable[..., None], state: tuple[Any, ...], data: tuple[Tensor, ...]) -> Call:
    """The step as Python runs it, operation by operation."""
    return lambda batch, rate: function(*state, *gathered(data, batch), rate)


def compiled(
    shape: Shape,
    function: Callable[..., None],
    state: tuple[Any, ...],
    data: tuple[Tensor, ...],
    batch: Tensor,
    rate: Tensor,
) -> Call:
    """The step as machine code of this CPU, from the cache or made now (some 15 s).

    Args:
        shape: what `function` was made for.
        function: of `state`, rows of `data` and a rate; as `step.make_step` makes it.
        state: nested dicts of tensors, which it changes in place, always the same ones.
        data: tensors, of whose rows (N, ...) each call reads a batch.
        batch, rate: examples, for their shapes.

    Raises:
        CompileError: the compiler failed.
    """
    flat, structure = tree.tree_flatten((*state, *gathered(data, batch), rate))

    def flattened(*tensors: Tensor) -> tuple[()]:
        function(*tree.tree_unflatten(list(tensors), structure))
        return ()

    library = _library(_key(shape, structure, flat), lambda: _build(flattened, flat))

    def call(batch: Tensor, rate: Tensor) -> None:
        flat[-1 - len(data) :] = *gathered(data, batch), rate
        library.run(flat)

    return call


class CompileError(RuntimeError):
    """The compiler failed."""


@lru_cache(maxsize=1)
def _machine() -> str:
    """What machine code is good for: this torch on a CPU with these instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next(line for line in lines if line.startswith(("flags", "Features")))  # x86, ARM
    except (OSError, StopIteration):
        features = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__} {features}"


def _key(shape: Shape, structure: tree.TreeSpec, tensors: list[Tensor]) -> str:
    """A hash of all that decides the machine code: shapes, threads, the machine, the sources that make it."""
    sources = [inspect.getsource(module) for module in step_sources()]
    shapes = [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]
    described = [shape, str(structure), shapes, torch.get_num_threads(), _machine(), sources]
    return hashlib.sha256(repr(described).encode()).hexdigest()[:24]


def step_sources() -> list[ModuleType]:
    """The modules that decide what a step computes; a layer kind is among them once it is in `known.LAYERS`."""
    ours = [step, networks, chain, factored, quantize, quantizer, kind, matrix, known, sys.modules[__name__]]
    return ours + [sys.modules[type(one).__module__] for one in known.LAYERS]


def _library(key: str, build: Callable[[], bytes]) -> Any:
    """The compiled step of this name, with `run(tensors)`; from the cache, where there is one that can be used."""
    try:
        return _cached(cache_dir() / "steps", key, build)
    except OSError:  # no cache: read-only, full, or without locks
        with tempfile.TemporaryDirectory() as folder:
            return _cached(Path(folder), key, build)


def _cached(folder: Path, key: str, build: Callable[[], bytes]) -> Any:
    """The compiled step of this name; built where there is none, or one that is damaged or cannot be loaded here."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{key}.so"
    with _locked(folder / f".{key}.lock"):  # the second to come finds what the first has built
        if _is_whole(path):
            with suppress(RuntimeError):
                return _load(path)
        code = build()
        part = folder / f".{key}.part"
        part.write_bytes(code + hashlib.sha256(code).digest())
        part.replace(path)
        return _load(path)


def _is_whole(path: Path) -> bool:
    """Whether a library is there and as it was written: loading one that is cut off would kill the process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _load(path: Path) -> Any:
    # Not aoti_load_package: it unpacks into a temporary folder, which a killed worker leaves behind.
    return torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that dies with its process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(function: Callable[..., Any], tensors: list[Tensor]) -> bytes:
    """Compiles a function of tensors into a shared library."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))  # read at the first import
    # Imported here, for they take seconds and a step from the cache does without.
    from torch._inductor import aoti_compile_and_package
    from torch.fx.experimental.proxy_tensor import make_fx

    try:
        # Traced first by make_fx, which sees through vmap and grad; torch.export alone does not.
        traced = make_fx(function, tracing_mode="fake")(*tensors)
        program = torch.export.export(traced, tuple(tensors), strict=False)
        with tempfile.TemporaryDirectory() as folder:
            package = aoti_compile_and_package(program, package_path=f"{folder}/step.pt2")
            with zipfile.ZipFile(package) as archive:
                (name,) = [name for name in archive.namelist() if name.endswith(".so")]
                return archive.read(name)
    except Exception as error:  # whatever the compiler raises
        told = " ".join(str(error).split())[:300]
        raise CompileError(f"a training step cannot be compiled: {told} (run.compile: never does without)") from error


def captured(
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
        function, state, data, batch, rate: as of `compiled`, on a CUDA device.
        compile: whether its kernels are fused by torch.compile first.
    """
    if compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "inductor"))
        # Every shape is a graph of one and the same function, which dynamo would give up on after eight.
        torch._dynamo.config.recompile_limit = 256
        function = torch.compile(function, dynamic=False, fullgraph=True)
    batch, rate = batch.clone(), rate.clone()  # where a replay finds them
    before = tree.tree_map(torch.clone, state)
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_STEPS):
            function(*state, *gathered(data, batch), rate)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function(*state, *gathered(data, batch), rate)
    tree.tree_map(lambda tensor, was: tensor.copy_(was), state, before)

    def call(new_batch: Tensor, new_rate: Tensor) -> None:
        batch.copy_(new_batch)
        rate.copy_(new_rate)
        graph.replay()

    return call


@lru_cache(maxsize=1)
def _side_stream() -> torch.cuda.Stream:
    """One for all captures: cuBLAS keeps a workspace for every stream it has seen."""
    return torch.cuda.Stream()
