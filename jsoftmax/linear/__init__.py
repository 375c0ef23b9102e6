"""Losses of `hidden @ kernel`, the head of a language model, in chunks."""

from jsoftmax.linear.chunked import chunked as chunked
from jsoftmax.linear.cross_entropy import linear_cross_entropy as linear_cross_entropy
from jsoftmax.linear.cross_entropy import linear_row_stats as linear_row_stats
