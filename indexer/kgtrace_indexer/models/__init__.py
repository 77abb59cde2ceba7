"""From a model file to scores and gradients: ConvE by hand, PyKEEN's interactions, models of one's own."""
