"""How accurate and how fast configurations are, measured against the exact answer on one's own model.

::

    configurations ─► accuracy (measures; findings go into the journal) ─┐
                   └► speed (plain_loop) ────────────────────────────────┴─► run
"""

from kgtrace_indexer.evaluation.configurations import Configuration
from kgtrace_indexer.evaluation.findings import Accuracy
from kgtrace_indexer.evaluation.run import Evaluation, Measured, MeasuredIndex, evaluate

__all__ = ["Accuracy", "Configuration", "Evaluation", "Measured", "MeasuredIndex", "evaluate"]
