"""Does it tell the truth? What happens to a prediction when the model is trained again without some training triples.

`graphs` and `training` make models, `scores` says what each method expects of a training triple. `lds` compares that with
what happened on random halves of the training triples, `deletion` with what happened without the triples that were named,
`groups` asks whether such effects add up, and `errors` which triples were made up.
"""
