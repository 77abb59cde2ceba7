"""Read a pickle without running it.

A pickle is a program: :mod:`pickle` imports and calls whatever its author named. Here Python's own interpreter of the
opcodes is given others for all that could import, call, hash or compare: a global becomes a :class:`Global`, a call
becomes an :class:`Inert` object that remembers what would have been called, and a tensor of ``torch.save`` becomes a
:class:`StoredTensor` that says which bytes of its archive it is made of.

The interpreter is the one in Python: the memo of the one in C is an array, for which five bytes of a hostile file
allocate 32 GB.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from kgtrace_indexer.inputs.text_files import quote

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


class BadPickle(Exception):
    """The opcodes make no sense, or ask for something ``torch.save`` never does."""


class TooLong(Exception):
    """More opcodes than :data:`MAX_PICKLE_STEPS`."""


def read_pickle(data: bytes) -> object:
    """Value of a pickle of protocol 2 to 5. Raises :class:`BadPickle` and :class:`TooLong`."""
    return _Machine(data).load()


class _Memo(dict[int, Any]):
    def __missing__(self, index: int) -> Any:
        raise BadPickle(f"it recalls value {index}, which it never stored")


class _Machine(pickle._Unpickler):
    """Interpreter of pickle opcodes whose values are all inert.

    Only opcodes listed in :data:`_HANDLERS` are executed. Dictionary keys other than strings are wrapped in objects
    that compare by identity, and sets become lists: no hash or comparison of the file's choosing runs.
    """

    stack: list[Any]
    append: Callable[[Any], None]

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)
        super().__init__(self._file, encoding="latin-1")
        self.memo = _Memo()
        self.metastack: list[list[Any]] = []
        self.stack = []
        self.append = self.stack.append

    def load(self) -> object:
        try:
            for _ in range(MAX_PICKLE_STEPS):
                opcode = self.read(1)
                if opcode == pickle.STOP:
                    break
                if opcode not in _HANDLERS:
                    name = _NAMES.get(opcode, f"{opcode!r} (unknown)")
                    raise BadPickle(f"opcode {name} at byte {self._file.tell() - 1}")
                _HANDLERS[opcode](self)
            else:
                raise TooLong(f"more than the {MAX_PICKLE_STEPS} steps allowed")
        except IndexError as e:
            raise BadPickle("it takes a value from an empty stack") from e
        except (ValueError, struct.error, pickle.UnpicklingError) as e:
            raise BadPickle(quote(" ".join(str(e).split()))) from e
        if len(self.stack) != 1 or self.metastack:
            raise BadPickle(f"it ends with {len(self.stack)} values instead of one")
        return self.stack[0]

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) < size:
            raise BadPickle(f"pickle exhausted: expected {size} bytes, but only {len(data)} remain")
        return data

    def readline(self) -> bytes:
        return self._file.readline()

    def pop_mark(self) -> list[Any]:
        if not self.metastack:
            raise BadPickle("it closes a mark that it never opened")
        values, self.stack = self.stack, self.metastack.pop()
        self.append = self.stack.append
        return values

    def find_class(self, module: Any, name: Any) -> Global:
        if type(name) is not str or type(module) is not str:
            raise BadPickle("it names a global by something that is not a string")
        return Global(module, name)

    def persistent_load(self, pid: Any) -> Storage:
        """``("storage", class, key, location, numel)``, the only outside reference ``torch.save`` makes."""
        match pid:
            case ("storage", Global() as kind, str(key), _, int(numel)) if is_count(numel):
                pass
            case _:
                raise BadPickle("a reference to something that is not a storage")
        if kind.module != "torch" or kind.name not in _DTYPES:
            raise BadPickle(f"storage of type {quote(kind)}")
        return Storage(key, _DTYPES[kind.name], numel)

    def load_proto(self) -> None:
        (version,) = self.read(1)
        if not 2 <= version <= 5:
            raise BadPickle(f"protocol {version}")

    def load_frame(self) -> None:
        self.read(8)  # how long the frame is; nothing is read ahead here

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    def load_empty_set(self) -> None:
        self.append([])

    def load_frozenset(self) -> None:
        values = self.pop_mark()
        self.append(tuple(values))

    def load_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.append(self.find_class(module, name))

    def load_append(self) -> None:
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    load_additems = load_appends

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif not isinstance(target, Inert):  # the items of a list subclass are not kept
            raise BadPickle("it appends to something that is not a list")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if len(values) % 2:
            raise BadPickle("it sets a key without a value")
        if type(target) is dict:
            for key, value in zip(values[::2], values[1::2], strict=True):
                wrapped = key if type(key) is str else Inert(Global("builtins", type(key).__name__), (key,))
                target[wrapped] = value
        elif not isinstance(target, Inert):  # the items of a dict subclass are not kept
            raise BadPickle("it sets items of something that is not a dict")

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.append(_called(function, args))

    def load_newobj(self) -> None:
        args, cls = self.stack.pop(), self.stack.pop()
        self.append(_inert(cls, args))

    def load_newobj_ex(self) -> None:
        self.stack.pop()  # keyword arguments
        self.load_newobj()

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict | StoredTensor):  # state_dict()._metadata, attributes of a parameter
            raise BadPickle("it sets the state of something that is not an object")


_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}

_HANDLERS: dict[bytes, Callable[[_Machine], None]] = {
    getattr(pickle, name): getattr(_Machine, pickle._Unpickler.dispatch[getattr(pickle, name)[0]].__name__)
    for name in (
        *("PROTO", "FRAME", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE"),
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINSTRING", "BINSTRING"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
        *("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE", "EMPTY_LIST", "APPEND", "APPENDS"),
        *("EMPTY_SET", "ADDITEMS", "FROZENSET", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "STACK_GLOBAL", "BINPERSID", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"),
    )
}
"""What each opcode does: methods of :class:`_Machine` under the names that :mod:`pickle` gives them. Opcodes of
protocols 0 and 1, extension codes and out-of-band buffers are left out on purpose: ``torch.save`` writes none."""


def _inert(origin: Any, args: Any) -> Inert:
    """A call that is not made."""
    if isinstance(origin, Inert):
        origin = origin.origin  # e.g. a functools.partial that is called
    if not isinstance(origin, Global) or type(args) is not tuple:
        raise BadPickle("it calls something that is not a name")
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
        raise BadPickle(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
    counts = all(is_count(n) for n in (offset, *size, *stride))
    if not counts or math.prod(max(n, 1) for n in size) >= _INT64:
        raise BadPickle("a tensor whose offset, size or stride is negative or too large")
    return StoredTensor(storage, offset, size, stride)


def is_count(value: Any) -> bool:
    """Whether a value is a size or a number of things that PyTorch can hold."""
    return type(value) is int and 0 <= value < _INT64
