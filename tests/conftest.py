"""The devices and the dtype rules that every test runs under; set before jax starts."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves cases of the conformance table that take another case's way to `make test-slow`."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        case = callspec and callspec.params.get("case")
        if getattr(case, "slow", False):
            item.add_marker("slow")
