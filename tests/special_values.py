"""The golden table: what comes back for infinities, NaN, masks, extreme temperatures and odd labels.

Every line is one row of a batch, so that a row that is NaN also shows that it stays alone. Functions
of `jsoftmax.hierarchical` meet the same lines through the heads of `tests.hierarchical_heads`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jsoftmax
from tests.hierarchical_heads import HEADS, Head, function_of_logits

INF, NAN = np.inf, np.nan
ALL, NOT_FIRST, NONE = (True, True, True), (False, True, True), (False, False, False)
# softmax and costs of the logits 0 and 1
P0, P1 = 0.2689414213699951, 0.7310585786300049
C0, C1 = 1.3132616875182228, 0.3132616875182228
LOG2 = 0.6931471805599453
# With the integer dtype of the labels of the functions that have no other test of small ones.
DTYPES = {"float32": "int32", "bfloat16": "int8", "float16": "uint8"}
IGNORED = -100


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
    label: int | None = None  # the row's own, for class indices alone; otherwise each in its turn


LOGITS = (
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
    Line("±200", (-200, 0, 200), ALL, 1, (np.exp(-400), np.exp(-200), 1), 200, (400, 200, 0)),
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


def labelled(name: str, *labels: int) -> tuple[Line, ...]:
    line = next(line for line in LOGITS if line.name == name)
    return tuple(
        line._replace(name=f"{name}, label {label}", label=label, clean=label == IGNORED)
        for label in labels
    )


TABLE = (
    *LOGITS,
    # An ignored row may hold anything.
    *labelled("plain", IGNORED),
    *labelled("±200", IGNORED),
    *labelled("NaN", IGNORED),
    *labelled("two +inf", IGNORED),
    # What IGNORED and −1 wrap to without a sign is no class either.
    *labelled("±200", -1, 3, 127, 256 + IGNORED, 255, np.iinfo(np.int32).max, np.iinfo(np.int32).min),
)
CLEAN = tuple(line for line in TABLE if line.clean)
COTANGENT = np.array([1.0, 2.0, 4.0])


class Columns:
    """The lines as arrays, and what follows from them."""

    def __init__(self, lines: tuple[Line, ...], dtype: str, label: int | None = None):
        self.lines, self.names = lines, [line.name for line in lines]
        logits = np.reshape([line.logits for line in lines], (-1, 3))
        self.logits = jnp.asarray(logits, dtype)
        self.where = np.reshape([line.where for line in lines], (-1, 3))
        self.temperature = jnp.asarray([line.temperature for line in lines], jnp.float32)
        self.p = np.reshape([line.softmax for line in lines], (-1, 3))
        self.logsumexp = np.array([line.logsumexp for line in lines])
        self.costs = np.reshape([line.costs for line in lines], (-1, 3))
        # What is finite is as far below +inf as −inf below what is finite.
        raw = np.where(self.where, logits, -INF)
        self.possible = (raw != -INF) & ((raw == INF) | ~(raw == INF).any(-1, keepdims=True))
        self.smooth = np.array([line.smooth for line in lines], bool)
        # A gradient of 0 by T = 0 is 0: where one class has everything, nothing moves.
        self.t = np.where(np.array([line.temperature for line in lines]) == 0, 1, self.temperature)
        self.eps = float(jnp.finfo(dtype).eps)
        given = [label if line.label is None else line.label for line in lines]
        self.labels = np.array([0 if y is None else y for y in given], np.int64)
        self.ignored = self.labels == IGNORED
        known = (self.labels >= 0) & (self.labels < 3)
        clean = np.array([line.clean for line in lines], bool)
        self.defined = clean & known | self.ignored
        self.is_label = np.arange(3) == self.labels[:, None]
        self.cost = np.where(known, np.sum(np.where(self.is_label, self.costs, 0), -1), NAN)
        self.cost = np.where(self.ignored, 0, self.cost)

    def as_noise(self, dtype: str) -> None:
        """Each class is told from noise by a sigmoid of its own, whatever the others are."""
        z = np.asarray(jnp.asarray(self.logits, dtype), np.float64)
        with np.errstate(all="ignore"):
            self.p = np.where(z < 0, np.exp(z) / (1 + np.exp(z)), 1 / (1 + np.exp(-z)))
            costs = np.logaddexp(0, np.where(self.is_label, -z, z)).sum(-1)
        known = self.is_label.any(-1)
        self.cost = np.where(self.ignored, 0, np.where(known, costs, NAN))
        self.possible = np.ones_like(self.possible)
        self.defined = known & ~np.isnan(z).any(-1) | self.ignored

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


class Problem(NamedTuple):
    """A function on the lines it can take, with what it has to return, in `run(*problem.call)`."""

    kind: str  # softmax, log_softmax, logsumexp; integer, soft or noise losses
    columns: Columns
    call: tuple[Any, ...]  # the function, its cotangent, and its primals, logits first
    head: Head | None = None


def cases(lines: tuple[Line, ...], dtype: str, form: Form | None = None) -> dict[str, Problem]:
    """The functions of logits on the table."""
    form = form or Form()
    unlabelled = tuple(line for line in lines if line.label is None)
    c = Columns(unlabelled, dtype)
    both = (c.logits, c.temperature)

    def widened(x: Any, fill: Any) -> Any:
        padding = ((0, 0), (0, form.extra))
        return jnp.pad(x, padding, constant_values=fill) if form.extra else x

    def lengthened(x: Any) -> Any:
        return jnp.pad(x, ((0, form.rows),) + ((0, 0),) * (x.ndim - 1)) if form.rows else x

    def call(c: Columns, function: Callable[..., Any], z: Any, *labels: Any, **options: Any) -> Any:
        if form.mask:
            options["where"] = widened(c.where, False)
        if not form.temperature:
            options.pop("temperature", None)
        out = function(*map(lengthened, (widened(z, NAN if form.mask else -INF), *labels)), **options)
        return out[: len(c.lines), :3] if out.ndim == 2 else out[: len(c.lines)]

    def maps(kind: str, function: Callable[..., Any]) -> Problem:
        return Problem(kind, c, (lambda z, t: call(c, function, z, temperature=t), COTANGENT, *both))

    found = {
        "softmax": maps("softmax", jsoftmax.softmax),
        "log_softmax": maps("log_softmax", jsoftmax.log_softmax),
        "logsumexp": Problem("logsumexp", c, (lambda z: call(c, jsoftmax.logsumexp, z), 2.0, c.logits)),
    }
    for label in range(3):
        own = Columns(lines, dtype, label)
        # Classes that are added must not make a class of a label.
        ids = np.where(own.labels < 3, own.labels, own.labels + form.extra)
        ids = ids.clip(max=2**31 - 1).astype(np.int32)
        found[f"integer {label}"] = Problem(
            "integer",
            own,
            (
                lambda z, t, own=own, ids=ids: call(
                    own, jsoftmax.cross_entropy, z, ids, temperature=t, ignore_index=IGNORED
                ),
                1.0, own.logits, own.temperature,
            ),
        )  # fmt: skip
        soft = Columns(unlabelled, dtype, label)
        found[f"soft {label}"] = Problem(
            "soft",
            soft,
            (
                lambda z, t, q: call(c, jsoftmax.cross_entropy, z, widened(q, 0), temperature=t),
                1.0, *both, jnp.asarray(soft.is_label, jnp.float32),
            ),
        )  # fmt: skip
    return found


def hierarchical_case(name: str, lines: tuple[Line, ...], dtype: str, way: str) -> Problem:
    """A function of `jsoftmax.hierarchical` on the table, each row with each label at once."""
    head = HEADS[name]
    lines = Form(mask=False, temperature=False).lines(lines)
    if head.kind in ("integer", "noise", "soft"):
        lines = tuple(
            line._replace(name=f"{line.name} at {y}", label=y)
            for line in lines
            for y in (range(3) if line.label is None else (line.label,))
            if line.label is None or head.kind != "soft"
        )
    else:
        lines = tuple(line for line in lines if line.label is None)

    def fits(line: Line) -> bool:
        ignored, z = line.label == IGNORED, np.array([line.logits], np.float64)
        if not head.knows(line.label or 0, DTYPES[dtype]) or (head.classes[0] < 0 and z[0, 0] != -INF):
            return False
        with np.errstate(all="ignore"):
            given = np.asarray(jnp.asarray(head.scores(z)[0], dtype), np.float64)
        if way == "hidden":
            # Elsewhere a hidden vector of infinities gives 0 · inf.
            return ignored or bool(np.isnan(z).any() or np.isfinite(given).all())
        # A label of no class need not reach the bias of these, and sigmoids are NaN one by one.
        known = ignored or line.label is None or line.label in range(3)
        alone = head.kind == "noise" and not ignored and np.isnan(z).any()
        return known and not alone and not bool(np.isinf(given[:, head.biases :]).any())

    c = Columns(tuple(filter(fits, lines)), dtype)
    if head.kind == "noise":
        c.as_noise("float32" if way == "bias" else dtype)
    indices = head.kind in ("integer", "noise")
    labels = head.ids(c.labels, DTYPES[dtype]) if indices else None
    f = function_of_logits(head, np.asarray(c.logits, np.float64), labels, dtype, way)
    by = {"log_softmax": COTANGENT, "logsumexp": 2.0}.get(head.kind, 1.0)
    soft = [jnp.asarray(c.is_label, jnp.float32)] if head.kind == "soft" else []
    return Problem(head.kind, c, (f, by, c.logits, jnp.asarray(head.shared, dtype), *soft), head)


def check(problem: Problem, got: tuple[Any, ...]) -> None:
    kind, c, _, head = problem
    value, d_logits = np.asarray(got[0], np.float64), np.asarray(got[1], np.float64)
    t = c.t[:, None]
    if head is not None and c.defined.all():
        # Rows that do not count must not reach what all rows share.
        assert np.isfinite(np.asarray(got[2])).all()
    with np.errstate(all="ignore"):
        if kind == "softmax":
            c.agree(value, c.p)
            p = np.where(c.defined[:, None], c.p, 0)
            slope = p * (COTANGENT - np.sum(p * COTANGENT, -1, keepdims=True)) / t
            c.agree(d_logits, slope, c.defined & c.smooth)
        elif kind == "log_softmax":
            # A row of one possible class is the only one whose log-probabilities go below float16.
            far = np.array(c.names) == "far apart"
            hot = c.temperature == 0
            if head is None:
                c.agree(
                    value, np.where(c.possible | ~c.defined[:, None], np.log(c.p), -INF), ~far & ~hot
                )
            else:
                c.agree(value, -c.costs)
                assert np.isfinite(d_logits[c.defined]).all()
            heard = np.where(c.possible, COTANGENT, 0)
            slope = (heard - c.p * heard.sum(-1, keepdims=True)) / t
            inner = np.isfinite(np.where(c.defined[:, None], c.logits, NAN)).any(-1)
            one_inf = np.array([INF in line.logits for line in c.lines], bool)
            # An impossible class has a log-probability of two terms in a tree: one of them may move.
            exact = True if head is None else c.possible.all(-1)
            c.agree(
                d_logits, np.where(c.possible, slope, 0), c.defined & inner & ~hot & ~one_inf & exact
            )
        elif kind == "logsumexp":
            c.agree(value, c.logsumexp)
            plain = np.array([line.temperature == 1 for line in c.lines], bool)
            c.agree(d_logits, 2 * c.p, c.defined & plain)
        else:
            skip = np.isnan(c.cost) & c.defined
            c.agree(value, c.cost, ~skip)
            slope = np.where(c.possible, (c.p - c.is_label) / t, 0)
            slope = np.where(((c.where.sum(-1) == 0) | c.ignored)[:, None], 0, slope)
            settled = ~skip & c.smooth & ((c.temperature != 0) | (c.cost == 0)) & c.defined
            # Where the loss is infinite in a tree, the steps behind the impossible one may move.
            exact = np.isfinite(c.cost) | (head is None)
            c.agree(d_logits, slope, settled & exact)
            assert np.isfinite(d_logits[settled]).all()
            assert np.isnan(d_logits[~c.defined]).all()
            gone = ~c.possible & (c.defined & exact)[:, None]
            assert not d_logits[gone].any()
            if head is None:
                # NaN-free under masks: the temperature's gradient too, but at its limit.
                moderate = c.defined & (np.asarray(c.temperature) > 0)
                assert np.isfinite(np.asarray(got[2]))[moderate].all()
            if kind != "soft":
                return
            surprise = np.where(c.possible & (c.p > 0), -np.log(c.p), 0)
            c.agree(np.where(c.possible & (c.p > 0), got[3], 0), surprise, c.defined)
            if head is None:
                assert not np.asarray(got[3])[gone].any()
            else:
                assert not np.isnan(np.asarray(got[3])[c.defined]).any()
