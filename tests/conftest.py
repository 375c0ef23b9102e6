"""The devices and the dtype rules that every test runs under; set before jax starts."""

import os
import zlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import hypothesis
import jax
import pytest

from tests.example_runs import environment as environment
from tests.example_runs import finished as finished
from tests.example_runs import sources as sources

jax.config.update("jax_numpy_dtype_promotion", "strict")


# No test depends on the clock: on a busy machine it would fail for nothing.
hypothesis.settings.register_profile(
    "clockless", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("clockless")

# One in so many of the tests that are thinned out by default.
PART = 24


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves most tests of cases that are not core, and those marked `thin`, to `make test-slow`.

    Of those with parameters, that is. Which ones is decided by their names, not their files, so that
    each test meets some case and each case some test, wherever they stand.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None:
            continue
        thin, core = item.get_closest_marker("thin"), getattr(callspec.params.get("case"), "core", True)
        part = max((thin.args or (PART,))[0] if thin else 1, 1 if core else PART)
        if zlib.crc32(item.name.encode()) % part:
            item.add_marker("slow")
