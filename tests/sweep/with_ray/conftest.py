"""A Ray for the tests of trials: one for all of them, because it takes seconds to start."""

import pytest

from qdtune.sweep import cluster


@pytest.fixture(scope="package")
def ray_here(tmp_path_factory):
    """A local Ray with one logical GPU and, so that GPUs are what is scarce, five logical CPUs."""
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("0" * 64)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*cluster.SETTINGS, "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
            patch.delenv(name, raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        cluster.set_environment(None)
        import ray

        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 128 * 2**20}
        ray.init(address="local", num_cpus=5, num_gpus=1, **options)
        yield ray
        ray.shutdown()
