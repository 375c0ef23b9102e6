"""Names for what the signatures take. Imports nothing of this package."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
from jax.typing import ArrayLike as ArrayLike

Array: TypeAlias = jax.Array
Axis: TypeAlias = int | Sequence[int]
Shape: TypeAlias = tuple[int, ...]
