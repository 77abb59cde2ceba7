"""Does it tell the truth? What happens to a prediction when the model is trained again without some training triples.

`graphs` and `training` make models, `scores` says what each method expects of a training triple, and `lds` compares what
methods expect of random halves of the training triples with what happened.
"""
