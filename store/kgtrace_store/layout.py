"""Every file name of an index root, once. ``store/FORMAT.md`` documents their content."""

import re

SCHEMA_VERSION = 2
"""Version of the whole layout; a generation with another one is refused."""

CURRENT = "CURRENT"
"""One line: the live generation's id. Absent until the first publication."""

GENERATIONS = "generations"
"""Folder of finished, immutable generations, each named by its id."""

GENERATION_ID = re.compile(r"(?P<time>\d{8}T\d{6}Z)-[0-9a-f]{6}")
"""``20261123T020000Z-1a2b3c``: time of the commit in UTC and the start of the fingerprint. Ids sort by
age."""

GENERATION_TIME = "%Y%m%dT%H%M%SZ"
"""The time in an id, for ``strftime``."""

STAGING = "staging"
"""Folder of builds in progress, each named by the first characters of its fingerprint."""

BUILD_LOCK = "build.lock"
"""Locked for as long as a builder runs; holds its process id."""

PUBLISH_LOCK = "publish.lock"
"""Locked for the moments in which ``CURRENT`` or the set of generations changes."""

# Inside a generation.

MANIFEST = "manifest.json"
"""Written last: a folder without one was never finished."""

GRADIENTS = "gradients.h5"
"""Contiguous arrays over the training triples."""

ROWS = "rows-{}.h5"
"""Gradients of the rows of one embedding table, and a list of them by row; tables are numbered in the order of their
names."""

LISTS = "lists-{}.faiss"
"""Inverted file over the gradients of one table's rows."""

MOMENTS = "moments-{}.h5"
"""Second moments of the gradients of one table's rows that many training triples read."""

MAPPED = re.compile(r".*\.h5|(.*/)?lists-\d+\.faiss")
"""Paths, inside a generation, of files that are mapped into memory and of which a query reads a part."""

SCALES = "search.h5"
"""How ``SEARCH`` and ``LISTS`` are to be read."""

GRAPH = "graph.h5"
"""The training triples as lists of neighbours, from which reasons are read; absent from generations that are older."""

SELF_INFLUENCE = "self_influence.h5"
"""Self-influence of the training triples by another score; absent where there is none."""

SEARCH = "search.faiss"
"""Inner-product index."""

SHARDS = "shards"
"""Folder of shards, where there are several: folders from ``0000`` on, with gradients, rows and indexes."""

GATE = "gate.json"
"""What was checked before the generation could be published, and how far it agrees with the one before it."""

MODEL = "model"
"""Folder with the trained model as tensors."""

VOCABULARY = "vocabulary"
"""Folder with the labels and names of entities and relations."""

ENTITIES = "entities.tsv"
"""In ``VOCABULARY``: ``label<TAB>name`` of entity i on line i, counted from 0."""

RELATIONS = "relations.tsv"
"""In ``VOCABULARY``: ``label<TAB>name`` of relation i on line i."""

PREFIXES = "prefixes.tsv"
"""In ``VOCABULARY``, where there are any: ``prefix<TAB>IRI``."""

# Inside ``STAGING``.

STAGING_KEY_LENGTH = 16
"""Characters of the fingerprint in the name of a build's folder."""

PRUNED = "pruned-"
"""Before the id of a generation that is being removed."""

# Inside a build's folder.

STAGED = "generation"
"""Folder that becomes the generation."""

STAGING_RECORD = "staging.json"
"""What the folder is being built from: schema version and full fingerprint."""

JOURNAL = "journal.jsonl"
"""One line for each finished part, with its checksum."""

PARTS = "parts"
"""Folder of finished parts that are files; it does not go into the generation."""
