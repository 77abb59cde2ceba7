"""Which training triples made a knowledge-graph embedding model predict a triple?

`build` writes an index of a model's training triples and `open_index` opens one; `Client` asks a running service,
`LocalClient` an index folder in the same words.
"""

from typing import TYPE_CHECKING, Any

from kgtrace_store.doors import door

if TYPE_CHECKING:
    __version__: str
    from kgtrace_indexer.answers import Answer as Answer, Attribution as Attribution, Restriction as Restriction
    from kgtrace_indexer.building.append import append as append
    from kgtrace_indexer.building.build import BuildConfig as BuildConfig, build as build
    from kgtrace_indexer.building.pykeen_callback import IndexCallback as IndexCallback
    from kgtrace_indexer.explaining.explainer import SetExplainer as SetExplainer
    from kgtrace_indexer.inputs.id_maps import read_vocabulary as read_vocabulary
    from kgtrace_indexer.inputs.model_file import write_model as write_model
    from kgtrace_indexer.inputs.model_reader import read_model as read_model
    from kgtrace_indexer.inputs.rdf import read_rdf as read_rdf
    from kgtrace_indexer.inputs.training_folder import read_training_folder as read_training_folder
    from kgtrace_indexer.inputs.triples import read_triples as read_triples
    from kgtrace_indexer.query.analyzer import TracInAnalyzer as TracInAnalyzer
    from kgtrace_indexer.query.attributor import Attributor as Attributor
    from kgtrace_indexer.query.opening import open_index as open_index
    from kgtrace_server.client import AsyncClient as AsyncClient, Client as Client, LocalClient as LocalClient
    from kgtrace_store.errors import (
        KgtraceError as KgtraceError,
        UnknownEntity as UnknownEntity,
        UnknownRelation as UnknownRelation,
    )

__all__, _public = door(
    __name__,
    {
        "kgtrace_indexer.answers": ["Answer", "Attribution", "Restriction"],
        "kgtrace_indexer.building.append": ["append"],
        "kgtrace_indexer.building.build": ["BuildConfig", "build"],
        "kgtrace_indexer.building.pykeen_callback": ["IndexCallback"],
        "kgtrace_indexer.inputs.model_file": ["write_model"],
        "kgtrace_indexer.inputs.model_reader": ["read_model"],
        "kgtrace_indexer.explaining.explainer": ["SetExplainer"],
        "kgtrace_indexer.inputs.id_maps": ["read_vocabulary"],
        "kgtrace_indexer.inputs.rdf": ["read_rdf"],
        "kgtrace_indexer.inputs.training_folder": ["read_training_folder"],
        "kgtrace_indexer.inputs.triples": ["read_triples"],
        "kgtrace_indexer.query.analyzer": ["TracInAnalyzer"],
        "kgtrace_indexer.query.attributor": ["Attributor"],
        "kgtrace_indexer.query.opening": ["open_index"],
        "kgtrace_server.client": ["AsyncClient", "Client", "LocalClient"],
        "kgtrace_store.errors": ["KgtraceError", "UnknownEntity", "UnknownRelation"],
    },
)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("kgtrace")
    return _public(name)
