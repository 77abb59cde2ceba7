"""Files that a user hands over: models, triples, id maps; and samples of triples."""
