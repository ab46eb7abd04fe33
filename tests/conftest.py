"""What every test shares: one thread per process, and the folder with the real data sets."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Before anything imports torch: two threads on a busy machine make a step tens of times slower.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# As `cluster.prepare` sets them: Ray reads them when it is first imported, whichever test does that.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


settings.register_profile("same", derandomize=True)  # the same examples in every run
settings.load_profile("same")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder named by QDTUNE_DATA, laid out as torchvision does; skips where there is none."""
    folder = os.environ.get("QDTUNE_DATA")
    if not folder:
        pytest.skip("QDTUNE_DATA is not set: it names a folder that holds MNIST/raw and FashionMNIST/raw")
    return Path(folder)
