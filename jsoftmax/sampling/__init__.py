"""Draws from a softmax, and gradients through them. Every function takes a key first."""

from jsoftmax.sampling.categorical import categorical as categorical
from jsoftmax.sampling.categorical import sample as sample
from jsoftmax.sampling.estimators import (
    rao_blackwell_gumbel_softmax as rao_blackwell_gumbel_softmax,
)
from jsoftmax.sampling.estimators import reinmax as reinmax
from jsoftmax.sampling.estimators import straight_through as straight_through
from jsoftmax.sampling.gumbel import gumbel_softmax as gumbel_softmax
from jsoftmax.sampling.gumbel import gumbel_top_k as gumbel_top_k
