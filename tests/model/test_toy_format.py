"""An export format added through its one place: `qdtune export` follows without an edit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qdtune.model.formats.known import FORMAT_NAMES
from qdtune.model.formats.packed import one_seed
from qdtune.reader import load

ROOT = Path(__file__).parents[2]
KNOWN = Path("qdtune", "model", "formats", "known.py")
IMPORT = "from qdtune.model.formats.toy import TOY"
TOY = '''"""Arrays for NumPy."""

import io

import numpy as np

from qdtune.model.formats.format import Checked, Format, FormatOption, OptionalPackage


class ToyFormat(Format):
    def write(self, model, options):
        if options["--planet"] == "moon":
            import a_package_for_the_moon
        buffer, tensors = io.BytesIO(), dict(model.model.tensors)
        if options["--planet"] == "mars":
            tensors.popitem()
        np.savez(buffer, planet=options["--planet"], **tensors)
        return buffer.getvalue()

    def check(self, path, model, options):
        lost = sorted(model.model.tensors.keys() - set(np.load(path).files))
        return Checked(f"must hold every tensor, got none called {lost[0]}" if lost else None)

    def shared_files(self):
        return {"toy.txt": b"np.load reads them"}


TOY = ToyFormat(
    name="toy",
    suffix=".npz",
    card_suffix=".npz.json",
    usage="numpy.load",
    package=OptionalPackage("a_package_for_the_moon", "pip install moon"),
    options=(FormatOption("--planet", "earth", "where it runs", ("earth", "mars", "moon")),),
    closing="toy.txt says how",
)
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the package with one file more, named in `FORMATS`; no other file differs."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("qdtune", "tests/golden/runs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / KNOWN).with_name("toy.py").write_text(TOY)
    text, count = re.subn(
        r"^(FORMATS: .*)\)$", rf"{IMPORT}\n\1, TOY)", (folder / KNOWN).read_text(), flags=re.MULTILINE
    )
    assert count == 1
    (folder / KNOWN).write_text(text)
    return folder


@pytest.fixture
def export(tree, tmp_path):
    """Exports the front of the golden run: the exit code, what was printed, and the folder of the files."""
    out = tmp_path / "out"

    def export(*argv):
        command = [sys.executable, "-m", "qdtune", "export", "tests/golden/runs/eager", "--front", "--out", out]
        environment = os.environ | {"PYTHONPATH": str(tree)}
        done = subprocess.run(
            [*command, *argv], cwd=tree, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr, out

    return export


def test_files_and_cards_follow_from_the_entry(tree, export):
    code, told, out = export("--format", "toy", "--planet", "earth")
    assert code == 0, told
    assert told.splitlines()[-1] == f"3 models in {out}: TRIAL.npz, with a card TRIAL.npz.json; toy.txt says how"
    files = sorted(out.glob("*.npz"))
    assert {path.name for path in out.iterdir()} == {
        "toy.txt",
        *(f"{path.name}{end}" for path in files for end in ("", ".json")),
    }
    assert len(files) == 3
    for path in files:
        card = json.loads(Path(f"{path}.json").read_text())
        assert (card["format"], card["read_with"], card["file"]) == ("toy", "numpy.load", path.name)
        assert card["file_bytes"] == path.stat().st_size
        weights = tree / "tests" / "golden" / "runs" / "eager" / "weights" / f"{card['trained_by']}.safetensors"
        tensors = load(one_seed(weights.read_bytes(), card["seed"])).tensors
        with np.load(path) as found:
            assert str(found["planet"]) == "earth"
            assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_files_are_checked_after_they_are_written(export):
    code, told, out = export("--format", "toy", "--planet", "mars")
    assert code == 4
    assert told.startswith(f"error: {sorted(out.glob('*.npz'))[0].parent}/")
    assert " must hold every tensor, got none called " in told


def test_a_package_that_is_missing_is_told_and_how_to_get_it(export):
    code, told, out = export("--format", "toy", "--planet", "moon")
    assert (code, out.exists()) == (2, False)
    assert told == "error: --format toy needs the package a_package_for_the_moon: pip install moon\n"


def test_its_option_has_a_default_and_goes_with_no_other_format(export):
    code, told, out = export("--format", "toy")
    with np.load(next(out.glob("*.npz"))) as found:
        assert str(found["planet"]) == "earth"
    code, told, _ = export("--planet", "earth")
    assert code == 2
    assert told.startswith("error: --planet does not go with --format packed (usage: ")
    assert f"[--format {'|'.join([*FORMAT_NAMES, 'toy'])}] [--seed N]" in told
    assert "[--planet X]" in told
