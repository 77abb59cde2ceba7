"""What an index holds: codes of gradients, bounds from codes, the files, the training triples, the preconditioner."""
