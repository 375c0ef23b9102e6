"""The golden table: what comes back for infinities, NaN, masks and extreme temperatures.

Every line is one row of a batch, so that a row that is NaN also shows that it stays alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax

INF, NAN = np.inf, np.nan
ALL, NOT_FIRST, NONE = (True, True, True), (False, True, True), (False, False, False)
# softmax and costs of the logits 0 and 1
P0, P1 = 0.2689414213699951, 0.7310585786300049
C0, C1 = 1.3132616875182228, 0.3132616875182228
LOG2 = 0.6931471805599453
DTYPES = ("float32", "bfloat16", "float16")


class Line(NamedTuple):
    name: str
    logits: tuple[float, float, float]
    where: tuple[bool, bool, bool]
    temperature: float
    softmax: tuple[float, float, float]
    logsumexp: float  # of the logits, without the temperature
    costs: tuple[float, float, float]  # the cross-entropy of each label; NaN rows see `clean`
    clean: bool = True  # whether no step on the way may make a NaN
    smooth: bool = True  # whether the gradient exists


TABLE = (
    Line("plain", (-INF, 0, 1), ALL, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("NaN masked", (NAN, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("+inf masked", (INF, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("−inf masked", (-INF, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("largest masked", (99, 0, 1), NOT_FIRST, 1, (0, P0, P1), 1 + C1, (INF, C0, C1)),
    Line("all masked", (NAN, INF, 3), NONE, 1, (0, 0, 0), -INF, (0, 0, 0)),
    Line("all masked, −inf", (-INF, -INF, -INF), NONE, 1, (0, 0, 0), -INF, (0, 0, 0)),
    Line("all masked, T=0", (1, 2, 3), NONE, 0, (0, 0, 0), -INF, (0, 0, 0)),
    Line("one possible", (-INF, -INF, 1), ALL, 1, (0, 0, 1), 1, (INF, INF, 0)),
    Line("one +inf", (INF, 0, 1), ALL, 1, (1, 0, 0), INF, (0, INF, INF)),
    Line("one +inf, one −inf", (INF, -INF, 1), ALL, 1, (1, 0, 0), INF, (0, INF, INF)),
    Line("one +inf, T=0", (INF, 0, 1), ALL, 0, (1, 0, 0), INF, (0, INF, INF)),
    Line("far apart", (-6e4, 0, 6e4), ALL, 1, (0, 0, 1), 6e4, (1.2e5, 6e4, 0)),
    Line("T=0", (0, 0, 1), ALL, 0, (0, 0, 1), 1 + np.log1p(2 * np.exp(-1)), (NAN, NAN, 0)),
    Line("T=0, mask", (9, 0, 1), NOT_FIRST, 0, (0, 0, 1), 1 + C1, (INF, NAN, 0)),
    Line("T=0, −inf", (-INF, 0, 1), ALL, 0, (0, 0, 1), 1 + C1, (INF, NAN, 0)),
    Line("T=0, ties", (-INF, 1, 1), ALL, 0, (0, 0.5, 0.5), 1 + LOG2, (INF, LOG2, LOG2), smooth=False),
    Line("T=inf", (-3, 9, 5), (True, False, True), INF, (0.5, 0, 0.5), 5.0003354, (LOG2, INF, LOG2)),
    Line("T=inf, −inf", (-INF, 0, 1), ALL, INF, (0, 0.5, 0.5), 1 + C1, (INF, LOG2, LOG2)),
    Line("two +inf", (INF, INF, 1), ALL, 1, (NAN, NAN, NAN), INF, (NAN, NAN, NAN), False),
    Line("NaN", (NAN, 0, 1), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("NaN last", (0, 1, NAN), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("NaN and +inf", (NAN, INF, 1), ALL, 1, (NAN, NAN, NAN), NAN, (NAN, NAN, NAN), False),
    Line("all −inf", (-INF, -INF, -INF), ALL, 1, (NAN, NAN, NAN), -INF, (NAN, NAN, NAN), False),
    Line(
        "T<0", (0, 0, 1), ALL, -1, (NAN, NAN, NAN), 1 + np.log1p(2 * np.exp(-1)), (NAN, NAN, NAN), False
    ),
    Line(
        "T NaN",
        (0, 0, 1),
        ALL,
        NAN,
        (NAN, NAN, NAN),
        1 + np.log1p(2 * np.exp(-1)),
        (NAN, NAN, NAN),
        False,
    ),
)
CLEAN = tuple(line for line in TABLE if line.clean)
COTANGENT = np.array([1.0, 2.0, 4.0])


class Columns:
    """The lines as arrays, and what follows from them."""

    def __init__(self, lines: tuple[Line, ...], dtype: str):
        self.lines, self.names = lines, [line.name for line in lines]
        self.logits = jnp.asarray([line.logits for line in lines], dtype)
        self.where = np.array([line.where for line in lines])
        self.temperature = jnp.asarray([line.temperature for line in lines], jnp.float32)
        self.p = np.array([line.softmax for line in lines])
        self.logsumexp = np.array([line.logsumexp for line in lines])
        self.costs = np.array([line.costs for line in lines])
        # What is finite is as far below +inf as −inf below what is finite.
        raw = np.where(self.where, np.array([line.logits for line in lines]), -INF)
        self.possible = (raw != -INF) & ((raw == INF) | ~(raw == INF).any(-1, keepdims=True))
        self.defined = np.array([line.clean for line in lines])
        self.smooth = np.array([line.smooth for line in lines])
        # A gradient of 0 by T = 0 is 0: where one class has everything, nothing moves.
        self.t = np.where(np.array([line.temperature for line in lines]) == 0, 1, self.temperature)
        self.eps = float(jnp.finfo(dtype).eps)

    def agree(self, got: Any, true: np.ndarray, where: Any = True) -> None:
        tolerance = max(4e-6, self.eps)
        chosen = np.broadcast_to(
            np.reshape(
                where,
                np.shape(where) + (1,) * (true.ndim - 1) if np.ndim(where) == 1 else np.shape(where),
            ),
            true.shape,
        )
        found = np.where(chosen, np.asarray(got, np.float64), true)
        for name, row, expected in zip(self.names, found, true, strict=True):
            np.testing.assert_allclose(row, expected, tolerance, tolerance, err_msg=name)


def with_gradient(f: Callable[..., Any], by: Any, *primals: Any) -> tuple[Any, ...]:
    out, pull = jax.vjp(f, *primals)
    return out, *pull(jnp.broadcast_to(jnp.asarray(by, out.dtype), out.shape))


def jitted(f: Callable[..., Any], by: Any, *primals: Any) -> tuple[Any, ...]:
    return jax.jit(lambda *primals: with_gradient(f, by, *primals))(*primals)


class Form(NamedTuple):
    """How the lines are given to a function: what it is told; columns and rows that must not count."""

    mask: bool = True
    temperature: bool = True
    extra: int = 0
    rows: int = 0

    def lines(self, table: tuple[Line, ...]) -> tuple[Line, ...]:
        return tuple(
            line
            for line in table
            if (self.mask or all(line.where)) and (self.temperature or line.temperature == 1)
        )


# Rows of many classes take other ways than rows of few, and so do many rows, and calls without options.
FORMS = {
    "wide": Form(extra=30),
    "plain": Form(mask=False, temperature=False),
    "plain-many": Form(mask=False, temperature=False, rows=6000),
    "plain-wide": Form(mask=False, temperature=False, extra=30),
    "masked-wide": Form(temperature=False, extra=30),
}


def cases(
    lines: tuple[Line, ...], dtype: str, form: Form | None = None
) -> tuple[Columns, dict[str, tuple[Any, ...]]]:
    """Functions on the table: the call, its cotangent, and its primals."""
    form = form or Form()
    c = Columns(lines, dtype)
    both = (c.logits, c.temperature)

    def widened(x: Any, fill: Any) -> Any:
        padding = ((0, 0), (0, form.extra))
        return jnp.pad(x, padding, constant_values=fill) if form.extra else x

    def lengthened(x: Any) -> Any:
        return jnp.pad(x, ((0, form.rows),) + ((0, 0),) * (x.ndim - 1)) if form.rows else x

    def call(function: Callable[..., Any], z: Any, *labels: Any, **options: Any) -> Any:
        if form.mask:
            options["where"] = widened(c.where, False)
        if not form.temperature:
            options.pop("temperature", None)
        out = function(*map(lengthened, (widened(z, NAN if form.mask else -INF), *labels)), **options)
        return out[: len(lines), :3] if out.ndim == 2 else out[: len(lines)]

    found: dict[str, tuple[Any, ...]] = {
        "softmax": (lambda z, t: call(jsoftmax.softmax, z, temperature=t), COTANGENT, *both),
        "log_softmax": (lambda z, t: call(jsoftmax.log_softmax, z, temperature=t), COTANGENT, *both),
        "logsumexp": (lambda z: call(jsoftmax.logsumexp, z), 2.0, c.logits),
    }
    for label in range(3):
        ids = np.full(len(lines), label, np.int32)
        one_hot = jnp.asarray(np.arange(3) == ids[:, None], jnp.float32)
        found[f"integer {label}"] = (
            lambda z, t, ids=ids: call(jsoftmax.cross_entropy, z, ids, temperature=t),
            1.0, *both,
        )  # fmt: skip
        found[f"soft {label}"] = (
            lambda z, t, q: call(jsoftmax.cross_entropy, z, widened(q, 0), temperature=t),
            1.0, *both, one_hot,
        )  # fmt: skip
    return c, found


def check(c: Columns, name: str, got: tuple[Any, ...]) -> None:
    value, d_logits = np.asarray(got[0], np.float64), np.asarray(got[1], np.float64)
    t = c.t[:, None]
    with np.errstate(all="ignore"):
        if name == "softmax":
            c.agree(value, c.p)
            p = np.where(c.defined[:, None], c.p, 0)
            slope = p * (COTANGENT - np.sum(p * COTANGENT, -1, keepdims=True)) / t
            c.agree(d_logits, slope, c.defined & c.smooth)
        elif name == "log_softmax":
            # A row of one possible class is the only one whose log-probabilities go below float16.
            far = np.array(c.names) == "far apart"
            hot = c.temperature == 0
            c.agree(value, np.where(c.possible | ~c.defined[:, None], np.log(c.p), -INF), ~far & ~hot)
            heard = np.where(c.possible, COTANGENT, 0)
            slope = (heard - c.p * heard.sum(-1, keepdims=True)) / t
            inner = np.isfinite(np.where(c.defined[:, None], c.logits, NAN)).any(-1)
            one_inf = np.array([INF in line.logits for line in c.lines])
            c.agree(d_logits, np.where(c.possible, slope, 0), c.defined & inner & ~hot & ~one_inf)
        elif name == "logsumexp":
            c.agree(value, c.logsumexp)
            plain = np.array([line.temperature == 1 for line in c.lines])
            c.agree(d_logits, 2 * c.p, c.defined & plain)
        else:
            label = int(name[-1])
            skip = np.isnan(c.costs[:, label]) & c.defined
            c.agree(value, c.costs[:, label], ~skip)
            slope = np.where(c.possible, (c.p - (np.arange(3) == label)) / t, 0)
            slope = np.where((c.where.sum(-1) == 0)[:, None], 0, slope)
            settled = ~skip & c.smooth & ((c.temperature != 0) | (c.costs[:, label] == 0))
            c.agree(d_logits, slope, settled & c.defined)
            assert np.isnan(d_logits[~c.defined]).all()
            gone = ~c.possible & c.defined[:, None]
            assert not d_logits[gone].any()
            # NaN-free under masks: the temperature's gradient too, wherever it is not at its limit.
            moderate = c.defined & (np.asarray(c.temperature) > 0)
            assert np.isfinite(np.asarray(got[2]))[moderate].all()
            if not name.startswith("soft "):
                return
            surprise = np.where(c.possible & (c.p > 0), -np.log(c.p), 0)
            c.agree(np.where(c.possible & (c.p > 0), got[3], 0), surprise, c.defined)
            assert not np.asarray(got[3])[gone].any()
