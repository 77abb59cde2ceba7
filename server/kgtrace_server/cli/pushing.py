"""A generation of an index in a repository of the Hugging Face Hub, as an index root, with a card for people."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kgtrace_indexer.inputs.registries import OnHub, asking_hub
from kgtrace_store import layout
from kgtrace_store.generation import Generation, list_tree
from kgtrace_store.generations import IndexRoot
from kgtrace_store.manifest import Manifest

CARD = "README.md"

_CARD = """\
---
library_name: kgtrace
tags:
  - knowledge-graph
  - influence-functions
---
# Index of {an_interaction} model

Which training triples made this knowledge-graph embedding model predict a triple? An index of
[kgtrace](https://kgtrace.readthedocs.io) answers. It has the model, its training triples, and codes of their
gradients.

| | |
|---|---|
| model | {interaction} |
| training triples | {triples:,} |
| entities | {entities:,} |
| relations | {relations:,} |
| generation | {generation}, built at {built_at} by kgtrace {version} |
| size | {megabytes:,.1f} MB |

## Open it

```
pip install "kgtrace[cpu]" huggingface_hub
hf download {repository} --local-dir INDEX
kgtrace query --index INDEX --triple HEAD RELATION TAIL
kgtrace serve --index INDEX
```

Open it if you trust who pushed it: FAISS reads files of an index in C++.

## Configuration

```json
{configuration}
```
"""


def push(root: IndexRoot, generation: str | None, place: OnHub, *, public: bool) -> str:
    """Upload a generation, by default the live one, in place of the one that is there; return the commit's address.

    A repository that is not there is made, private unless ``public``. Raises what `IndexRoot.open` raises,
    `RegistryUnavailable` and `MissingExtra`.
    """
    with root.open(generation) as opened, TemporaryDirectory(prefix="kgtrace-") as folder:
        arrange(opened, Path(folder), place)
        with asking_hub(place) as hub:
            api = hub.HfApi(library_name="kgtrace")
            api.create_repo(place.repository, private=not public, exist_ok=True)
            commit = api.upload_folder(
                repo_id=place.repository,
                revision=place.revision,
                folder_path=folder,
                commit_message=f"Push generation {opened.id}",
                delete_patterns=f"{layout.GENERATIONS}/*",
            )
    return str(commit.commit_url)


def arrange(generation: Generation, folder: Path, place: OnHub) -> None:
    """Make an index root of one generation and its card in a folder, of links to its files."""
    (folder / CARD).write_text(card(generation.manifest, place))
    (folder / layout.CURRENT).write_text(f"{generation.id}\n")
    inside = folder / layout.GENERATIONS / generation.id
    files, _ = list_tree(generation.path)
    for name in files:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).symlink_to((generation.path / name).absolute())


def card(manifest: Manifest, place: OnHub) -> str:
    """Return a generation's card, in Markdown with the Hub's metadata."""
    interaction = str(manifest.provenance.get("interaction") or "knowledge-graph embedding")
    versions: Mapping[str, Any] = manifest.provenance.get("versions", {})
    return _CARD.format(
        an_interaction=f"{'an' if interaction[0] in 'AEIOU' else 'a'} {interaction}",
        interaction=interaction,
        **{kind: manifest.counts[kind] for kind in ("triples", "entities", "relations")},
        generation=manifest.generation,
        built_at=manifest.created_at,
        version=versions.get("kgtrace", "?"),
        megabytes=sum(record.bytes for record in manifest.files.values()) / 1e6,
        repository=place.repository,
        configuration=json.dumps(manifest.configuration, indent=2, ensure_ascii=False),
    )
