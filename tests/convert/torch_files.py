"""Files as torch.save writes them, made by hand."""

import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np


class Global:
    """An object of a name in a module, by reference."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Call:
    """What a call of a global, with these arguments, makes."""

    def __init__(self, function: Global, *arguments: object) -> None:
        self.function, self.arguments = function, arguments


class Stored:
    """A storage: its type, its key in the zip, its number of elements; in old files also what part
    of another it is."""

    def __init__(self, kind: str, key: str, count: int, *view: object) -> None:
        self.id = ("storage", Global("torch", kind), key, "cpu", count, *view)


def tensor(
    kind="FloatStorage", key="0", count=4, offset=0, shape=(2, 2), strides=(2, 1), view=()
) -> Call:
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    return Call(rebuild, Stored(kind, key, count, *view), offset, shape, strides, False, None)


def stream(value: object) -> bytes:
    """A pickle, opcode by opcode: Python's pickler would import what it names."""
    match value:
        case Global():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            return stream(value.function) + stream(value.arguments) + b"R"
        case Stored():
            return stream(value.id) + b"Q"
        case tuple():
            return b"(" + b"".join(map(stream, value)) + b"t"
        case dict():
            return b"}(" + b"".join(stream(k) + stream(v) for k, v in value.items()) + b"u"
        case bytes():
            return value  # opcodes as they are
        case _:
            return pickle.dumps(value, protocol=0).rstrip(b".")


def module(attributes: dict, name: str = "Net") -> bytes:
    """A module of TorchScript."""
    return stream(Global("__torch__.net", name)) + b")\x81" + stream(attributes) + b"b"


ORDERED = b"ccollections\nOrderedDict\n)R"
ENCODED = b"c_codecs\nencode\n(h\x00tR"  # of the memo's first
FOUR = np.arange(4, dtype=np.float32).tobytes()


def write(path: Path, value: object, parts: dict[str, bytes] | None = None, **options: Any) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + stream(value) + b".")
        for name, content in ({"archive/data/0": FOUR} if parts is None else parts).items():
            archive.writestr(name, content)
    return path


def write_old(
    path: Path, value: object, parts: dict[str, bytes] | None = None, little_endian: bool = True
) -> Path:
    """A file as torch.save wrote them before 2020."""
    parts = {"0": struct.pack("<Q", 4) + FOUR} if parts is None else parts
    pickles = [1001, {"protocol_version": 1001, "little_endian": little_endian}, value]
    path.write_bytes(
        pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
        + b"".join(b"\x80\x02" + stream(each) + b"." for each in pickles)
        + pickle.dumps(list(parts), protocol=2)
        + b"".join(parts.values())
    )
    return path


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Write a state dict, its arrays as float32."""
    values, parts = {}, {}
    for key, (name, values_of) in enumerate(arrays.items()):
        array = np.ascontiguousarray(values_of, np.float32)
        strides = [step // array.itemsize for step in array.strides]
        kept = {"key": str(key), "count": array.size, "shape": array.shape}
        values[name] = tensor(**kept, strides=tuple(strides))
        parts[f"archive/data/{key}"] = array.tobytes()
    return write(path, values, parts)


def write_zip(path: Path, parts: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
