"""The cache of compiled steps: found again, rebuilt where it is damaged, built once by two that want it."""

import hashlib
import multiprocessing
import os
import stat
import time
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
    return torch.ones(3), torch.tensor([[0]]), torch.tensor(0.5)


def test_machine_code_is_kept_and_found_again(folder, monkeypatch):
    x, batch, rate = tensors()
    compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)(batch, rate)
    assert x.tolist() == [12.5] * 3
    (library,) = folder.glob("*.so")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(compiled, "_build", lambda *a: pytest.fail("compiled although it was there"))
    call = compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)
    call(torch.tensor([[1]]), torch.tensor(1.0))
    assert x.tolist() == [46.0] * 3
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


def test_what_cannot_be_compiled_is_said_with_its_cure(folder, monkeypatch):
    def broken(*arguments, **options):
        raise RuntimeError("g++: fatal error:\nno such thing")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", broken)
    x, batch, rate = tensors()
    with pytest.raises(
        compiled.CompileError,
        match=r"compiled: g\+\+: fatal error: no such thing \(run.compile: never does without\)",
    ):
        compiled.compile_step(SHAPE, doubled, (x,), DATA, batch, rate)
    assert list(folder.glob("*.so")) == []


def test_a_library_that_cannot_be_loaded_here_is_built_anew(folder, monkeypatch):
    bad = [RuntimeError("another C library")]

    def load(path):
        if bad:
            raise bad.pop()
        return path.read_bytes()[:4]

    monkeypatch.setattr(compiled, "_load", load)
    folder.mkdir(parents=True)
    (folder / "key.so").write_bytes(b"old!" + hashlib.sha256(b"old!").digest())
    assert compiled._load_or_build("key", lambda: b"code") == b"code"


def test_without_a_cache_folder_a_library_is_built_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "qdtune").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "_load", lambda path: path.read_bytes()[:4])
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
            compiled._describe_machine.cache_clear()
            others.append(key())
    compiled._describe_machine.cache_clear()
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
