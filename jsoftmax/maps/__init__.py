"""The maps: from scores to what stands in their place, in the shape and dtype they came in."""

from jsoftmax.maps.softmax import log_softmax as log_softmax
from jsoftmax.maps.softmax import logsumexp as logsumexp
from jsoftmax.maps.softmax import softmax as softmax
