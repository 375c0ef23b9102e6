"""The entmax package's own tests, run with our maps and losses in place of the package's.

`python -m benchmarks.entmax_suite [--json FOLDER]`; needs entmax, torch and pytest. The package
installs its tests; a `torch.autograd.Function` around `jax.vjp` takes the place of each function of it,
so that its modules, its losses' reductions and torch's `gradcheck` stay as they are.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entmax
import jax
import numpy as np
import pytest
import torch

import jsoftmax
from benchmarks import report
from jsoftmax import losses

if TYPE_CHECKING:
    from collections.abc import Callable

FILES = ("test_topk.py", "test_losses.py", "test_mask.py", "test_root_finding.py")
# What has no counterpart here, and why.
OTHER = {
    r"normmax|Normmax|test_budget_grad_multiple_k": "normmax is not offered",
    r"budget": "budget projections are not offered",
    r"test_(entmax|sparsemax)_topk": "tests the package's inner search for the threshold",
    r"test_entmax_grad\[0\.": "α < 1 is not offered",
}
# They draw α from 0.05 to 2.55; here from 1.05 on.
DRAWN = re.compile(r"multiple_alphas|test_arbitrary_dimension")
HEADER = ["test", "passed", "failed", "not applicable", "calls of ours", "reason"]
calls: Counter[str] = Counter()


def bridged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The JAX function of arrays as one of tensors, differentiable by its `jax.vjp`.

    What is no floating tensor is passed on as it is.
    """

    class Bridge(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            ctx.arrays = [x.detach().numpy() if isinstance(x, torch.Tensor) else x for x in inputs]
            ctx.moving = [isinstance(x, torch.Tensor) and x.is_floating_point() for x in inputs]
            calls["now"] += 1
            return torch.from_numpy(np.array(function(*ctx.arrays)))

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            def of_moving(*values: Any) -> Any:
                rest = iter(values)
                both = zip(ctx.moving, ctx.arrays, strict=True)
                return function(*(next(rest) if moves else x for moves, x in both))

            moving = [x for moves, x in zip(ctx.moving, ctx.arrays, strict=True) if moves]
            _, pull = jax.vjp(of_moving, *moving)
            found = iter(pull(jax.numpy.asarray(cotangents[0].numpy())))
            return tuple(
                torch.from_numpy(np.array(next(found))) if moves else None for moves in ctx.moving
            )

    return Bridge.apply


def entmax_of(x: Any, alpha: Any, dim: int) -> Any:
    """Theirs has an α of one class where ours has no class axis."""
    per_row = np.ndim(alpha) > 0
    return jsoftmax.entmax(x, jax.numpy.squeeze(alpha, dim) if per_row else alpha, dim)


def install() -> None:
    """Puts ours in the place of the package's functions, before its tests import them."""
    on_map = bridged(entmax_of)
    on_sparse = bridged(jsoftmax.sparsemax)
    on_loss = bridged(losses.entmax_loss)
    on_multiclass = bridged(losses.multiclass_sparsemax_loss)

    class Named:
        def __init__(self, apply: Callable[..., Any]):
            self.apply = apply

    activations, root_finding = (sys.modules[f"entmax.{m}"] for m in ("activations", "root_finding"))
    their_losses = sys.modules["entmax.losses"]
    activations.SparsemaxFunction = Named(lambda x, dim, k: on_sparse(x, dim))
    activations.Entmax15Function = Named(lambda x, dim, k: on_map(x, 1.5, dim))
    root_finding.EntmaxBisectFunction = Named(lambda x, alpha, dim, *_: on_map(x, alpha, dim))
    root_finding.SparsemaxBisectFunction = Named(lambda x, dim, *_: on_sparse(x, dim))
    their_losses.SparsemaxLossFunction = Named(lambda x, y, *_: on_multiclass(x, y))
    their_losses.SparsemaxBisectLossFunction = Named(lambda x, y, *_: on_loss(x, y, 2.0))
    their_losses.Entmax15LossFunction = Named(lambda x, y, *_: on_loss(x, y, 1.5))
    their_losses.EntmaxBisectLossFunction = Named(lambda x, y, alpha, *_: on_loss(x, y, alpha))


class Results:
    """Counts by test function; leaves out what has no counterpart."""

    def __init__(self):
        self.rows: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []

    def of(self, item: str) -> dict[str, Any]:
        empty = {"passed": 0, "failed": 0, "not applicable": 0, "calls": 0, "reasons": []}
        return self.rows.setdefault(re.sub(r"\[.*", "", item), empty)

    def note(self, item: str, reason: str) -> None:
        reasons = self.of(item)["reasons"]
        if reason not in reasons:
            reasons.append(reason)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in list(items):
            # The losses' parameters are classes and partials, named by their place.
            loss = getattr(item, "callspec", None) and item.callspec.params.get("Loss")
            name = item.name + getattr(loss, "__name__", "")
            reason = next((why for pattern, why in OTHER.items() if re.search(pattern, name)), None)
            if reason is not None:
                items.remove(item)
                self.of(item.name)["not applicable"] += 1
                self.note(item.name, reason)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Any:
        torch.manual_seed(0)
        calls.clear()
        uniform = torch.rand
        if DRAWN.search(item.name):
            self.note(item.name, "α drawn from 1.05 to 2.55, theirs from 0.05")
            torch.rand = lambda *shape, **options: _upper(uniform, *shape, **options)
        try:
            return (yield)
        finally:
            torch.rand = uniform
            self.of(item.name)["calls"] += calls["now"]

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.split("::")[-1]
        if report.when == "call":
            self.of(name)[report.outcome] += 1
        if report.failed:
            self.failures.append(f"{name}\n{report.longreprtext}")


def _upper(uniform: Callable[..., Any], *shape: Any, **options: Any) -> Any:
    """The numbers from 0.4 to 1 alone."""
    values = 0.4 + 0.6 * uniform(*shape, **{**options, "requires_grad": False})
    return values.requires_grad_(options.get("requires_grad", False))


def main() -> None:
    arguments = report.options(__doc__.splitlines()[0])
    jax.config.update("jax_enable_x64", True)
    install()
    results = Results()
    folder = Path(entmax.__file__).parent
    selected = [str(folder / name) for name in FILES]
    with tempfile.TemporaryDirectory() as empty:
        # Not by the settings of this repository: there every warning is an error.
        (Path(empty) / "pytest.ini").write_text("[pytest]\n")
        settings = ["-c", f"{empty}/pytest.ini", "-p", "no:cacheprovider", "-q", "--no-summary"]
        pytest.main([*settings, *selected], plugins=[results])
    for failure in results.failures:
        print(failure, file=sys.stderr)
    counts = {key: sum(r[key] for r in results.rows.values()) for key in HEADER[1:4]}
    table = report.markdown(
        HEADER,
        [
            [name, *(str(r[key]) for key in (*HEADER[1:4], "calls")), "; ".join(r["reasons"])]
            for name, r in results.rows.items()
        ],
    )
    environment = report.environment()
    text = "\n\n".join(
        [
            f"# The tests of entmax {entmax.__version__} with our functions in place",
            report.headline(environment),
            "Values and torch's `gradcheck` of our maps and losses through `jax.vjp`, in the dtype of "
            "the test. Each parameter of a test counts as one.",
            table,
            ", ".join(f"{number} {key}" for key, number in counts.items()) + ".",
        ]
    )
    print("\n" + text)
    report.save("entmax_suite", {"environment": environment, "tests": results.rows}, text, arguments)
    idle = [name for name, r in results.rows.items() if r["passed"] and not r["calls"]]
    if counts["failed"] or idle or not counts["passed"]:
        sys.exit(f"failed: {counts['failed']}; passed without a call of ours: {idle}")


if __name__ == "__main__":
    main()
