"""Softmax, and everything that is trained through it."""

from jsoftmax import hierarchical as hierarchical
from jsoftmax import losses as losses
from jsoftmax import sampling as sampling
from jsoftmax.autodiff import custom_vjp as custom_vjp
from jsoftmax.dense import cross_entropy as cross_entropy
from jsoftmax.dense import row_stats as row_stats
from jsoftmax.linear import chunked as chunked
from jsoftmax.linear import linear_cross_entropy as linear_cross_entropy
from jsoftmax.linear import linear_row_stats as linear_row_stats
from jsoftmax.maps import entmax as entmax
from jsoftmax.maps import log_softmax as log_softmax
from jsoftmax.maps import logsumexp as logsumexp
from jsoftmax.maps import softmax as softmax
from jsoftmax.maps import sparsemax as sparsemax
from jsoftmax.reductions import weighted_mean as weighted_mean
from jsoftmax.statistics import RowStats as RowStats
from jsoftmax.transforms import LogitAdjustment as LogitAdjustment
from jsoftmax.transforms import LogitTransform as LogitTransform
from jsoftmax.transforms import Margin as Margin
from jsoftmax.transforms import Softcap as Softcap
from jsoftmax.transforms import Temperature as Temperature
from jsoftmax.transforms import chain as chain
