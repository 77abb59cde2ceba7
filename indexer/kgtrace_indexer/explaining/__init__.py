"""Sets of training triples: predicted scores without them, and the smallest set that a prediction needs."""
