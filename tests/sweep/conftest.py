"""The launch that finishes what another one left to do, with trackers: one for the tests of both."""

import pytest

from tests.sweep.resumed import Resumed, launch_again


@pytest.fixture(scope="session")
def resumed(seen, tmp_path_factory) -> Resumed:
    """The sweep that was stopped, finished with one more bit width by a later launch with all trackers."""
    return launch_again(seen, tmp_path_factory.mktemp("resumed"))
