"""qdtune: sweeps over depth, bits and activation of factorised, quantised networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from qdtune.commands.loaded_run import LoadedRun

__version__ = "0.1.0"


def load(run: str | os.PathLike[str]) -> LoadedRun:
    """What a run folder holds: its rows, curves and Pareto table, and the answers they give; nothing is written.

    Args:
        run: the run folder, a path or a URL.

    Raises:
        RunError: `run` is no path or no run folder, or holds nothing that can be read, or nothing that has finished.
    """
    from qdtune.commands import api  # pyarrow and all: `import qdtune` stays light

    return api.load(run)


def load_into(module: Any, file: str | os.PathLike[str] | bytes) -> Any:
    """A model of your own with the numbers of an exported file: it computes what was tested, with quantised weights.

    Its inputs are floats (batch, inputs) as in training: pixels / 127.5 - 1, or rows of another type as they are. It
    is for inference.

    Args:
        module: the `nn.Module` that your factory builds at the same widths; it is changed in place.
        file: written by `qdtune export`, or its bytes.

    Raises:
        ReaderError: the file is damaged or belongs to another module.
    """
    from qdtune.model.load_into import load_into as load  # torch: `import qdtune` stays light

    return load(module, file)


def to_onnx(module: Any, file: str | os.PathLike[str] | bytes, pixels: Any = None) -> bytes:
    """The ONNX file of a model of your own: `pixels`, uint8 (batch, inputs), in, `logits` out; batch is free.

    Made by the exporter of torch. Quantised weights are int8 or int16 inside.

    Args:
        module, file: as of `load_into`.
        pixels: rows (N, I) as the data has them, with which the graph is checked against the module; None: zeros.

    Raises:
        ReaderError: the file is damaged or belongs to another module.
        ValueError: the exporter cannot follow the module, or its graph answers otherwise.
    """
    from qdtune.model.formats.own_onnx import own_to_onnx  # torch: `import qdtune` stays light

    return own_to_onnx(module, file, pixels)


def run(
    sweep: str | os.PathLike[str] | Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    data_dir: str | os.PathLike[str] | None = None,
    address: str | None = None,
    fresh: bool = False,
    plugins: Sequence[str] = (),
    dashboard: bool = False,
    **keys: Any,
) -> LoadedRun:
    """Trains a sweep, or finishes it, as `qdtune launch` does, and returns its run. Progress is printed.

    The sweep runs in a process of its own. An interrupt ends it cleanly; the same call goes on from there.

    Args:
        sweep: the path of a sweep file, or its content as a dict.
        overrides: dotted key -> value, such as `{"train.qat.epochs": 3}`; they replace keys of the sweep.
        runs_dir: where run folders lie: a path or `s3://BUCKET/PREFIX`.
        data_dir: where data sets lie; None: the variable `QDTUNE_DATA`, else `data`.
        address: of a running Ray cluster; None: the variable `RAY_ADDRESS`, else a local one of its own.
        fresh: start over, and set aside what the run folder holds.
        plugins: modules of your own that the sweep may import, found beside the sweep file or in the working folder.
        dashboard: start Ray with its dashboard.
        keys: top-level keys of the sweep, such as `seeds=[0, 1]`; each replaces the whole value of its key.

    Raises:
        SpecError: every wrong argument, or every mistake in the sweep, each with its key; nothing was started.
        DataError, NoClusterError, LocationError, RunInUse: what you have to mend; nothing was started.
        StorageError: the run folder cannot be written.
        RunError: the sweep ended early, or nothing in it has finished.
        KeyboardInterrupt: you stopped it; what was finished is kept.
    """
    from qdtune.commands import api

    return api.run(
        sweep,
        keys,
        overrides=overrides,
        runs_dir=runs_dir,
        data_dir=data_dir,
        address=address,
        fresh=fresh,
        plugins=plugins,
        dashboard=dashboard,
    )
