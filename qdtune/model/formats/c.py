"""A packed model as a C program for microcontrollers, see `model/c`; compiled and compared once written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.messages import format_value, one_line, user_error
from qdtune.model.c.device import Measured, measure
from qdtune.model.c.host import CompileError, compare, find_compiler
from qdtune.model.c.program import EXACT, CSource, to_c
from qdtune.model.c.targets import TARGET_NAMES, missing_tools, target_of
from qdtune.model.formats.format import Checked, Format, FormatOption, TrainedModel, is_pixels
from qdtune.reader import INPUT
from qdtune.spec.tasks import metric_of

RANDOM_ROWS = 2000
FLOAT_CLASSES = 0.01  # of the classes of a program with float sums may be others; one flipped code moves a class
TARGET = FormatOption("--target", TARGET_NAMES[1], "processor that --measure emulates", TARGET_NAMES)
MEASURE = FormatOption("--measure", "", "report flash, RAM and instructions on an emulated --target", is_switch=True)
MEASURED_ROWS = 100
MEASURED_BYTES = 96 * 1024  # of these rows, which lie in the flash beside the program
DATA_DIR = FormatOption("--data-dir", "", "folder of the data sets, whose test sets check the C")


class CFormat(Format):
    """A pair of files, TRIAL.c and TRIAL.h."""

    def write(self, model: TrainedModel, options: Mapping[str, str]) -> bytes:
        return self.files(model, options)[".c"]

    def files(self, model: TrainedModel, options: Mapping[str, str]) -> dict[str, bytes]:
        made = make_c(model)
        return {".c": made.source.encode(), ".h": made.header.encode()}

    def check(self, path: Path, model: TrainedModel, options: Mapping[str, str]) -> Checked:
        texts = {suffix: path.with_suffix(suffix).read_text() for suffix in (".c", ".h")}
        compiler = find_compiler()
        if compiler is None:
            given = os.environ.get("CC")
            why = f"$CC names {one_line(given)}, which is not here" if given else "there is no C compiler here"
            return Checked(note=f"not compiled: {why} (install gcc, or set $CC)")
        rows, what = find_rows(model, options[DATA_DIR.flag])
        try:
            found = compare(compiler, texts, model.name, model.model, rows)
        except CompileError as error:
            return Checked(f"must compile and run, got {error}")
        of = f"{what}, compiled by {Path(compiler[0]).name}"
        outputs = found.rows * model.model.program["outputs"]
        if EXACT in texts[".h"]:
            if found.logits:
                return Checked(
                    f"must give the logits of reader.py, got {found.logits:,} others of {outputs:,} ({of})"
                )
            if found.wrong:
                return Checked(
                    f"must find the classes of reader.py, got {found.wrong:,} others of {found.rows:,} ({of})"
                )
            note = f"0 of {outputs:,} logits differ from those of reader.py ({of})"
            if found.classes:
                note += f", {found.classes:,} classes do, where the two largest logits are as good as equal"
        else:
            share = f"{found.classes:,} of {found.rows:,} classes differ from those of reader.py"
            if found.classes > FLOAT_CLASSES * found.rows:
                return Checked(f"must give nearly all classes of reader.py, got: {share} ({of})")
            note = f"sums of floats: {share}, logits by up to {found.largest:.0e} of the largest ({of})"
            note += "; with act_bits in the sweep file none would"
        if not options[MEASURE.flag]:
            return Checked(note=note)
        measured = self._measure(model, texts, rows, options[TARGET.flag])
        return Checked(measured.fault, f"{note}; {measured.note}")

    def _measure(self, model: TrainedModel, texts: Mapping[str, str], rows: NDArray[Any], name: str) -> Checked:
        """What the program needs on a target."""
        target = target_of(name)
        if missing := missing_tools(target):
            how = f"install the Debian packages {target.packages}"
            return Checked(note=f"not measured on {name}: no {' and no '.join(missing)} here ({how})")
        try:
            count = max(1, min(MEASURED_ROWS, MEASURED_BYTES // rows[0].nbytes))
            found = measure(target, texts, model.name, model.model, rows[:count])
        except CompileError as error:
            return Checked(f"must run on {name}, got {error}")
        if found.differing and EXACT in texts[".h"]:
            return Checked(f"must give the logits of reader.py on {name}, got {found.differing:,} others")
        return Checked(note=describe_measured(found))


C = CFormat(
    name="c",
    suffix=".c",
    card_suffix=".c.json",
    usage="C99, no library: qd_TRIAL_class(row) and qd_TRIAL_logits(row, logits), see the .h file; row: {dtype}",
    options=(TARGET, MEASURE, DATA_DIR),
    closing="the .h file beside each .c says what to call",
)


def describe_measured(found: Measured) -> str:
    """A sentence of what a program needs on a target."""
    steps = found.instructions
    spread = f"{steps.mean():,.0f} instructions per class ({steps.min():,.0f} to {steps.max():,.0f})"
    flash = f"flash {found.numbers + found.code:,} bytes ({found.numbers:,} of numbers, {found.code:,} of code)"
    other = f"with logits {found.numbers + found.logits_code:,}"
    ram = f"RAM {found.ram:,} and {found.stack:,} of stack"
    equal = "all logits as here" if not found.differing else f"{found.differing:,} logits differ in their last bits"
    return f"on {found.target}: {flash}, {other}; {ram}; {spread} of {len(steps)} rows; {equal}"


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
    return to_c(model.model, model.name, facts, "\n".join(notes))


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
