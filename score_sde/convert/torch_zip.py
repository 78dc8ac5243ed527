"""Reads what `torch.save` or TorchScript wrote, without PyTorch. Nothing that it names is run.

Such a file is a zip of one pickle and of the tensors' bytes. Until 2020 it was a row of pickles,
the bytes behind them. A pickle is a program: it may call anything that can be imported. The pickles
of checkpoints name a handful of functions and classes.
Each is an inert stand-in here, and any other name ends the reading. The file's size bounds all
others. What stands beside the tensors and is plain (sizes, dtypes, devices, a Namespace of options)
is skipped.
"""

import io
import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, ClassVar

import ml_dtypes
import numpy as np

from score_sde.errors import UserError

# The pickle of 200 arrays with moments has 72 kB. One byte may make an empty dict of 72 in memory.
MOST_PICKLE_BYTES = 2**24
MOST_FILES = 100_000
OLD = 0x1950A86A20F9469CFC6C  # the first pickle of a file of before 2020

_TYPES = "Double f8, Float f4, Half f2, Long i8, Int i4, Short i2, Char i1, Byte u1, Bool ?"
STORAGES: dict[str, Any] = {
    f"{name}Storage": np.dtype(code) for name, code in map(str.split, _TYPES.split(", "))
} | {"BFloat16Storage": ml_dtypes.bfloat16}


_NAMES = "float16 float32 float64 bfloat16 uint8 int8 int16 int32 int64 bool complex64 complex128"
DTYPES = frozenset(_NAMES.split())
FACTORIES = frozenset(("dict", "list", "int", "float", "str"))  # of a defaultdict


class Refused(Exception):
    """A file is refused. The message gives the user the reason."""


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = name


class _Namespace:
    """Stands for `argparse.Namespace`, without what it holds."""


class _Module(dict[str, Any]):
    """Stands for a module of TorchScript: its attributes. Its code is not read."""

    def __init__(self) -> None:
        super().__init__()


class _Call:
    """A stand-in for a function; not the function itself, whose attributes a stream could set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> Any:
        return self._function(*arguments)


def _scalar(dtype: object, data: object = b"") -> float | int:
    """Stands for numpy's `scalar`: a number such as the learning rate."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
        raise Refused("it holds a numpy scalar that is no number")
    name = dtype.name
    if not isinstance(name, str) or not re.fullmatch("[fiub][1248]", name):
        raise Refused("it holds a numpy scalar that is no number")
    return np.frombuffer(data, np.dtype(name).newbyteorder("<"), count=1)[0].item()


def is_one(path: Path) -> bool:
    """Whether a file is of either form."""
    return path.is_file() and (_is_old(path) or zipfile.is_zipfile(path))


def _is_old(path: Path) -> bool:
    begin = pickle.dumps(OLD, protocol=2)
    try:
        with path.open("rb") as file:
            return file.read(len(begin)) == begin
    except OSError:
        return False


def load(path: Path) -> Any:
    """The object in the file, with numpy arrays for tensors.

    Raises:
        UserError: one line: no such file, a damaged one, or one that names anything but tensors,
            numbers and plain containers.
    """
    return _read(path, filled=True)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays by their names, where the file is a dict of names, without reading
    the arrays; {} for anything else.

    Raises:
        UserError: as of `load`.
    """
    state = _read(path, filled=False)
    items = state.items() if isinstance(state, dict) else ()
    return {f"{name}": value.shape for name, value in items if isinstance(value, np.ndarray)}


def _read(path: Path, filled: bool) -> Any:
    """The object, its arrays filled or 0 everywhere, which takes no memory."""
    try:
        size = path.stat().st_size
        if _is_old(path):
            with path.open("rb") as file:
                return _load_old(file, size, filled)
        with zipfile.ZipFile(path) as archive:
            return _load(archive, size, filled)
    except OSError as error:
        raise UserError(f"--source {path}: {error.strerror or error}") from None
    except Refused as error:
        raise UserError(f"--source {path} is refused: {error}") from None
    except Exception:  # the pickle and zip modules promise no list of what a foreign stream raises
        allowed = "allowed are files that torch.save wrote"
        raise UserError(f"--source {path}: damaged or cut short; {allowed}") from None


def _load(archive: zipfile.ZipFile, size: int, filled: bool) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) > MOST_FILES:
        raise Refused(f"it has more than {MOST_FILES} parts")
    # Nothing is unpacked, so such a path does no harm. No honest file has one.
    if any(name.startswith("/") or ".." in name.split("/") for name in members):
        raise Refused("it names a path outside of itself")
    read = [info for name, info in members.items() if name.split("/")[1:2] != ["code"]]
    if any(info.compress_type != zipfile.ZIP_STORED for info in read):
        raise Refused("its parts are compressed, which torch.save does not do")
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Refused("it has no data.pkl, as files of torch.save do")
    info = members[f"{roots[0]}/data.pkl"]
    if info.file_size > min(MOST_PICKLE_BYTES, size):
        raise Refused(f"its data.pkl has {info.file_size} bytes, more than {MOST_PICKLE_BYTES}")
    order = members.get(f"{roots[0]}/byteorder")
    if order is not None and (order.file_size > 8 or archive.read(order).strip() != b"little"):
        raise Refused("its numbers are big-endian")

    def storage(key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        part = archive.getinfo(f"{roots[0]}/data/{key}")
        if part.file_size != count * dtype.itemsize:
            raise Refused(f"its part {part.filename} has not the size that data.pkl says")
        return np.frombuffer(archive.read(part), dtype) if filled else np.zeros(count, dtype)

    return _Reader(io.BytesIO(archive.read(info)), storage, size).load()


def _load_old(file: io.BufferedReader, size: int, filled: bool) -> Any:
    """The object of a file of before 2020: pickles of a number, a version, what the machine was
    like, the object, and the keys of its storages; then these, each after its length."""
    pickles = io.BytesIO(file.read(MOST_PICKLE_BYTES))
    storages: dict[str, np.ndarray] = {}

    def storage(key: str, dtype: np.dtype[Any], count: int) -> np.ndarray:
        storages[key] = np.zeros(count, dtype)
        return storages[key]

    def following() -> Any:
        return _Reader(pickles, storage, size).load()

    *_, machine, state, keys = (following() for _ in range(5))
    if machine["little_endian"] is not True:
        raise Refused("its numbers are big-endian")
    if sorted(keys) != sorted(storages):
        raise ValueError("keys")
    file.seek(pickles.tell())
    for key in keys if filled else ():
        count, room = int.from_bytes(file.read(8), "little"), storages[key].view(np.uint8)
        if count != len(storages[key]) or file.readinto(room.data) != len(room):
            raise ValueError("length")
    return state


def _plain_key(key: object) -> None:
    """Refuse keys of dicts that are neither texts nor small numbers. A small tuple of tuples can
    take for ever to hash, and large numbers can be chosen to share a hash."""
    if type(key) is not str and not (type(key) is int and 0 <= key < 2**31):
        raise Refused("it holds a dict whose keys are not names or numbers")


# Makes the numbers of a storage, of its key, their dtype and their count.
Storage = Callable[[str, np.dtype[Any], int], np.ndarray]
_InPython: Any = pickle._Unpickler  # its type does not declare its steps


class _Reader(_InPython):
    """Python's unpickler that is written in Python. Its steps can be watched. Its memo is a dict,
    so a large index does not enlarge it."""

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def load_setitem(self) -> None:
        _plain_key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _plain_key(key)
        super().load_setitems()

    def load_dict(self) -> None:
        for key in self.stack[::2]:
            _plain_key(key)
        super().load_dict()

    def load_no_set(self) -> None:
        raise Refused("it holds a set")

    def load_no_bytearray(self) -> None:
        raise Refused("it holds a bytearray")  # room is made for any size before a byte is read

    def load_build(self) -> None:
        """Keep that of a module. Drop another: attributes of a dict, which could hide its methods,
        or a dtype's byte order, which is little-endian in PyTorch's pickles."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], _Module) and type(state) is dict:
            self.stack[-1].update(state)
        elif not isinstance(self.stack[-1], OrderedDict | _Dtype | _Namespace):
            raise Refused("it gives a state to something that has none")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_no_bytearray
    for _opcode in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET):
        dispatch[_opcode[0]] = load_no_set

    def __init__(self, file: IO[bytes], storage: Storage, size: int) -> None:
        super().__init__(file)
        self._storage = storage
        self._left = size  # bytes that may still be read
        self._storages: dict[str, np.ndarray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in STORAGES:
            return name  # an argument only; a call of it fails
        if module == "torch" and name in DTYPES:
            return name
        if module.startswith("__torch__."):
            return _Module
        if module in ("builtins", "__builtin__") and name in FACTORIES:
            return name
        allowed = {
            "collections.OrderedDict": _Call(lambda: OrderedDict()),  # items follow one by one
            "collections.defaultdict": _Call(lambda *_: {}),  # likewise
            "argparse.Namespace": _Namespace,
            "torch.Size": _Call(lambda sizes: _whole_numbers(tuple(sizes))),
            "torch.jit._pickle.build_intlist": _Call(lambda sizes: _whole_numbers(tuple(sizes))),
            "torch.device": _Call(lambda *_: "a device"),
            "torch._utils._rebuild_tensor_v2": _Call(self._tensor),
            "torch._utils._rebuild_parameter": _Call(lambda data, *_: data),
            "numpy.core.multiarray.scalar": _Call(_scalar),
            "numpy._core.multiarray.scalar": _Call(_scalar),
            "numpy.dtype": _Dtype,
            "_codecs.encode": _Call(self._encode),
        }
        found = allowed.get(f"{module}.{name}")
        if found is None:
            raise Refused(f"it wants to import {module}.{name}, and only tensors are read")
        return found

    def persistent_load(self, pid: Any) -> np.ndarray:
        match pid:
            case ("storage", str(kind), str(key), str(), int(count), *rest):
                pass
            case _:
                raise Refused("it holds something else than tensors of numbers")
        # In old files a sixth part says that it is a part of another, and is None.
        if kind not in STORAGES or count < 0 or rest not in ([], [None]):
            raise Refused("it holds something else than tensors of numbers")
        if key not in self._storages:
            dtype = np.dtype(STORAGES[kind])
            self._left -= count * dtype.itemsize
            if self._left < 0:
                raise Refused("it holds more bytes than the file has")
            self._storages[key] = self._storage(key, dtype, count)
        return self._storages[key]

    def _encode(self, text: object, encoding: object = "latin1") -> bytes:
        """Stands for `codecs.encode`: pickles of protocol 2 keep bytes as texts."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise Refused("it encodes a text in another way than as bytes")
        self._left -= len(text)  # the same text may be encoded again and again
        if self._left < 0:
            raise Refused("it holds more bytes than the file has")
        return text.encode("latin1")

    def _tensor(
        self, storage: object, offset: object, shape: object, strides: object, *_: object
    ) -> np.ndarray:
        """Stands for PyTorch's maker of tensors: a view of the storage, within its bounds."""
        if not isinstance(storage, np.ndarray) or storage.ndim != 1:
            raise Refused("it holds a tensor without a storage")
        sizes, steps = _whole_numbers(shape), _whole_numbers(strides)
        (first,) = _whole_numbers((offset,))
        last = first + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
        total = math.prod(sizes)
        if total and (last >= len(storage) or total > len(storage)):
            raise Refused("it holds a tensor that is larger than its storage")
        if not total:
            return np.zeros(sizes, storage.dtype)
        return np.lib.stride_tricks.as_strided(
            storage[first:], sizes, [step * storage.itemsize for step in steps], writeable=False
        )


def _whole_numbers(values: object) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 16:
        raise Refused("it holds a tensor without a shape")
    if not all(type(value) is int and 0 <= value < 2**48 for value in values):
        raise Refused("it holds a tensor without a shape")
    return values
