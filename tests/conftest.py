"""What every test shares: one thread per process, how they are spread over processes, the real data sets.

The ordinary suite runs in several processes (pytest-xdist); anything narrower, and slow tests, in one.
"""

import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from tests.launched import Launched
    from tests.seen import Seen

# Before anything imports torch: two threads on a busy machine make a step tens of times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# As `cluster.set_environment` sets them: Ray reads them when it is first imported, whichever test does that.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and what a test starts would inherit that


# All that collection imports and makes stays until the end: to look for garbage in it is a quarter of collection.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


settings.register_profile("same", derandomize=True, deadline=None)  # the same in every run, on busy machines, too
settings.load_profile("same")


# Tests that start Ray or share a launch, by folder, module or name: each of these lists runs in turn, in one process
# and before all others, so that no more than two Rays run at a time; a third process has the other tests meanwhile.
IN_TURN = (
    ("test_driver", "test_loggers", "test_security", "test_api", "test_trainings_give_the_recorded_numbers"),
    ("with_ray",),
)
PROCESSES = 3


def place(nodeid: str) -> tuple[int, str]:
    """Which tests a test runs together with: those of its list, else of its file."""
    file, *_, name = nodeid.partition("[")[0].split("::")
    known = {Path(file).parent.name, Path(file).stem, name}
    number = next((n for n, names in enumerate(IN_TURN) if known & set(names)), len(IN_TURN))
    return number, "" if number < len(IN_TURN) else file


NICENESS = 15  # that Ray gives its workers: beside processes without it they get a thirtieth of a core


def pytest_configure(config: pytest.Config) -> None:
    """Tests without Ray must not take the cores from the workers of those with it (120 s in place of 20)."""
    if hasattr(config, "workerinput"):
        os.nice(NICENESS)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Several processes for the whole ordinary suite; none but pytest's own for single files, for -k and -m slow.

    Slow tests measure times and memory, and a few tests are done before other processes have imported torch.
    """
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS or config.args in (["tests"], ["tests/"])
    ordinary = config.option.markexpr == "not slow" and not config.option.keyword
    return PROCESSES if whole and ordinary and (os.cpu_count() or 1) > 1 else 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """By hand: xdist 3.8 marks groups in a field of its own that pytest 9.2 no longer reads."""

    class InTurn(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return str(place(nodeid))

    config.option.loadscopereorder = False  # which would begin with what has the most tests
    return InTurn(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: place(item.nodeid)[0])


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder named by QDTUNE_DATA, laid out as torchvision does; skips where there is none."""
    folder = os.environ.get("QDTUNE_DATA")
    if not folder:
        pytest.skip("QDTUNE_DATA is not set: it names a folder that holds MNIST/raw and FashionMNIST/raw")
    return Path(folder)


@pytest.fixture(scope="session")
def eager_launch(seen: "Seen", tmp_path_factory: pytest.TempPathFactory) -> "Launched":
    """The golden sweep, finished by `qdtune.run`: one launch for the tests of the call, the numbers, the trackers."""
    from tests.launched import launch_eager

    return launch_eager(seen, tmp_path_factory.mktemp("eager"))


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> "Seen":
    """A sweep that was looked at while it ran, and then stopped."""
    from tests.seen import launch_seen

    return launch_seen(tmp_path_factory.mktemp("CANARY-home"))  # which no path in the run folder may name


@pytest.fixture(autouse=True)
def door(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test is granted is granted to no other one, and what it imports is forgotten."""
    monkeypatch.setattr("qdtune.plugins._grants", [])
    monkeypatch.setattr("qdtune.plugins._sources", {})
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(Path(os.environ.get("TMPDIR", "/tmp")))):
            del sys.modules[name]
