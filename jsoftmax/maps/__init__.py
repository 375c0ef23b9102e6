"""The maps: from scores to what stands in their place, in the shape and dtype they came in."""

from jsoftmax.maps.entmax import entmax as entmax
from jsoftmax.maps.entmax import sparsemax as sparsemax
from jsoftmax.maps.softmax import log_softmax as log_softmax
from jsoftmax.maps.softmax import logsumexp as logsumexp
from jsoftmax.maps.softmax import softmax as softmax
