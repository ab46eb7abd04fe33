"""A data set added through its one place, a file in `datasets/` and its name in `DATASETS`, works from end to end."""

import random

import pytest

from tests.toy import copy_package, evaluate, run

WAVES = '''"""Waves of two lengths, in one file: for each sample its label and 16 numbers, one byte each."""

from qdtune.datasets.dataset import DataFile, Dataset
from qdtune.datasets.files import check_file


def _read(dataset, root):
    import numpy as np

    table = np.frombuffer(check_file(dataset, dataset.files[0], root), np.uint8).reshape(-1, 17)
    x, y = table[:, 1:], table[:, 0].astype(np.int64)
    return x[: dataset.train], y[: dataset.train], x[dataset.train :], y[dataset.train :]


def _find_fault(dataset, file, content):
    return None if len(content) == 400 * 17 else f"it must have 6800 bytes, found {len(content)}"


WAVES = Dataset(
    "waves",
    "waves of two lengths",
    train=300,
    test=100,
    inputs=16,
    classes=2,
    read=_read,
    files=(DataFile("waves/all.bin"),),
    find_fault=_find_fault,
)
'''
SWEEP = """version: 1
name: a
parameters: {depth: {value: 1}}
train: {batch_size: 50}
data:
"""
KNOWN = "mnist, fashion_mnist, kmnist, cifar10, digits, synthetic, waves"
SCRIPT = f"""
import json, pathlib
from docs.tables import dataset_table
from qdtune.datasets.load import DataError, load
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import loads

def refusal(root):
    try:
        load(["waves"], pathlib.Path(root), 50)
    except DataError as error:
        return str(error)

found, notes = load(["waves"], pathlib.Path("whole"), 50)
spec = loads({SWEEP + "  {dataset: waves, val_size: 50}"!r}.encode(), "a.yaml").resolve("waves")
(trial,) = plan(spec).trials
print(json.dumps({{
    "samples": [[list(x.shape), str(x.dtype)] for x in (found.train_x, found.val_x, found.test_x, found.train_y)],
    "known": [found.name, found.inputs, found.classes, notes],
    "layers": [layer[:2] for layer in trial.structure.layers],
    "dataset": trial.columns["dataset"],
    "damaged": refusal("damaged"),
    "absent": refusal("absent"),
    "instead": load(["waves", "synthetic"], pathlib.Path("absent"), 50)[1],
    "table": [line for line in dataset_table().splitlines() if "waves" in line],
}}))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one file more, named in `DATASETS`, and data for it; no other file differs."""
    folder = copy_package(
        tmp_path_factory.mktemp("tree"),
        added={"datasets/waves.py": WAVES},
        edits={
            "datasets/known.py": {
                "\nDATASETS: ": "from qdtune.datasets.waves import WAVES\n\nDATASETS: ",
                "DIGITS, SYNTHETIC)": "DIGITS, SYNTHETIC, WAVES)",
            }
        },
        beside=("docs",),
    )
    content = b"".join(bytes([k % 2]) + random.Random(k).randbytes(16) for k in range(400))
    for name, data in (("whole", content), ("damaged", content[:-1])):
        (folder / name / "waves").mkdir(parents=True)
        (folder / name / "waves" / "all.bin").write_bytes(data)
    return folder


@pytest.fixture
def dry_run(tree):
    """What a dry run says of a sweep on this data group; it ends with the exit code."""

    def dry_run(group, *options, code=0):
        (tree / "a.yaml").write_text(f"{SWEEP}  {group}\n")
        done = run(tree, "-m", "qdtune", "launch", "a.yaml", "--dry-run", *options, code=code)
        return done.stderr if code else done.stdout

    return dry_run


def test_it_loads_and_its_sizes_are_known(tree):
    found = evaluate(tree, SCRIPT)
    assert found["samples"] == [
        [[250, 16], "uint8"],
        [[50, 16], "uint8"],
        [[100, 16], "uint8"],
        [[250], "int64"],
    ]
    assert found["known"] == ["waves", 16, 2, []]
    assert (found["layers"], found["dataset"]) == ([[16, 24], [24, 2]], "waves")
    assert found["damaged"].startswith("damaged/waves/all.bin is damaged: it must have 6800 bytes, found 6799; ")
    missing = "waves could not be had (not in absent, and it cannot be downloaded)"
    assert found["absent"].startswith(f"no data set: {missing}; point --data-dir or QDTUNE_DATA to a folder")
    assert found["instead"] == [f"{missing}: training on synthetic instead"]
    assert found["table"] == ["| `waves` | 300 | 100 | 16 | 2 | no download | waves of two lengths |"]


@pytest.mark.parametrize(
    ("names", "folder", "where"),
    [
        ("waves", "whole", "on disk"),
        ("waves", "absent", "not in absent, and it cannot be downloaded: put its files there"),
        (
            "[waves, cifar10, kmnist]",
            "absent",
            "not in absent, and it cannot be downloaded: cifar10 or kmnist taken instead",
        ),
    ],
)
def test_a_dry_run_knows_it(dry_run, names, folder, where):
    told = dry_run(f"{{dataset: {names}, val_size: 50}}", "--data-dir", folder)
    assert f"waves: 250 samples to train on, 50 to judge by; {where} one trial" in " ".join(told.split())


@pytest.mark.parametrize(
    ("group", "mistake"),
    [
        ("{dataset: wave, val_size: 50}", f"data.dataset: unknown 'wave'; did you mean 'waves'? ({KNOWN})"),
        ("{dataset: waves, val_size: 300}", "data.val_size: 300 leaves none of the 300 training samples of waves"),
        ("{dataset: waves, val_size: 280}", "train.batch_size: 50 is above the 20 training samples of waves"),
    ],
)
def test_mistakes_are_named_with_their_line(dry_run, group, mistake):
    told = dry_run(group, code=2)
    line = 4 if mistake.startswith("train") else 6
    assert told.startswith(f"error: a.yaml:{line}: {mistake}")
