"""What a model is predicted to say of a triple if some training triples had been left out."""

import numpy as np
import torch

from kgtrace_indexer.answers import WhatIf
from kgtrace_indexer.explaining.completions import Completions
from kgtrace_indexer.explaining.predictor import Predictor


def what_if(predictor: Predictor, completions: Completions, positions: np.ndarray, top_k: int) -> WhatIf:
    """Predict the scores of completions without training triples at places (m,). Raises the errors of `Predictor`."""
    target, training = completions.target, predictor.training
    changes = predictor.own_changes(completions, positions)
    before, after = completions.scores, completions.scores.copy()
    if len(positions):
        moves = predictor.moves({table: each.summed() for table, each in predictor.gradients(positions).items()})
        for entities in completions.blocks(1, np.ones(len(before), bool)):
            after[entities] += completions.changes(moves, 1, entities)[0].numpy()
    shown = predictor.rivals(completions)
    shown[target] = True
    ranked = torch.from_numpy(np.where(shown, after, -np.inf)).argsort(descending=True, stable=True)
    best = ranked[: min(top_k, int(shown.sum()))].numpy()
    calibration, score_after = predictor.calibration, float(after[target])
    half = 0.0 if calibration is None else calibration.half_width(score_after - float(before[target]))
    head, relation, tail = completions.triple.tolist()
    return WhatIf(
        triple=(head, relation, tail),
        train_index=np.asarray(training.train_index[positions]),
        triples=np.asarray(training.triples[positions]),
        changes=changes,
        score=float(before[target]),
        score_after=score_after,
        interval=None if calibration is None else (score_after - half, score_after + half),
        measured_on=None if calibration is None else calibration.measured_on,
        rank=predictor.rank(completions, before),
        rank_after=predictor.rank(completions, after),
        entities=best,
        scores=before[best],
        scores_after=after[best],
    )
