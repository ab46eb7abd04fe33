"""The cache of compiled steps: found again, rebuilt where it is damaged, built once by two that want it."""

import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_cohort import a_trial

from qdtune import compiled
from qdtune.step import Shape

SHAPE = Shape.of(a_trial(), 16, 4, "qat")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qdtune" / "steps"


def doubled(x, batch, rate):
    x.mul_(2).add_(rate)


def tensors():
    return torch.ones(3), torch.zeros(1, 1, dtype=torch.int64), torch.tensor(0.5)


def test_machine_code_is_kept_and_found_again(folder, monkeypatch):
    x, batch, rate = tensors()
    compiled.compiled(SHAPE, doubled, (x,), batch, rate)(batch, rate)
    assert x.tolist() == [2.5] * 3
    (library,) = folder.glob("*.so")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.setattr(compiled, "_build", lambda *a: pytest.fail("compiled although it was there"))
    call = compiled.compiled(SHAPE, doubled, (x,), batch, rate)
    call(batch, torch.tensor(1.0))
    assert x.tolist() == [6.0] * 3
    assert [path.name for path in folder.iterdir() if path.suffix != ".lock"] == [library.name]


def test_a_damaged_library_is_built_anew(folder, monkeypatch):
    """Loading one that is cut off would kill the process, not raise."""
    monkeypatch.setattr(compiled, "_load", lambda path: path.read_bytes()[:4])
    built = []

    def build():
        built.append(1)
        return b"code"

    assert compiled._library("key", build) == b"code"
    assert compiled._library("key", build) == b"code"
    assert len(built) == 1
    path = folder / "key.so"
    for damage in (b"", path.read_bytes()[:-1], b"cod3" + path.read_bytes()[4:]):
        path.write_bytes(damage)
        built.clear()
        assert compiled._library("key", build) == b"code"
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
        compiled.compiled(SHAPE, doubled, (x,), batch, rate)
    assert list(folder.glob("*.so")) == []


def test_the_name_of_a_library_covers_all_that_decides_it(monkeypatch):
    x, batch, rate = tensors()
    key = compiled._key(SHAPE, [x, batch, rate])
    assert key == compiled._key(replace(SHAPE), [x + 1, batch, rate])
    others = [
        compiled._key(replace(SHAPE, depth=3), [x, batch, rate]),
        compiled._key(SHAPE, [x[:2], batch, rate]),
        compiled._key(SHAPE, [x.double(), batch, rate]),
        compiled._key(SHAPE, [torch.ones(6)[::2], batch, rate]),
    ]
    monkeypatch.setattr(compiled, "_machine", lambda: "another torch, another CPU")
    others.append(compiled._key(SHAPE, [x, batch, rate]))
    assert len({key, *others}) == 1 + len(others)


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
    assert compiled._library("key", build) == b"code"


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
