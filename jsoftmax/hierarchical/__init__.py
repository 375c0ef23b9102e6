"""Many classes for the price of few: a softmax over a tree.

The work for a label is the length of its way from the root, not the number of classes.
"""

from jsoftmax.hierarchical.adaptive import adaptive_cross_entropy as adaptive_cross_entropy
from jsoftmax.hierarchical.adaptive import adaptive_log_softmax as adaptive_log_softmax
from jsoftmax.hierarchical.adaptive_decoding import adaptive_sample as adaptive_sample
from jsoftmax.hierarchical.adaptive_decoding import adaptive_top_k as adaptive_top_k
from jsoftmax.hierarchical.adaptive_params import AdaptiveParams as AdaptiveParams
from jsoftmax.hierarchical.adaptive_params import adaptive_cutoffs as adaptive_cutoffs
from jsoftmax.hierarchical.adaptive_params import adaptive_init as adaptive_init
from jsoftmax.hierarchical.build import balanced_tree as balanced_tree
from jsoftmax.hierarchical.build import huffman_tree as huffman_tree
from jsoftmax.hierarchical.build import two_level_tree as two_level_tree
from jsoftmax.hierarchical.decoding import Greedy as Greedy
from jsoftmax.hierarchical.decoding import TopK as TopK
from jsoftmax.hierarchical.decoding import greedy as greedy
from jsoftmax.hierarchical.decoding import sample as sample
from jsoftmax.hierarchical.decoding import top_k as top_k
from jsoftmax.hierarchical.loss import hierarchical_cross_entropy as hierarchical_cross_entropy
from jsoftmax.hierarchical.loss import hierarchical_log_softmax as hierarchical_log_softmax
from jsoftmax.hierarchical.loss import node_log_probs as node_log_probs
from jsoftmax.hierarchical.negatives import Negatives as Negatives
from jsoftmax.hierarchical.negatives import draw_negatives as draw_negatives
from jsoftmax.hierarchical.proposals import AliasTable as AliasTable
from jsoftmax.hierarchical.proposals import LogUniform as LogUniform
from jsoftmax.hierarchical.proposals import Proposal as Proposal
from jsoftmax.hierarchical.proposals import Uniform as Uniform
from jsoftmax.hierarchical.proposals import unigram_proposal as unigram_proposal
from jsoftmax.hierarchical.relatives import smooth_over_tree as smooth_over_tree
from jsoftmax.hierarchical.relatives import tree_distance as tree_distance
from jsoftmax.hierarchical.row_optimizers import row_adagrad as row_adagrad
from jsoftmax.hierarchical.row_optimizers import row_adam as row_adam
from jsoftmax.hierarchical.row_optimizers import row_sgd as row_sgd
from jsoftmax.hierarchical.rows import RowGradients as RowGradients
from jsoftmax.hierarchical.rows import apply_row_updates as apply_row_updates
from jsoftmax.hierarchical.rows import row_gradients as row_gradients
from jsoftmax.hierarchical.sampled import noise_contrastive_loss as noise_contrastive_loss
from jsoftmax.hierarchical.sampled import sampled_cross_entropy as sampled_cross_entropy
from jsoftmax.hierarchical.sampled import sampled_log_normalizer as sampled_log_normalizer
from jsoftmax.hierarchical.sampled import sampled_row_gradients as sampled_row_gradients
from jsoftmax.hierarchical.taxonomies import NamedTree as NamedTree
from jsoftmax.hierarchical.taxonomies import tree_from_names as tree_from_names
from jsoftmax.hierarchical.taxonomies import tree_from_parents as tree_from_parents
from jsoftmax.hierarchical.tree import Tree as Tree
