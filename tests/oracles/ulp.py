"""Errors in units in the last place of the output's dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tests.oracles.rows import REAL, real


def ulp(at: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The spacing of `dtype` at `at`; below the smallest normal number, the spacing there."""
    info = ml_dtypes.finfo(dtype)
    _, exponent = np.frexp(np.where(np.isfinite(at), at, 0))
    _, lowest = np.frexp(real(info.smallest_normal))
    exponent = np.where(at == 0, lowest, np.maximum(exponent, lowest))
    return np.ldexp(np.ones_like(at, dtype=REAL), exponent - 1 - info.nmant)


def ulp_error(
    got: ArrayLike, true: np.ndarray, *, slack: ArrayLike = 0.0, at: np.ndarray | None = None
) -> np.ndarray:
    """``|got - true| / ulp(true)``, in the dtype of `got`.

    `slack` is an absolute error that is not counted, above all what is lost because the hardware
    flushes subnormal float32 numbers to zero. `at` is where to take the unit when that is not
    `true` (a sum that cancels cannot be better than its terms). An infinity or nan is right (0)
    or infinitely wrong.
    """
    array = np.asarray(got)
    given, true = real(array), real(true)
    # The rounding threshold of the largest finite number is left to the conversion itself.
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = real(true.astype(np.float64).astype(array.dtype))
        agree = (given == rounded) | (np.isnan(given) & np.isnan(rounded))
        unit = ulp(true if at is None else at, array.dtype)
        error = np.maximum(np.abs(given - true) - slack, 0) / unit
    finite = np.isfinite(given) & np.isfinite(rounded)
    return np.where(finite, error, np.where(agree, 0, np.inf)).astype(np.float64)
