"""Do exported files answer as `reader.py` does? Networks of every kind, trained briefly, over the test set of MNIST.

    python tests/benchmarks/formats.py --data-dir DIR [--kinds mlp window]

Each network is exported as packed, as C and as ONNX. The C is compiled by the compiler of this machine. The ONNX runs
in ONNX Runtime on one thread. With `act_bits` no logit may differ, and the command fails if one does. Without, sums
of floats are rounded in another order: the difference is in units of the last place of the largest logit of a row.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import arguments, machine, publish, table

from qdtune.datasets.load import load
from qdtune.model.c.host import Program, answer, find_compiler
from qdtune.model.c.program import to_c
from qdtune.model.formats.onnx import to_onnx
from qdtune.model.formats.packed import one_seed
from qdtune.reader import load as read
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads
from qdtune.training.cohort import Tensors
from qdtune.training.train import train_configuration
from qdtune.training.warmups import NoWarmups

TRAINED_ON = 6000  # images
PART = 500  # rows at once: a convolution in ONNX Runtime or NumPy needs memory for each
SWEEP = """
version: 1
name: formats
parameters: {{{axes}}}
seeds: [0]
data: {{dataset: mnist, val_size: 1000}}
model: {{{model}}}
train: {{batch_size: 100, warmup: {{epochs: 1, optimizer: adam, lr: 0.005}}, qat: {{epochs: 2, lr: 0.002}}}}
"""
# kind -> the model, and the bits of the weights and the inputs of its layers if they differ
MODELS: dict[str, tuple[str, list[int], list[int]]] = {
    "mlp": ("name: mlp, hidden: [32, 16], batch_norm: true", [2, 4, 8], [8, 4, 6]),
    "cnn": (
        "name: cnn, blocks: [conv 8, dw, pool, dw, pool], hidden: [16], batch_norm: true",
        [8, 3, 4, 2, 4],
        [8, 8, 6, 4, 8],
    ),
    "window": (
        "name: cnn, blocks: [conv 16 8x8 /4, pw 16, mean], hidden: [], batch_norm: true",
        [2, 4, 8],
        [8, 4, 8],
    ),
}
BITS: dict[str, dict[str, Any]] = {
    "1": {"weight_bits": 1},
    "2": {"weight_bits": 2, "levels": "full"},
    "ternary": {"weight_bits": 2, "levels": "ternary"},
    "3": {"weight_bits": 3},
    "4": {"weight_bits": 4, "levels": "full"},
    "8": {"weight_bits": 8},
    "mixed": {"weight_bits": 8},
}
OVERHEADS = ("float32", "float16", "int8", "pow2")
ACT_BITS = (None, 8)


def draw_trials(kinds: list[str]) -> Iterator[tuple[dict[str, Any], Configuration]]:
    """What each configuration is, and the configuration; the overheads take turns."""
    choices = itertools.product(kinds, BITS, ACT_BITS, ("tensor", "channel"))
    for place, (kind, bits, act_bits, granularity) in enumerate(choices):
        model, layer_bits, layer_act_bits = MODELS[kind]
        overhead = OVERHEADS[(place + place // len(OVERHEADS)) % len(OVERHEADS)]
        about = {"kind": kind, "bits": bits, "act_bits": act_bits, "granularity": granularity, "overhead": overhead}
        axes = {"resolution": 16, "depth": 1, "scale": "lsq", "overhead": overhead, "granularity": granularity}
        axes |= {"act_bits": act_bits} | BITS[bits]
        if bits == "mixed":
            axes |= {"layer_bits": layer_bits} | ({"layer_act_bits": layer_act_bits} if act_bits else {})
        listed = ", ".join(f"{name}: {{value: {'null' if v is None else v}}}" for name, v in axes.items())
        text = SWEEP.format(axes=listed, model=model)
        yield about, plan(loads(text.encode(), "formats.yaml").resolve("mnist")).trials[0]


def compare(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> dict[str, Any]:
    """How logits (N, O) differ from those of `reader.py`.

    Returns:
        `differing` logits; the `largest` difference, in units of the last place of the largest logit of the row;
        `classes`: of how many rows another logit is the largest.
    """
    off = abs(found.astype(np.float64) - expected) / np.spacing(abs(expected).max(1, keepdims=True))
    return {
        "differing": int((found != expected).sum()),
        "largest": float(off.max()),
        "classes": int((found.argmax(1) != expected.argmax(1)).sum()),
    }


def run_onnx(blob: bytes, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The logits of rows, in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    return np.concatenate([session.run(None, {"pixels": part})[0] for part in parts])


def measure(kinds: list[str], data_dir: Any) -> list[dict[str, Any]]:
    """A row for each network."""
    compiler = find_compiler()
    assert compiler is not None, "there must be a C compiler"
    samples, _ = load(["mnist"], data_dir, 1000)
    cut = {"train_x": samples.train_x[:TRAINED_ON].copy(), "train_y": samples.train_y[:TRAINED_ON].copy()}
    data, rows, found = Tensors.of(replace(samples, **cut), torch.device("cpu")), samples.test_x, []
    for about, trial in draw_trials(kinds):
        *_, last = train_configuration(trial, data, NoWarmups(), "never")
        assert last["weights"], f"{trial.label} diverged"
        model = read(one_seed(last["weights"], 0))
        expected = np.concatenate([model.logits(rows[start : start + PART]) for start in range(0, len(rows), PART)])
        made = to_c(model, "m")
        program = Program("m", {".h": made.header, ".c": made.source}, model)
        logits, places = answer(compiler, program, rows)
        right = float((expected.argmax(1) == samples.test_y).mean())
        wrong = program.count_wrong(expected, places)
        one = {"c": compare(logits, expected) | {"wrong": wrong, "exact": made.is_exact}}
        one |= {"onnx": compare(run_onnx(to_onnx(model, "m"), rows), expected), "accuracy": right}
        found.append(about | one)
        print(found[-1], file=sys.stderr, flush=True)
    return found


def summarise(rows: list[dict[str, Any]], name: str) -> list[object]:
    """The cells of some networks in one format: differing logits, largest difference, other classes."""
    every = [row[name] for row in rows]
    differing, classes = (sum(one[key] for one in every) for key in ("differing", "classes"))
    return [f"{differing:,}", f"{max(one['largest'] for one in every):.0f}", f"{classes:,}"]


def list_rows(found: list[dict[str, Any]]) -> list[list[object]]:
    """The rows of the table: two for each kind, with float inputs and with quantised ones."""
    lines: list[list[object]] = []
    for kind, inputs in itertools.product(MODELS, ("float", "quantised")):
        rows = [row for row in found if row["kind"] == kind and (row["act_bits"] is None) == (inputs == "float")]
        if rows:
            tested = [100 * row["accuracy"] for row in rows]
            head = [kind, inputs, len(rows), f"{min(tested):.1f} to {max(tested):.1f}"]
            lines.append([*head, *summarise(rows, "c"), *summarise(rows, "onnx")])
    return lines


def find_faults(found: list[dict[str, Any]]) -> list[str]:
    """The networks that must give the logits of `reader.py`, and do not; or whose C finds other classes."""
    faults = []
    for row in found:
        must = row["act_bits"] is not None
        if (must and (row["c"]["differing"] or row["onnx"]["differing"] or not row["c"]["exact"])) or row["c"][
            "wrong"
        ]:
            faults.append(str(row))
    return faults


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], repeats=1)
    parser.add_argument("--kinds", nargs="+", choices=MODELS, default=[*MODELS])
    given = parser.parse_args()
    torch.set_num_threads(1)
    about = machine() | {"onnxruntime": onnxruntime.__version__}
    found = measure(given.kinds, given.data_dir)
    formats = [f"{name}: {what}" for name in ("C", "ONNX") for what in ("logits differ", "at most, ulp", "classes")]
    heads = ["kind", "inputs", "networks", "test %", *formats]
    publish("formats", given.out, {"networks": found}, table(heads, list_rows(found)), about)
    if faults := find_faults(found):
        sys.exit("\n".join(["they must answer as reader.py:", *faults]))


if __name__ == "__main__":
    main()
