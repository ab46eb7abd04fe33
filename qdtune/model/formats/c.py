"""A packed model as a C program for microcontrollers, see `model/c`; compiled and compared once written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.messages import format_count, format_value, one_line, user_error
from qdtune.model.c.device import Measured, TooLargeError, measure
from qdtune.model.c.host import Comparison, CompileError, Program, compare, find_compiler
from qdtune.model.c.program import EXACT, CSource, to_c
from qdtune.model.c.targets import TARGET_NAMES, missing_tools, target_of
from qdtune.model.formats.format import Checked, Format, FormatOption, TrainedModel, is_pixels
from qdtune.reader import INPUT
from qdtune.spec.tasks import metric_of, task_of

RANDOM_ROWS = 2000
CLASS_CALL = "qd_TRIAL_class(row)"
FLOAT_CLASSES = 0.01  # of the classes of a program with float sums may be others; one flipped code moves a class
TARGET = FormatOption("--target", TARGET_NAMES[1], "processor that --measure emulates", TARGET_NAMES)
MEASURE = FormatOption("--measure", "", "report flash, RAM and instructions on an emulated --target", is_switch=True)
FLOAT_LOGITS = 0.01  # of the largest output, the mean difference: few codes flip
MEASURED_ROWS = 100
MEASURED_MACS = (
    500_000_000  # products of all rows: some 10 instructions each, of which QEMU does 400 million a second
)
MEASURED_BYTES = 96 * 1024  # of these rows, which lie in the flash beside the program
DATA_DIR = FormatOption("--data-dir", "", "folder of the data sets, whose test sets check the C")


class CFormat(Format):
    """A pair of files, TRIAL.c and TRIAL.h."""

    def usage_of(self, model: TrainedModel) -> str:
        return self.usage if task_of(model.trial.task).has_class else self.usage.replace(f"{CLASS_CALL} and ", "")

    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        return self.files(model, options)[".c"]

    def files(self, model: TrainedModel, options: Mapping[str, str]) -> dict[str, bytes]:
        made = make_c(model)
        return {".c": made.source.encode(), ".h": made.header.encode()}

    def check(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> Checked:
        texts = {suffix: path.with_suffix(suffix).read_text() for suffix in (".c", ".h")}
        program = Program(model.name, texts, model.model, task_of(model.trial.task).classes)
        compiler = find_compiler()
        if compiler is None:
            given = os.environ.get("CC")
            why = f"$CC names {one_line(given)}, which is not here" if given else "there is no C compiler here"
            return Checked(note=f"not compiled: {why} (install gcc, or set $CC)")
        rows, what = find_rows(model, options[DATA_DIR.flag])
        try:
            found = compare(compiler, program, rows)
        except CompileError as error:
            return Checked(f"must compile and run, got {error}")
        checked = judge(found, program, f"{what}, compiled by {Path(compiler[0]).name}")
        if checked.fault is not None or not options[MEASURE.flag]:
            return checked
        macs = model.trial.structure.macs(model.trial.depth, model.trial.decompose)
        measured = self._measure(program, rows, macs, options[TARGET.flag])
        return replace(measured, note=f"{checked.note}\n{measured.note}")

    def _measure(self, program: Program, rows: NDArray[Any], macs: int, name: str) -> Checked:
        """What the program needs on a target."""
        target = target_of(name)
        if missing := missing_tools(target):
            how = f"install the Debian packages {target.packages}"
            return Checked(note=f"not measured on {name}: no {' and no '.join(missing)} here ({how})")
        most = min(MEASURED_ROWS, MEASURED_BYTES // rows[0].nbytes, MEASURED_MACS // max(1, macs))
        try:
            found = measure(target, program, rows[: max(1, most)])
        except TooLargeError as error:
            return Checked(note=f"not measured on {name}: {error}")
        except CompileError as error:
            return Checked(f"must run on {name}, got {error}")
        if found.differing and EXACT in program.texts[".h"]:
            return Checked(f"must give the logits of reader.py on {name}, got {found.differing:,} others")
        return Checked(note=describe_measured(found), measured={name: list_measured(found)})


C = CFormat(
    name="c",
    suffix=".c",
    card_suffix=".c.json",
    usage=f"C99, no library: {CLASS_CALL} and qd_TRIAL_logits(row, logits), see the .h file; row: {{dtype}}",
    options=(TARGET, MEASURE, DATA_DIR),
    closing="the .h file beside each .c says what to call",
)


def judge(found: Comparison, program: Program, of: str) -> Checked:
    """What is wrong with the answers of a program, or what there is to say of them.

    Args:
        found: its answers beside those of `reader.py`.
        program: its files.
        of: what it was compared over, and how it was made.
    """
    outputs = found.rows * program.model.program["outputs"]
    if EXACT in program.texts[".h"]:
        if found.logits:
            return Checked(f"must give the logits of reader.py, got {found.logits:,} others of {outputs:,} ({of})")
        if found.wrong:
            return Checked(f"must find the classes of reader.py, got {found.wrong:,} others of {found.rows:,} ({of})")
        note = f"0 of {outputs:,} logits differ from those of reader.py ({of})"
        if found.classes:
            note += f", {found.classes:,} classes do, where the rounding of floats decides"
        return Checked(note=note)
    share = f"{found.classes:,} of {found.rows:,} classes differ from those of reader.py"
    if found.classes > FLOAT_CLASSES * found.rows:
        return Checked(f"must give nearly all classes of reader.py, got: {share} ({of})")
    size = f"logits by up to {found.largest:.0e} of the largest"
    if not program.has_class and found.mean > FLOAT_LOGITS:
        return Checked(
            f"must give nearly the logits of reader.py, got others by {found.mean:.0e} of the largest ({of})"
        )
    note = f"{share}, {size}" if program.has_class else f"{size} differ from those of reader.py"
    return Checked(note=f"{note} ({of}), because the C sums floats; with act_bits in the sweep file none would")


def list_measured(found: Measured) -> dict[str, Any]:
    """What a program needs on a target, for the model card."""
    flash = {
        f"flash_{call}": {"model_bytes": one.model, "kernel_bytes": one.kernels} for call, one in found.flash.items()
    }
    steps = found.instructions
    return {
        **flash,
        "ram_bytes": found.ram,
        "stack_bytes": found.stack,
        "instructions": {"mean": round(steps.mean()), "least": round(steps.min()), "most": round(steps.max())},
        "rows": len(steps),
        "differing_logits": found.differing,
    }


def describe_measured(found: Measured) -> str:
    """Lines of what a program needs on a target: a table of at most 80 columns."""
    call, *others = found.flash
    flash = found.flash[call]
    more = {
        part: "".join(f" (with {one}: {vars(found.flash[one])[part]:,})" for one in others) for part in vars(flash)
    }
    steps, rows = found.instructions, format_count(len(found.instructions), "row")
    equal = "equal to those of reader.py"
    if found.differing:
        equal = f"{found.differing:,} differ from those of reader.py in their last bits"
    lines = [
        ("flash of the model", f"{flash.model:,}", f"bytes{more['model']}"),
        ("flash of the kernels", f"{flash.kernels:,}", f"bytes{more['kernels']}"),
        ("RAM, static", f"{found.ram:,}", "bytes"),
        ("stack", f"{found.stack:,}", "bytes"),
        ("instructions", f"{steps.mean():,.0f}", f"per inference ({steps.min():,.0f} to {steps.max():,.0f})"),
    ]
    width = max(len(number) for _, number, _ in lines)
    table = [f"  {name:<20}  {number:>{width}} {unit}" for name, number, unit in lines]
    return "\n".join([f"on {found.target}, {rows} of qd_..._{call}:", *table, f"  {'logits':<20}  {equal}"])


def make_c(model: TrainedModel) -> CSource:
    """The C program of a trained model.

    Raises:
        SpecError: its forward pass is in a user's own code, or C has no code for one of its operations.
    """
    if not model.model.is_complete:
        what = f"the forward pass of {format_value(model.model.program['model'])} is in its own code"
        how = "build it as nn.Sequential of known layers, or export it as packed"
        raise user_error(f"{what}, which this command does not run: {how}")
    entry, row, trial = model.entry, model.row, model.trial
    metric = metric_of(trial.metric)
    version = model.metadata.get("qdtune.version.qdtune", "")
    notes = [
        f"a network trained by qdtune {version}".rstrip(),
        f"trial {entry['trial_id']}, seed {row['seed']}: {one_line(trial.label)}",
        f"data set {one_line(str(entry['dataset']))}; {metric.test} {row[metric.test]:.4f}",
        f"{row['size_bytes']} bytes of numbers as packed; inputs: {describe_row(model)}",
    ]
    facts = {"SIZE_BYTES": row["size_bytes"], "MACS": trial.structure.macs(trial.depth, trial.decompose)}
    return to_c(model.model, model.name, facts, "\n".join(notes), task_of(trial.task).classes)


def describe_row(model: TrainedModel) -> str:
    """What one row is, for a comment."""
    if is_pixels(model.model.program):
        return "pixels 0 to 255, channel by channel, row by row"
    return f"{model.model.program[INPUT]} as the training data had them, not normalised"


def find_rows(model: TrainedModel, data_dir: str) -> tuple[NDArray[Any], str]:
    """Rows that check a program, and what they are: the test set if it is at hand, else random ones."""
    from qdtune.datasets.load import default_root, load, on_disk

    name, root = str(model.entry["dataset"]), Path(data_dir) if data_dir else default_root()
    if on_disk(name, root):
        data, _ = load([name], root, 1)
        return data.test_x, f"{len(data.test_x):,} test rows of {name}"
    generator, inputs = np.random.default_rng(0), model.model.program["inputs"]
    dtype = model.model.program.get(INPUT, "uint8")
    if dtype == "float32":
        rows = generator.standard_normal((RANDOM_ROWS, inputs), dtype=np.float32)
    else:
        limits = np.iinfo(dtype)
        rows = generator.integers(limits.min, limits.max + 1, (RANDOM_ROWS, inputs)).astype(dtype)
    return rows, f"{RANDOM_ROWS:,} random rows: the test set of {one_line(name)} is not at hand"
