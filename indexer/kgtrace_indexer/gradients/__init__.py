"""Gradients as short sums of rank-1 terms: losses, selected layers, exact inner products, random projections.

Mathematics on tensors belongs here: no model, no file and no index.
"""
