"""Everything that can go wrong, in one tree.

::

    KgtraceError
    ├── InputError (ValueError)            the user's input
    │   ├── UnreadableInput                missing, truncated or not UTF-8
    │   ├── MalformedVocabulary            an id map or names file with a line that cannot be read
    │   ├── MalformedTriple                a line that is not head⇥relation⇥tail
    │   ├── EmptyInput                     a file without a triple
    │   ├── UnknownLabel (LookupError)     an entity or relation that the vocabulary lacks
    │   │   ├── UnknownEntity
    │   │   └── UnknownRelation
    │   ├── DuplicateId                    two labels with one id, or one label with two
    │   ├── IdOutOfRange (IndexError)      an id beyond the model's tables
    │   └── BadRequest                     a query whose fields cannot be honoured
    ├── ModelError (ValueError)            the model
    │   ├── UnreadableModel                missing, truncated or foreign file
    │   ├── UnsupportedModel               a model or loss that kgtrace cannot explain
    │   ├── VocabularyMismatch             tables and id maps of different size
    │   ├── MissingInverseRelations        a loss of heads asked of a model that has none
    │   └── NonFinite                      NaN or infinity in parameters or gradients
    ├── StoreError                         the index on disk
    │   ├── IndexNotFound (FileNotFoundError)
    │   ├── GenerationNotFound (FileNotFoundError)
    │   ├── CorruptGeneration (ValueError) a checksum, count or shape that does not match
    │   ├── SchemaTooNew (ValueError)      written by a later kgtrace
    │   ├── SchemaTooOld (ValueError)      written by an earlier one
    │   ├── ResumeRefused (ValueError)     staging of another model, configuration or schema
    │   ├── BuilderRunning (BlockingIOError)
    │   ├── LocksUnavailable (OSError)     a file system without locks, which building and publishing need
    │   ├── PublishConflict                CURRENT changed while publishing
    │   ├── GateFailed                     a new generation that must not go live
    │   └── StorageFailed (OSError)        full disk, I/O error
    ├── SearchUnavailable                  a search engine besides kgtrace that fails, or cannot be reached
    ├── RegistryUnavailable                a registry of models that refuses, or cannot be reached
    ├── WorkerLost                         a part of a build that no worker survives
    ├── DeviceMemoryFull (MemoryError)     a GPU with too little memory for a single triple
    ├── Abandoned                          a computation that nobody waits for any more
    └── MissingExtra (ImportError)         an optional dependency that is not installed

Each is also the builtin that fits, so ``except FileNotFoundError`` works as expected. Messages carry the actual value
and the permitted ones. They are turned into exit codes and HTTP statuses only at the outermost edge.
"""

from collections.abc import Sequence


class KgtraceError(Exception):
    """Root of all errors kgtrace raises on purpose."""


class InputError(KgtraceError, ValueError):
    """What the user handed in cannot be used."""


class UnreadableInput(InputError):
    """A file that is missing, truncated or not UTF-8."""


class MalformedVocabulary(InputError):
    """An id map or names file with a line, or a layout, that cannot be read."""


class MalformedTriple(InputError):
    """A line that is not ``head⇥relation⇥tail``."""


class EmptyInput(InputError):
    """A file that holds no triple."""


class UnknownLabel(InputError, LookupError):
    """An entity or relation that the vocabulary lacks."""

    def __init__(self, message: str, label: str = "", nearest: Sequence[tuple[str, str | None]] = ()) -> None:
        super().__init__(message)
        self.label = label
        """The unknown label."""
        self.nearest = tuple(nearest)
        """Label and name, where there is one, of similar entries of the vocabulary; most alike first."""


class UnknownEntity(UnknownLabel):
    """An entity that the vocabulary lacks."""


class UnknownRelation(UnknownLabel):
    """A relation that the vocabulary lacks."""


class DuplicateId(InputError):
    """Two labels with one id, or one label with two ids."""


class IdOutOfRange(InputError, IndexError):
    """An id beyond the model's tables."""


class BadRequest(InputError):
    """A query whose fields cannot be honoured."""


class ModelError(KgtraceError, ValueError):
    """The model cannot be used."""


class UnreadableModel(ModelError):
    """A missing, truncated or foreign model file."""


class UnsupportedModel(ModelError):
    """A model or loss that kgtrace cannot explain."""


class VocabularyMismatch(ModelError):
    """The model's tables and the id maps differ in size."""


class MissingInverseRelations(ModelError):
    """A loss of the inverse direction was asked of a model that was trained in one direction."""


class NonFinite(ModelError):
    """NaN or infinity in parameters or gradients."""


class StoreError(KgtraceError):
    """What lies on disk cannot be used."""


class IndexNotFound(StoreError, FileNotFoundError):
    """No index root, or none with a live generation."""


class GenerationNotFound(StoreError, FileNotFoundError):
    """No generation with that id."""


class CorruptGeneration(StoreError, ValueError):
    """A checksum, count or shape that does not match the manifest."""


class SchemaTooNew(StoreError, ValueError):
    """A generation written by a later kgtrace."""


class SchemaTooOld(StoreError, ValueError):
    """A generation written by an earlier kgtrace, whose files mean something else."""


class ResumeRefused(StoreError, ValueError):
    """A staging folder of another model, configuration or schema."""


class BuilderRunning(StoreError, BlockingIOError):
    """Another builder holds the root's lock."""


class LocksUnavailable(StoreError, OSError):
    """The file system cannot lock files. Reading needs no locks; building, publishing and pruning do."""


class PublishConflict(StoreError):
    """``CURRENT`` changed between reading and writing it."""


class GateFailed(StoreError):
    """A new generation failed a check and was not published."""


class StorageFailed(StoreError, OSError):
    """The operating system refused to write: full disk, I/O error."""


class SearchUnavailable(KgtraceError):
    """A search engine besides kgtrace fails, or cannot be reached."""


class RegistryUnavailable(KgtraceError):
    """A registry of models refuses, or cannot be reached."""


class WorkerLost(KgtraceError):
    """Processes that encode parts of a build kept dying over one of them."""


class DeviceMemoryFull(KgtraceError, MemoryError):
    """The memory of a GPU is too small for a single triple's gradients."""


class Abandoned(KgtraceError):
    """A computation was ended because nobody waits for it any more."""


class MissingExtra(KgtraceError, ImportError):
    """An optional dependency is not installed."""
