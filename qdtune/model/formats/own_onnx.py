"""A user's own model as an ONNX graph, made by torch's exporter from the module that holds the packed file.

The exporter follows one forward pass (TorchScript). It needs the package onnx and nothing else. Torch's newer
exporter needs onnxscript as well. The graph is compared with the module before it is returned.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qdtune import reader
from qdtune.model.formats.format import averaging_of, input_words, is_pixels
from qdtune.model.formats.onnx import ONNX
from qdtune.model.layers.known import kind_of
from qdtune.model.load_into import load_into
from qdtune.model.overhead import FLOAT32
from qdtune.model.rounding import match_rows

OPSET = 18
BATCHES = (1, 3)  # the graph is made with another one, so a size that it took for a constant shows
TRACED_ROWS = 2


class FromRows(nn.Module):
    """A module whose input are rows as the data has them: uint8 pixels, or others that it takes as floats.

    Args:
        module: takes floats.
        program: of the packed file; pixels may be averaged down first.
    """

    def __init__(self, module: nn.Module, program: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.is_pixels, self.averaging = module, is_pixels(program), averaging_of(program)
        if self.averaging is not None:
            sides = zip(self.averaging["image"][1:], self.averaging["size"], strict=True)
            self.down, self.right = (torch.from_numpy(reader.area_weights(n, m)).double() for n, m in sides)

    def forward(self, rows: Tensor) -> Any:
        floats = rows.to(torch.float32)
        if self.averaging is not None:
            total = float(self.down[0].sum() * self.right[0].sum())
            images = rows.to(torch.float64).reshape(-1, *self.averaging["image"])
            sums = self.down @ images @ self.right.T  # whole numbers; see `Graph.average` for the half of one
            floats = ((sums + (total / 2 + 0.25)) / total).floor().flatten(1).to(torch.float32)
        return self.module(floats / 127.5 - 1 if self.is_pixels else floats)


@torch.no_grad()
def own_to_onnx(module: nn.Module, file: str | os.PathLike[str] | bytes, pixels: Any = None) -> bytes:
    """The ONNX file of a user's own model; see `qdtune.to_onnx`.

    Raises:
        ReaderError: the file is damaged or belongs to another module.
        ValueError: the exporter cannot follow the module, or its graph answers otherwise.
        ImportError: the package onnx is missing.
    """
    _import_onnx()  # first: without it torch's exporter fails as if it could not follow the module
    blob = file if isinstance(file, bytes) else Path(file).read_bytes()
    program = reader.load(blob).program
    loaded = load_into(module, blob)
    for layer in loaded.modules():
        if (kind := kind_of(layer)) is not None:
            kind.set_overhead(layer, FLOAT32)  # its numbers are rounded already: a graph need not round them again
    model, width = FromRows(loaded, program).eval(), program["inputs"]
    words = input_words(program)
    name, dtype = words["input"], np.dtype(words["dtype"])
    rows = np.zeros((max(BATCHES), width), dtype) if pixels is None else np.asarray(pixels)
    if rows.dtype != dtype or rows.shape[1:] != (width,) or not len(rows):
        raise ValueError(f"pixels must be {dtype} of shape (rows, {width}), got {rows.dtype} of shape {rows.shape}")
    rows = np.resize(rows, (max(len(rows), max(BATCHES)), width))
    model(torch.from_numpy(rows.copy()))  # a fault of the forward pass itself is not one of the exporter
    content: Any = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this exporter is the older one, and that sizes may be constants
            torch.onnx.export(
                model,
                (torch.from_numpy(rows[:TRACED_ROWS].copy()),),
                content,
                dynamo=False,
                opset_version=OPSET,
                input_names=[name],
                output_names=["logits"],
                dynamic_axes={name: {0: "batch"}, "logits": {0: "batch"}},
                do_constant_folding=False,  # it would make floats of codes
            )
    except Exception as error:  # whatever the exporter raises
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"torch's exporter cannot follow this module: {type(error).__name__}: {said}") from error
    graph = _write_padding(content.getvalue())
    for count in (*BATCHES, len(rows)):
        _compare(graph, model, rows[:count], name)
    return graph


def _write_padding(graph: bytes) -> bytes:
    """The graph with the padding of each convolution in numbers.

    The exporter writes `padding="same"` as SAME_UPPER, which ONNX Runtime does not take together with a dilation.
    """
    onnx = _import_onnx()
    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        settings = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
        if node.op_type == "Conv" and settings.get("auto_pad") == b"SAME_UPPER":  # torch takes it at stride 1 alone
            sizes = zip(settings["dilations"], settings["kernel_shape"], strict=True)
            both = [step * (size - 1) for step, size in sizes]
            settings["pads"] = [*(n // 2 for n in both), *(n - n // 2 for n in both)]
            settings["auto_pad"] = "NOTSET"
            del node.attribute[:]
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in settings.items())
    made: bytes = model.SerializeToString()
    return made


def _import_onnx() -> Any:
    """The optional package onnx.

    Raises:
        ImportError: it is missing; the message has the command that installs it.
    """
    try:
        import onnx
        import onnx.reference
    except ImportError as error:
        assert ONNX.package is not None
        raise ImportError(f"qdtune.to_onnx needs the package onnx: {ONNX.package.install}") from error
    return onnx


def _compare(graph: bytes, model: nn.Module, rows: np.ndarray, name: str) -> None:
    """Raises ValueError unless the graph answers all rows as the module does, by ONNX's own evaluator."""
    onnx, must = _import_onnx(), f"the graph must answer {len(rows)} rows as the module does"
    try:
        answer: Any = onnx.reference.ReferenceEvaluator(onnx.load_from_string(graph)).run(None, {name: rows})
        found = torch.from_numpy(np.array(answer[0]))
    except Exception as error:  # whatever the evaluator raises
        raise ValueError(
            f"{must}, got {type(error).__name__} (a number of rows is a constant in it: in the forward pass use "
            "x.shape[0] in place of len(x), or flatten and unflatten)"
        ) from error
    given = torch.from_numpy(rows.copy())
    if found.shape != model(given).shape or not match_rows(found, model, given).all():
        raise ValueError(f"{must}, got other logits: export it from the module of qdtune.load_into in your own way")
