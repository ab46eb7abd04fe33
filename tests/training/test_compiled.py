"""The cache of compiled steps: found again, rebuilt where it is damaged, built once by two that want it."""

import hashlib
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qdtune.training import compiled
from qdtune.training.step import StepShape
from tests.training.test_cohort import a_trial

SHAPE = StepShape.of(a_trial(), 16, 4, "qat")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qdtune" / "steps"


DATA = (torch.tensor([[10.0], [20.0]]),)


def doubled(x, rows, rate):
    x.mul_(2).add_(rows.sum()).add_(rate)


def tensors():
    return torch.ones(1, 3), torch.tensor([[0]]), torch.tensor(0.5)


@pytest.mark.slow  # test_cohort.py compiles a step, or finds it; below invented code is kept and found
def test_machine_code_is_kept_and_found_again(folder, monkeypatch):
    x, batch, rate = tensors()
    compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)(batch, rate)
    assert x.tolist() == [[12.5] * 3]
    (library,) = folder.glob("*.so")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(compiled, "build_library", lambda *a: pytest.fail("compiled although it was there"))
    call = compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)
    call(torch.tensor([[1]]), torch.tensor(1.0))
    assert x.tolist() == [[46.0] * 3]
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == [library.name]


def test_a_damaged_library_is_built_anew(folder, monkeypatch):
    """Loading one that is cut off would kill the process, not raise."""
    monkeypatch.setattr(compiled, "_load", lambda path: path.read_bytes()[:4])
    built = []

    def build():
        built.append(1)
        return b"code"

    assert compiled._load_or_build("key", build) == b"code"
    assert compiled._load_or_build("key", build) == b"code"
    assert len(built) == 1
    path = folder / "key.so"
    for damage in (b"", path.read_bytes()[:-1], b"cod3" + path.read_bytes()[4:]):
        path.write_bytes(damage)
        built.clear()
        assert compiled._load_or_build("key", build) == b"code"
        assert len(built) == 1


PROGRAM = """
import sys
from qdtune.training import compiled
from tests.training.test_compiled import DATA, SHAPE, doubled, tensors

x, batch, rate = tensors()
call = compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)
call(batch, rate)
assert x.tolist() == [[12.5] * 3], x
print("eager" if "eager" in call.__qualname__ else "compiled", compiled.why_eager())
"""


def compiled_in(**environment: str) -> str:
    """How a process of its own makes a step and runs it: compiled for real, with nothing replaced."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | environment
    env.pop("TORCHINDUCTOR_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system with some options."""
    there: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"mount{len(there)}"
        place.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True).returncode:
            pytest.skip("only root may mount a file system")
        there.append(place)
        return place

    yield mount
    for place in there:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.slow
def test_a_cache_without_execution_keeps_libraries_all_the_same(mounted: Callable[[str], Path]) -> None:
    place = mounted("noexec")
    assert compiled_in(XDG_CACHE_HOME=str(place)) == "compiled None"
    (library,) = (place / "qdtune" / "steps").glob("*.so")
    before = library.stat().st_mtime_ns
    # A compiler that fails shows that nothing is compiled again; the temporary folder is without execution, too.
    again = {"XDG_CACHE_HOME": str(place), "TMPDIR": str(place), "CXX": "false"}
    assert compiled_in(**again) == "compiled None"
    assert library.stat().st_mtime_ns == before


def test_without_a_cache_that_can_be_written_code_is_built_and_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "load_code", lambda code: code[:4])
    (tmp_path / "qdtune").write_text("a file where the folder should be")
    assert compiled._load_or_build("key", lambda: b"code and more") == b"code"


@pytest.mark.slow
@pytest.mark.parametrize("options", ["ro", "size=256k"])
def test_a_cache_that_cannot_be_written_costs_the_cache_only(mounted: Callable[[str], Path], options: str) -> None:
    assert compiled_in(XDG_CACHE_HOME=str(mounted(options))) == "compiled None"


@pytest.mark.slow
def test_without_a_cache_folder_a_library_is_built_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "qdtune").write_text("a file where the folder should be")
    assert compiled_in(XDG_CACHE_HOME=str(tmp_path)) == "compiled None"


def test_a_step_that_cannot_be_compiled_runs_all_the_same_and_says_why(folder, monkeypatch):
    def fail(*given):
        raise compiled.CompileError("no compiler")

    monkeypatch.setattr(compiled, "_eager_reasons", [])
    monkeypatch.setattr(compiled, "build_library", fail)
    x, batch, rate = tensors()
    call = compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)
    call(batch, rate)
    assert x.tolist() == [[12.5] * 3]
    call(torch.tensor([[1]]), torch.tensor(1.0))
    assert x.tolist() == [[46.0] * 3]
    assert compiled.why_eager() == "no compiler"


@pytest.mark.slow  # above with an error that is planted
@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_costs_speed_only_and_is_named(tmp_path: Path, compiler: str) -> None:
    said = compiled_in(XDG_CACHE_HOME=str(tmp_path), CXX=compiler)
    assert said.startswith("eager a training step cannot be compiled: ")
    assert compiler in said
    assert "\n" not in said


def test_a_library_that_cannot_be_loaded_here_is_built_anew(folder, monkeypatch):
    def load(path):
        if path.read_bytes().startswith(b"old!"):
            raise RuntimeError("another C library")
        return path.read_bytes()[:4]

    monkeypatch.setattr(compiled, "_load", load)
    folder.mkdir(parents=True)
    (folder / "key.so").write_bytes(b"old!" + hashlib.sha256(b"old!").digest())
    assert compiled._load_or_build("key", lambda: b"code") == b"code"


def test_the_name_of_a_library_covers_all_that_decides_it(monkeypatch):
    def key(shape=SHAPE, tensors=None, structure="a structure"):
        return compiled._hash_step(
            shape, structure, [torch.ones(3), torch.tensor(0.5)] if tensors is None else tensors
        )

    same = key()
    assert key(replace(SHAPE), [torch.zeros(3), torch.tensor(7.0)]) == same
    others = [
        key(replace(SHAPE, depth=3)),
        key(replace(SHAPE, own=("mine:net", "a" * 64))),
        key(replace(SHAPE, own=("mine:net", "b" * 64))),
        key(structure="another one"),
        key(tensors=[torch.ones(2), torch.tensor(0.5)]),
        key(tensors=[torch.ones(3).double(), torch.tensor(0.5)]),
        key(tensors=[torch.ones(6)[::2], torch.tensor(0.5)]),
    ]
    for name, value in (("get_num_threads", lambda: 7), ("__version__", "0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(torch, name, value)
            compiled.describe_machine.cache_clear()
            others.append(key())
    compiled.describe_machine.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(compiled.inspect, "getsource", lambda module: "edited")
        others.append(key())
    assert key() == same
    assert len({same, *others}) == 1 + len(others)


def _want(folder: str, started: object) -> None:
    """In a process of its own: asks for a library whose building takes as long as somebody else is on the way."""
    os.environ["XDG_CACHE_HOME"] = folder
    made = Path(folder) / "made"

    def build() -> bytes:
        with made.open("a") as file:
            file.write("x")
        started.wait()  # both processes run, and one of them is in here
        time.sleep(0.2)  # if the lock did not hold, the other one is in here as well by now
        return b"code"

    compiled._load = lambda path: path.read_bytes()[:4]
    if made.exists():
        started.wait()
    assert compiled._load_or_build("key", build) == b"code"


@pytest.mark.slow
def test_two_that_want_the_same_compile_it_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    first = context.Process(target=_want, args=(str(tmp_path), barrier))
    first.start()
    while not (tmp_path / "made").exists():
        assert first.is_alive()
        time.sleep(0.01)
    second = context.Process(target=_want, args=(str(tmp_path), barrier))
    second.start()
    for process in (first, second):
        process.join(60)
        assert process.exitcode == 0
    assert (tmp_path / "made").read_text() == "x"
