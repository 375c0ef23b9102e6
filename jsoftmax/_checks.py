"""What can be known before tracing: shapes, dtypes, options. Every error has one text form.

`function: argument must have what, in axis names, got what; remedy.`

Values that are traced are not checked here; the functions answer those with NaN.

Imports `_typing`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsoftmax._typing import Array, Axis, Shape


def dtype_of(function: str, name: str, x: Any) -> Any:
    """The dtype of a number or an array; refuses what has none.

    A list has none: it would be a tree of numbers to `jit`, and a text or `None` is one to NumPy alone.
    """
    array = hasattr(x, "dtype") and hasattr(x, "shape") and not isinstance(x, type)
    try:
        if array or hasattr(x, "__jax_array__") or isinstance(x, int | float | complex):
            return jnp.result_type(x)
    except TypeError:
        # An array of NumPy that holds no numbers.
        pass
    raise TypeError(
        f"{function}: {name} must be a number or an array, got {_shown(x)}; make it one with "
        "jnp.asarray."
    )


def _shown(x: Any) -> str:
    """What was got, in few words: what is no array may be long, or hold traced values."""
    if x is None or isinstance(x, str | int | float | complex | np.generic):
        return repr(x)
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    return f"a {type(x).__name__}"


def floating(function: str, name: str, x: Any) -> None:
    """Refuses what is not a real floating array."""
    dtype = dtype_of(function, name, x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{function}: {name} must have a floating dtype, got {dtype}; "
            f"convert with {name}.astype(jnp.float32)."
        )


def floating_dtype(function: str, name: str, x: Any, remedy: str) -> None:
    """Refuses what names no floating dtype."""
    try:
        dtype = jnp.dtype(x)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        got = repr(x) if dtype is None else dtype
        raise TypeError(f"{function}: {name} must be a floating dtype, got {got}; {remedy}")


def axes(function: str, axis: Axis | None, ndim: int, none: bool = False) -> tuple[int, ...]:
    """The class axes as non-negative numbers in the order given; `None` means all.

    If `none`, there may be none, and every number is a row of one class; as where all of none are.
    """
    given = range(ndim) if axis is None else axis if isinstance(axis, tuple | list) else [axis]
    found = []
    for a in given:
        if isinstance(a, bool) or not isinstance(a, int | np.integer):
            raise TypeError(
                f"{function}: axis must be an int or a tuple of ints, got {axis!r}; "
                "pass Python integers."
            )
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{function}: axis must be in [{-ndim}, {ndim}) for an array of {ndim} dimensions, "
                f"got {a}; count from 0, or from −1 backwards."
            )
        found.append(int(a) % ndim)
    if not found and axis is not None and not none:
        raise ValueError(
            f"{function}: axis must name at least one class axis, got {axis!r}; name those that hold "
            "the classes."
        )
    if len(set(found)) != len(found):
        raise ValueError(
            f"{function}: axis must name each class axis once, got {axis!r}; remove repeats."
        )
    return tuple(found)


def labels(function: str, logits: Shape, batch: Shape, y: Any, match: str | None = None) -> bool:
    """Checks labels against logits, or what stands for them; returns whether they are class indices."""
    like = "like logits" if match is None else f"to match {match}"
    match = f"logits {list(logits)}" if match is None else match
    dtype, shape = jnp.result_type(y), np.shape(y)
    if jnp.issubdtype(dtype, jnp.integer):
        if shape != batch:
            wrong = len(shape) == len(batch) + 1
            hint = (
                "class indices have no class axis, squeeze the last one."
                if wrong and shape[-1:] == (1,)
                else "give distributions over the classes a floating dtype."
                if shape == logits
                else "pass one class index per row."
            )
            raise ValueError(
                f"{function}: labels must have shape [*batch] = {list(batch)} to match {match}, "
                f"got {list(shape)}; {hint}"
            )
        return True
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{function}: labels must be class indices of an integer dtype or distributions of a "
            f"floating dtype, got {dtype}; convert with labels.astype(jnp.int32)."
        )
    if shape == batch != logits:
        raise TypeError(
            f"{function}: class indices [*batch] = {list(batch)} must have an integer dtype, got "
            f"{dtype}; convert with labels.astype(jnp.int32)."
        )
    if shape != logits:
        raise ValueError(
            f"{function}: labels that are distributions must have shape [*batch, classes] = "
            f"{list(logits)} {like}, got {list(shape)}; broadcast them explicitly."
        )
    return False


def ignored(function: str, ignore_index: Any, indices: bool) -> None:
    """Refuses an `ignore_index` beside labels that are distributions."""
    if ignore_index is not None and not indices:
        raise ValueError(
            f"{function}: ignore_index must be None for labels that are distributions, got "
            f"{ignore_index}; leave rows out with weighted_mean(losses, weights)."
        )


def mask(function: str, x: Shape, where: Any, name: str = "logits") -> None:
    """Refuses a class mask that is not boolean or does not broadcast to the logits."""
    if where is None:
        return
    dtype = dtype_of(function, "where", where)
    if dtype != jnp.bool_:
        raise TypeError(
            f"{function}: where must have dtype bool, got {dtype}; convert with where != 0."
        )
    broadcastable(function, "where", np.shape(where), x, name)


def broadcastable(function: str, name: str, shape: Shape, x: Shape, to: str) -> None:
    """Refuses a shape that does not broadcast to `x` without growing it."""
    fits = len(shape) <= len(x) and all(a in (1, b) for a, b in zip(shape[::-1], x[::-1], strict=False))
    if not fits:
        raise ValueError(
            f"{function}: {name} must broadcast to {to} [*batch, classes] = {list(x)}, "
            f"got {list(shape)}; insert the missing axes with {name}[..., None]."
        )


def per_row(function: str, name: str, x: Any, batch: Shape, axes: str = "[*batch]") -> None:
    """Refuses a number that is neither one for all nor one per row."""
    number_like(function, name, x)
    if np.shape(x) not in ((), batch):
        raise ValueError(
            f"{function}: {name} must be a scalar or have shape {axes} = {list(batch)}, "
            f"got {list(np.shape(x))}; one value per row."
        )


def scalar(function: str, name: str, x: Any) -> None:
    """Refuses an array where one number is expected."""
    number_like(function, name, x)
    if np.shape(x) != ():
        raise ValueError(
            f"{function}: {name} must be a scalar, got shape {list(np.shape(x))}; "
            "map over several values with jax.vmap."
        )


def number_like(function: str, name: str, x: Any) -> None:
    """Refuses what is not a real number or an array of them."""
    dtype = None if isinstance(x, str) or x is None else dtype_of(function, name, x)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{function}: {name} must be a real number, got {_shown(x)}; pass a float.")


def weights(function: str, x: Any, batch: Shape, match: str) -> None:
    """Refuses weights of rows that are not real or bool, or not one for each row."""
    dtype = dtype_of(function, "weights", x)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(
            f"{function}: weights must have a real or bool dtype, got {dtype}; take the real part."
        )
    if np.shape(x) != batch:
        raise ValueError(
            f"{function}: weights must have shape [*batch] = {list(batch)} {match}, "
            f"got {list(np.shape(x))}; broadcast them explicitly."
        )


def integer(function: str, name: str, x: Any) -> None:
    """Refuses what is not one integer that is known before tracing."""
    if isinstance(x, bool) or not isinstance(x, int | np.integer):
        raise TypeError(f"{function}: {name} must be an integer, got {_shown(x)}; pass a Python int.")


def flag(function: str, name: str, x: Any) -> None:
    """Refuses what is neither true nor false, such as a text, which counts as true."""
    if not isinstance(x, bool | np.bool_):
        raise TypeError(f"{function}: {name} must be True or False, got {_shown(x)}; pass a bool.")


def callback(function: str, name: str, x: Any, of: str) -> None:
    """Refuses what cannot be called."""
    if not callable(x):
        raise TypeError(f"{function}: {name} must be a function of {of}, got {_shown(x)}; pass one.")


def number(function: str, name: str, x: Any, holds: Callable[[Any], bool], rule: str) -> None:
    """Refuses a number of Python or NumPy out of range; arrays of JAX are left to NaN."""
    x = known_number(x)
    if isinstance(x, bool | str | complex | np.complexfloating):
        raise TypeError(f"{function}: {name} must be a real number, got {x!r}; pass a float.")
    if isinstance(x, int | float | np.number) and not holds(x):
        raise ValueError(f"{function}: {name} must be {rule}, got {x}; choose a value in range.")


def known_number(x: Any) -> Any:
    """The number that an array of NumPy without axes holds; anything else as it is."""
    return x[()] if isinstance(x, np.ndarray) and x.shape == () else x


def class_vector(function: str, name: str, x: Any, logits: Shape, scalar: bool = False) -> None:
    """Refuses what is not a real number for each class, or, if that will do, one for all."""
    number_like(function, name, x)
    shape = np.shape(x)
    if shape != logits[-1:] and not (scalar and shape == ()):
        raise ValueError(
            f"{function}: {name} must have shape [classes] = {list(logits[-1:])} to match logits "
            f"{list(logits)}, got {list(shape)}; one value per class."
        )


def vector(function: str, name: str, x: Any, axis: str, size: int) -> None:
    """Refuses what is not one floating number for each of something."""
    number_like(function, name, x)
    if np.shape(x) != (size,):
        raise ValueError(
            f"{function}: {name} must have shape [{axis}] = [{size}], got {list(np.shape(x))}; "
            "one value each."
        )


def rows_of(
    function: str, name: str, hidden: Array, kernel_name: str, kernel: Array, axes: str, rows: int
) -> None:
    """Refuses hidden vectors, and a kernel of a row for each score, that do not fit each other."""
    floating(function, name, hidden)
    floating(function, kernel_name, kernel)
    if hidden.ndim == 0:
        raise ValueError(
            f"{function}: {name} must have shape [*batch, features], got []; the last axis holds the "
            "features."
        )
    expected = (rows, hidden.shape[-1])
    if kernel.shape != expected:
        hint = "transpose it." if kernel.shape == expected[::-1] else "it is gathered by rows."
        raise ValueError(
            f"{function}: {kernel_name} must have shape {axes} = {list(expected)} to match {name} "
            f"{list(hidden.shape)}, got {list(kernel.shape)}; {hint}"
        )


def known_vector(
    function: str, name: str, x: Any, each: str, axis: str, made: str = "tree"
) -> np.ndarray:
    """What is a vector known before tracing, on the host; refuses anything else."""
    try:
        vector = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        raise TypeError(
            f"{function}: {name} must be known before tracing, got a traced array; make the "
            f"{made} outside and pass it as an argument."
        ) from None
    if vector.ndim != 1:
        raise ValueError(
            f"{function}: {name} must have shape [{axis}], got {list(vector.shape)}; pass one number "
            f"per {each}."
        )
    return vector


def key(function: str, x: Any) -> Array:
    """A key of `jax.random`, typed or raw; refuses anything else, several keys among them."""
    keys = array(function, "key", x)
    typed = jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not typed and keys.dtype != jnp.uint32:
        raise TypeError(
            f"{function}: key must be a key of jax.random, got {keys.dtype}{list(keys.shape)}; make "
            "one with jax.random.key(seed)."
        )
    if keys.ndim != (0 if typed else 1):
        raise ValueError(
            f"{function}: key must be one key, got {keys.dtype}{list(keys.shape)}; map over several "
            "with jax.vmap."
        )
    return keys


def indices_only(function: str, name: str, y: Array, remedy: str) -> None:
    """Refuses distributions where something is about class indices."""
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"{function}: {name} must have an integer dtype, got {y.dtype}; {remedy}")


def one_of(function: str, name: str, x: Any, known: Sequence[str]) -> None:
    """Refuses an option that is not among the known ones."""
    if x not in known:
        raise ValueError(
            f"{function}: {name} must be one of {', '.join(map(repr, known))}, got {x!r}; "
            "check the spelling."
        )


def unless_neutral(x: Any, neutral: float) -> Any:
    """`None` for a known number that changes nothing, so that its code is not even traced."""
    return None if isinstance(known_number(x), int | float | np.number) and x == neutral else x


def array(function: str, name: str, x: Any) -> Array:
    """An array of JAX from whatever NumPy or JAX takes, tracers left as they are; refuses the rest."""
    if isinstance(x, jax.Array):
        return x
    try:
        # A text is an array to NumPy alone; JAX would look for a dtype of that name.
        return jnp.asarray(np.asarray(x) if isinstance(x, str) else _held(on_host(x)))
    except (TypeError, ValueError) as misfit:
        raise TypeError(
            f"{function}: {name} must be an array of numbers, got {_shown(x)}; pass an array of JAX or "
            "NumPy."
        ) from misfit


def on_host(x: Any) -> Any:
    """Python integers, or lists of them, in a dtype of NumPy that holds them; else `x`."""
    leaves = jax.tree.leaves(x) if isinstance(x, list | tuple | int) else []
    whole = [isinstance(leaf, int | np.integer) and not isinstance(leaf, bool) for leaf in leaves]
    return np.asarray(x) if whole and all(whole) else x


def _held(x: Any) -> Any:
    """Integers wider than those of JAX at the ends of its range.

    A label that is out of range stays so: a cast would wrap it to one that is not.
    """
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind not in "iu":
        return x
    info = jnp.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
    return x if info.bits >= jnp.iinfo(x.dtype).bits else np.clip(x, info.min, info.max)
