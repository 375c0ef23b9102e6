"""Slow, independent references in extended precision. Nothing here imports jsoftmax."""
