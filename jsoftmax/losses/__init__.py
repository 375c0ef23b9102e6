"""The optax-compatible loss API: `from jsoftmax import losses` in place of `from optax import losses`.

The functions that optax has too keep its names, signatures and order of arguments. They return
float32 or wider for any input dtype, and one value per row.
"""

from jsoftmax.losses.bi_tempered import bi_tempered_logistic_loss as bi_tempered_logistic_loss
from jsoftmax.losses.divergences import generalized_kl_divergence as generalized_kl_divergence
from jsoftmax.losses.divergences import kl_divergence as kl_divergence
from jsoftmax.losses.divergences import (
    kl_divergence_with_log_targets as kl_divergence_with_log_targets,
)
from jsoftmax.losses.divergences import smooth_labels as smooth_labels
from jsoftmax.losses.logistic import multilabel_cross_entropy as multilabel_cross_entropy
from jsoftmax.losses.logistic import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jsoftmax.losses.logistic import sigmoid_focal_loss as sigmoid_focal_loss
from jsoftmax.losses.softmax import generalized_cross_entropy as generalized_cross_entropy
from jsoftmax.losses.softmax import poly_loss_cross_entropy as poly_loss_cross_entropy
from jsoftmax.losses.softmax import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from jsoftmax.losses.softmax import softmax_cross_entropy as softmax_cross_entropy
from jsoftmax.losses.softmax import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from jsoftmax.losses.softmax import softmax_focal_loss as softmax_focal_loss
from jsoftmax.losses.sparse import EntmaxStats as EntmaxStats
from jsoftmax.losses.sparse import entmax_loss as entmax_loss
from jsoftmax.losses.sparse import entmax_stats as entmax_stats
from jsoftmax.losses.sparse import fenchel_young_loss as fenchel_young_loss
from jsoftmax.losses.sparse import make_fenchel_young_loss as make_fenchel_young_loss
from jsoftmax.losses.sparse import multiclass_sparsemax_loss as multiclass_sparsemax_loss
from jsoftmax.losses.sparse import sparsemax_loss as sparsemax_loss
