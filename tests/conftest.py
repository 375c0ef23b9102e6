"""The devices and the dtype rules that every test runs under; set before jax starts."""

import os
import zlib

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


# One in so many of the tests that are thinned out by default.
PART = 6


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves most tests of cases that are not core, and those marked `thin`, to `make test-slow`.

    Which ones is decided by their names, so that each test meets some case and each case some test.
    """
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = callspec and callspec.params.get("case")
        thin = item.get_closest_marker("thin") or not getattr(case, "core", True)
        if thin and zlib.crc32(item.nodeid.encode()) % PART:
            item.add_marker("slow")
