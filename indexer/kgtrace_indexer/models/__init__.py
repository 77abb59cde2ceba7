"""From a model file to scores and gradients: ConvE by hand, PyKEEN's interactions, models of one's own.

All code that runs a model belongs here; the rooms above meet models as a `Featurizer`.
"""
