"""PyTorch Geometric's ``torch_geometric.nn.kge``: state dicts and whole modules."""

from kgtrace_indexer.inputs.frameworks.described import Score
from kgtrace_indexer.inputs.frameworks.known import Framework, Known

_NODES = ("node_emb.weight", "node_emb_im.weight")
_RELATIONS = ("rel_emb.weight", "rel_emb_im.weight")

PYG = Framework(
    title="PyTorch Geometric",
    prefix="PyG",
    package="torch_geometric.nn.kge",
    models={
        "TransE": Known(
            Score("Translation", _NODES[:1], _RELATIONS[:1]),
            {"p_norm": 1.0},
            lambda arguments, _: {"p": arguments["p_norm"], "entity_norm": arguments["p_norm"]},
        ),
        "DistMult": Known(Score("DistMult", _NODES[:1], _RELATIONS[:1])),
        "ComplEx": Known(Score("ComplEx", _NODES, _RELATIONS)),
        "RotatE": Known(
            Score("Rotation", _NODES, _RELATIONS[:1], {"p": 2.0}),
            {"margin": 1.0},
            lambda arguments, _: {"margin": arguments["margin"]},
        ),
    },
)
