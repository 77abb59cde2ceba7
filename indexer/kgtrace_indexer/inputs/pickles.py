"""Read what ``torch.save`` wrote without running it.

A pickle is a program: loading one with :mod:`pickle` imports and calls whatever its author named. Here the
opcodes are interpreted by a machine that has no way to import or call: a global becomes a :class:`Global`, a
call becomes an :class:`Inert` object that remembers what would have been called, and a tensor becomes a
:class:`StoredTensor` that says which bytes of the archive it is made of. :class:`pickle.Unpickler` is not
used because its memo is an array: five bytes of a hostile file make it allocate 32 GB.

Only what ``torch.save`` of PyTorch 1.6 and later writes is understood: a zip archive of uncompressed entries,
``NAME/data.pkl`` beside ``NAME/data/0``, ``NAME/data/1``, ... Everything else is :class:`UnreadableModel`.
"""

from __future__ import annotations

import math
import pickletools
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kgtrace_store.errors import UnreadableModel

MAX_PICKLE_BYTES = 64 * 2**20
"""Largest ``data.pkl`` that is read. A PyKEEN model needs 10 kB; a training-loop checkpoint carries the labels of all
entities, 50 bytes each or so. Its strings take four times as much memory at most."""

MAX_PICKLE_STEPS = 4 * 2**20
"""Most opcodes that are executed. A label takes three; an opcode can make an object of a hundred bytes, so this
bounds a hostile file to a few hundred MB and seconds."""

MAX_DIMENSIONS = 16
"""Most dimensions a tensor may have; models use up to four."""

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
"""Element type by the name of the storage class in module ``torch``."""

_INT64 = 2**63
_LONGEST_QUOTE = 100


@dataclass(frozen=True, slots=True)
class Global:
    """Something the pickle names: a class or function that is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False, repr=False)
class Inert:
    """What unpickling would have made by calling ``origin(*args)`` and setting ``state``."""

    origin: Global
    """The class or function named."""
    args: tuple[Any, ...]
    """What it would have been called with."""
    state: Any = None
    """What would have been given to ``__setstate__``; for most objects their ``__dict__``."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The object's ``__dict__``, empty for objects whose state is something else."""
        state = self.state
        if type(state) is tuple and len(state) == 2 and type(state[0]) is dict:
            state = state[0]  # (__dict__, slots)
        return {k: v for k, v in state.items() if type(k) is str} if type(state) is dict else {}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the archive, shared by the tensors that view it."""

    key: str
    """Name of its entry under ``data/``."""
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage: not yet read, and not yet checked against the bytes that are there."""

    storage: Storage
    offset: int
    """First element, counted in elements."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    frozen: bool = False
    """Whether it is a parameter that was not trained."""

    @property
    def numel(self) -> int:
        return math.prod(self.size)


class TorchArchive:
    """An open ``torch.save`` file: its objects, and its tensors on request."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str, root: object, *, swap: bool) -> None:
        self.path = path
        self.root = root
        """What was saved: ``dict``, ``list``, ``tuple`` and scalars as they are, the rest as
        :class:`Inert`, :class:`Global` and :class:`StoredTensor`. It may hold cycles."""
        self.size = path.stat().st_size
        """Bytes of the whole file."""
        self._archive = archive
        self._prefix = prefix
        self._swap = swap
        self._unread = self.size
        self._storages: dict[str, tuple[Storage, torch.Tensor]] = {}

    def load(self, tensor: StoredTensor) -> torch.Tensor:
        """The tensor itself, on the CPU, with its own dtype; views of one storage share memory.

        Raises :class:`UnreadableModel` if the storage is missing, has another size than declared, or does not
        hold every element the view would touch.
        """
        storage = self._storage(tensor.storage)  # (numel,)
        size, numel = tensor.size, tensor.numel
        if numel == 0:
            return storage.new_empty(size)
        last = tensor.offset + sum((n - 1) * step for n, step in zip(size, tensor.stride, strict=True))
        if last >= storage.numel() or numel > storage.numel():
            raise self._unreadable(
                f"a tensor of shape {size} reaches element {last} with {numel} values, "
                f"but its storage {quote(tensor.storage.key)} has {storage.numel()}"
            )
        stride = [step if n > 1 else 1 for n, step in zip(size, tensor.stride, strict=True)]
        return storage.as_strided(size, stride, tensor.offset)

    def _storage(self, wanted: Storage) -> torch.Tensor:
        """All elements of a storage, (numel,)."""
        if wanted.key in self._storages:
            known, elements = self._storages[wanted.key]
            if known != wanted:
                raise self._unreadable(f"storage {quote(wanted.key)} is declared with two types or sizes")
            return elements
        nbytes = wanted.numel * wanted.dtype.itemsize
        data = self._read(f"data/{wanted.key}", nbytes)
        if not data:
            return torch.empty(0, dtype=wanted.dtype)
        elements = torch.frombuffer(data, dtype=wanted.dtype)
        if self._swap:
            elements.untyped_storage().byteswap(wanted.dtype)
        self._storages[wanted.key] = (wanted, elements)
        return elements

    def _read(self, name: str, nbytes: int) -> bytearray:
        """Contents of an entry, which must have exactly ``nbytes``."""
        try:
            entry = self._archive.getinfo(f"{self._prefix}/{name}")
        except KeyError:
            raise self._unreadable(f"its entry {quote(name)} is missing") from None
        if entry.file_size != nbytes:
            raise self._unreadable(f"its entry {quote(name)} has {entry.file_size} bytes instead of {nbytes}")
        data = bytearray(_stored(self.path, self._archive, entry))
        self._unread -= nbytes
        if self._unread < 0:  # entries that contain each other could add up to any size
            raise self._unreadable("its entries overlap")
        return data

    def _unreadable(self, reason: str) -> UnreadableModel:
        return UnreadableModel(f"{self.path} is damaged: {reason}")


@contextmanager
def open_archive(path: Path) -> Iterator[TorchArchive]:
    """Open a file written by ``torch.save``, for as long as tensors are to be loaded from it.

    Raises :class:`UnreadableModel` for a file that is missing, truncated or foreign.
    """
    try:
        with path.open("rb") as f:
            head = f.read(16)
    except OSError as e:
        raise UnreadableModel(f"cannot read model {path}: {e.strerror}") from e
    if not head.startswith(b"PK\x03\x04"):
        raise UnreadableModel(f"{path} is not a file of torch.save: {_foreign(head)}")
    with _unreadable_zip(path):
        archive = zipfile.ZipFile(path)
    with archive:
        prefix = _prefix(path, archive)
        yield TorchArchive(
            path,
            archive,
            prefix,
            _root(path, archive, prefix),
            swap=_byteorder(path, archive, prefix) != sys.byteorder,
        )


def quote(text: object) -> str:
    """A foreign string for a message: one line, of bounded length."""
    text = str(text)
    return repr(text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + "…")


def _foreign(head: bytes) -> str:
    """What a file that is not a zip archive seems to be."""
    if not head:
        return "it is empty"
    if head.startswith(b"\x80"):
        return (
            "it is a bare pickle or was saved by PyTorch before 1.6; where the file is trusted, load it with "
            "torch.load and save it again with torch.save"
        )
    return "it is not a zip archive"


@contextmanager
def _unreadable_zip(path: Path) -> Iterator[None]:
    """Turn what :mod:`zipfile` raises for a broken archive into :class:`UnreadableModel`."""
    try:
        yield
    except (
        zipfile.BadZipFile,
        struct.error,
        EOFError,
        OSError,
        OverflowError,
        RuntimeError,  # encrypted, or a compression zipfile does not know
        UnicodeDecodeError,
    ) as e:
        reason = " ".join(str(e).split())
        raise UnreadableModel(f"{path} is truncated or damaged: {reason}; copy it again") from e


def _prefix(path: Path, archive: zipfile.ZipFile) -> str:
    """The folder inside the archive that holds everything."""
    names = [name for name in archive.namelist() if name.split("/", 1)[1:] == ["data.pkl"]]
    if len(names) != 1:
        raise UnreadableModel(
            f"{path} is not a file of torch.save: a zip archive with {len(names)} entries NAME/data.pkl instead of one"
        )
    return names[0].split("/", 1)[0]


def _root(path: Path, archive: zipfile.ZipFile, prefix: str) -> object:
    """What ``data.pkl`` describes."""
    entry = archive.getinfo(f"{prefix}/data.pkl")
    if entry.file_size > MAX_PICKLE_BYTES:
        raise UnreadableModel(
            f"{path} describes its objects in {entry.file_size} bytes, more than the {MAX_PICKLE_BYTES} "
            "allowed; save the weights alone: torch.save(model.state_dict(), FILE)"
        )
    try:
        return _Machine().run(_stored(path, archive, entry))
    except _TooLong:
        raise UnreadableModel(
            f"{path} describes its objects in more than the {MAX_PICKLE_STEPS} steps allowed; "
            "save the weights alone: torch.save(model.state_dict(), FILE)"
        ) from None
    except _BadPickle as e:
        raise UnreadableModel(f"{path} holds a pickle that torch.save does not write: {e}") from e


def _byteorder(path: Path, archive: zipfile.ZipFile, prefix: str) -> str:
    """``little`` or ``big``; PyTorch before 2.1 did not write it and ran on little-endian machines."""
    try:
        entry = archive.getinfo(f"{prefix}/byteorder")
    except KeyError:
        return "little"
    order = _stored(path, archive, entry)
    if order not in (b"little", b"big"):
        raise UnreadableModel(f"{path} is damaged: its byte order is {quote(order[:16])}")
    return order.decode()


def _stored(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Contents of an entry. A compressed one is refused: it could grow to any size."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise UnreadableModel(f"{path} is not a file of torch.save: its entry {quote(entry.filename)} is compressed")
    with _unreadable_zip(path):
        data = archive.read(entry)
    if len(data) != entry.file_size:
        raise UnreadableModel(
            f"{path} is truncated: its entry {quote(entry.filename)} has {len(data)} bytes instead of {entry.file_size}"
        )
    return data


class _BadPickle(Exception):
    """The opcodes make no sense, or ask for something ``torch.save`` never does."""


class _TooLong(Exception):
    """More opcodes than :data:`MAX_PICKLE_STEPS`."""


class _Machine:
    """Interpreter of pickle opcodes, protocol 2 to 5, whose values are all inert.

    Dictionary keys other than strings are wrapped in objects that compare by identity, and sets become lists:
    no hash or comparison of the file's choosing runs.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks under each open mark."""
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> object:
        """Value of the pickle. Raises :class:`_BadPickle` and :class:`_TooLong`."""
        try:
            for step, (opcode, argument, position) in enumerate(pickletools.genops(data)):
                if step == MAX_PICKLE_STEPS:
                    raise _TooLong
                handler = _HANDLERS.get(opcode.name)
                if handler is None:
                    raise _BadPickle(f"opcode {opcode.name} at byte {position}")
                handler(self, argument)
        except (ValueError, struct.error) as e:  # from pickletools: truncated, or an unknown opcode
            raise _BadPickle(quote(" ".join(str(e).split()))) from e
        if len(self._stack) != 1 or self._below:
            raise _BadPickle(f"it ends with {len(self._stack)} values instead of one")
        return self._stack[0]

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack:
            raise _BadPickle("it takes a value from an empty stack")
        return self._stack.pop()

    def top(self) -> Any:
        if not self._stack:
            raise _BadPickle("it changes a value on an empty stack")
        return self._stack[-1]

    def mark(self, _: Any) -> None:
        self._below.append(self._stack)
        self._stack = []

    def marked(self) -> list[Any]:
        """Everything pushed since the last mark, which is closed."""
        if not self._below:
            raise _BadPickle("it closes a mark that it never opened")
        values, self._stack = self._stack, self._below.pop()
        return values

    def put(self, index: int) -> None:
        self._memo[index] = self.top()

    def memoize(self, _: Any) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise _BadPickle(f"it recalls value {index}, which it never stored")
        self.push(self._memo[index])

    def protocol(self, version: int) -> None:
        if not 2 <= version <= 5:
            raise _BadPickle(f"protocol {version}")

    def tuple(self, length: int) -> None:
        values = [self.pop() for _ in range(length)]
        self.push(tuple(reversed(values)))

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Inert):  # what a list subclass would hold is not kept
            raise _BadPickle("it appends to something that is not a list")

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            raise _BadPickle("it sets a key without a value")
        if type(target) is dict:
            for key, value in zip(values[::2], values[1::2], strict=True):
                wrapped = key if type(key) is str else Inert(Global("builtins", type(key).__name__), (key,))
                target[wrapped] = value
        elif not isinstance(target, Inert):  # what a dict subclass would hold is not kept
            raise _BadPickle("it sets items of something that is not a dict")

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def find_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.push(Global(module, name))

    def find_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise _BadPickle("it names a global by something that is not a string")
        self.push(Global(module, name))

    def persistent(self, _: Any) -> None:
        """``("storage", class, key, location, numel)``, the only outside reference ``torch.save`` makes."""
        match self.pop():
            case ("storage", Global() as kind, str(key), _, int(numel)) if _is_count(numel):
                pass
            case _:
                raise _BadPickle("a reference to something that is not a storage")
        if kind.module != "torch" or kind.name not in _DTYPES:
            raise _BadPickle(f"storage of type {quote(kind)}")
        self.push(Storage(key, _DTYPES[kind.name], numel))

    def call(self, _: Any) -> None:
        args, function = self.pop(), self.pop()
        self.push(_called(function, args))

    def new_object(self, _: Any) -> None:
        args, cls = self.pop(), self.pop()
        self.push(_inert(cls, args))

    def new_object_ex(self, _: Any) -> None:
        self.pop()  # keyword arguments
        self.new_object(None)

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict | StoredTensor):  # state_dict()._metadata, attributes of a parameter
            raise _BadPickle("it sets the state of something that is not an object")


_HANDLERS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": _Machine.protocol,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _Machine.mark,
    "POP": lambda machine, _: machine.pop(),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.push(machine.top()),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_SET": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple(1),
    "TUPLE2": lambda machine, _: machine.tuple(2),
    "TUPLE3": lambda machine, _: machine.tuple(3),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.marked())),
    "FROZENSET": lambda machine, _: machine.push(tuple(machine.marked())),
    "APPEND": _Machine.append,
    "APPENDS": lambda machine, _: machine.extend(machine.marked()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.marked()),
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "BINPERSID": _Machine.persistent,
    "GLOBAL": _Machine.find_global,
    "STACK_GLOBAL": _Machine.find_stack_global,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_ex,
    "BUILD": _Machine.build,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    **dict.fromkeys(
        (
            *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
            *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
            *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "SHORT_BINSTRING", "BINSTRING"),
        ),
        _Machine.push,
    ),
}
"""What each opcode does. Those of protocols 0 and 1, extension codes and out-of-band buffers are left out on
purpose: ``torch.save`` writes none."""


def _inert(origin: Any, args: Any) -> Inert:
    """A call that is not made."""
    if isinstance(origin, Inert):
        origin = origin.origin  # e.g. a functools.partial that is called
    if not isinstance(origin, Global) or type(args) is not tuple:
        raise _BadPickle("it calls something that is not a name")
    return Inert(origin, args)


def _called(function: Any, args: Any) -> Any:
    """The few calls whose meaning is data; every other one stays :class:`Inert`."""
    call = _inert(function, args)
    match str(call.origin), args:
        case "torch._utils._rebuild_tensor_v2", (Storage() as data, offset, tuple(size), tuple(stride), *_):
            return _tensor(data, offset, size, stride)
        case (
            ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state"),
            (StoredTensor() as data, requires_grad, *_),
        ):
            return replace(data, frozen=requires_grad is False)
        case "torch._tensor._rebuild_from_type_v2", (Global() as rebuild, _, tuple(inner), *_):
            tensor = _called(rebuild, inner) if str(rebuild).startswith("torch._utils.") else None
            return tensor if isinstance(tensor, StoredTensor) else call
        case "collections.OrderedDict", ():
            return {}
        case (("builtins.set" | "__builtin__.set"), (list(values),)):
            return list(values)
        case "torch.Size", (tuple(values),):
            return values
    return call


def _tensor(storage: Storage, offset: Any, size: tuple[Any, ...], stride: tuple[Any, ...]) -> StoredTensor:
    """A view whose numbers are sane in themselves; whether the storage holds it is checked on loading."""
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise _BadPickle(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
    counts = all(_is_count(n) for n in (offset, *size, *stride))
    if not counts or math.prod(max(n, 1) for n in size) >= _INT64:
        raise _BadPickle("a tensor whose offset, size or stride is negative or too large")
    return StoredTensor(storage, offset, size, stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INT64
