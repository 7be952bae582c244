"""Files: tensors and descriptions in one safetensors file that a crash leaves as it was or complete. Never pickle."""

from __future__ import annotations

import errno
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ArgumentError, BackendError, CheckpointError, FastbatchError

__all__ = [
    "FORMAT_VERSION",
    "checksum",
    "damaged",
    "decode",
    "encode",
    "folder_of",
    "names",
    "read",
    "write",
    "write_bytes",
]

FORMAT_VERSION = 1

Tensors = dict[str, np.ndarray]

# Key of the objects that stand for what JSON has no word for
_KIND = "!"

# From this length on a list of floats is a tensor: an eighth of the bytes, and JSON headers are bounded (100 MB)
_LONG = 64


def write(path: str | os.PathLike, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write one safetensors file at `path`, as :func:`write_bytes` does."""
    from safetensors.numpy import save

    folder_of(path)  # told before anything is packed
    write_bytes(path, save(tensors, {"format": "fastbatch", "format_version": str(FORMAT_VERSION), **metadata}))


def folder_of(path: str | os.PathLike) -> Path:
    """The folder in which a file can be put at `path`; an OSError says why it cannot, as far as that is known."""
    path = Path(path)
    if path.exists() and not path.is_file():  # a rename would put a file in the place of a device
        raise IsADirectoryError(f"{path}: expected a file or nothing there, got a folder or a device")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected a folder that exists, got {path.parent}")
    return path.parent


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write one file at `path`, which is the old file or the new one and never half of either.

    It is written beside `path`, synced, and renamed.
    """
    folder, path = folder_of(path), Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Make a rename in it outlive a power cut."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # POSIX: this file system does not sync folders
            raise
    finally:
        os.close(handle)


def read(path: str | os.PathLike) -> tuple[Tensors, dict[str, str]]:
    """Tensors and metadata of a file that :func:`write` wrote.

    Raises
    ------
    CheckpointError
        When the file is damaged, is not fastbatch's, or has a newer format version.
    FileNotFoundError
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != "fastbatch":
                raise CheckpointError(f"{path}: expected a file saved by fastbatch, got another safetensors file")
            with damaged(path, "metadata"):
                version = int(metadata["format_version"])
            if version > FORMAT_VERSION:
                raise CheckpointError(
                    f"{path}: expected format version {FORMAT_VERSION} or older, got {version}, from a newer "
                    "fastbatch: upgrade with pip install -U fastbatch"
                )
            keys = file.keys()  # not a dict: it cannot be iterated itself
            tensors = {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise CheckpointError(f"{path}: expected a safetensors file, got something unreadable: {error}") from error
    expected = metadata.get("crc32")
    if expected is not None and checksum(tensors, metadata) != expected:
        raise CheckpointError(
            f"{path}: the file is damaged: expected contents of checksum {expected}, got {checksum(tensors, metadata)}"
        )
    return tensors, metadata


def checksum(tensors: Tensors, metadata: Mapping[str, str]) -> str:
    """CRC-32 of what a file holds, for the entry "crc32" of its metadata."""
    crc = 0
    for key in sorted(tensors):
        crc = zlib.crc32(tensors[key].tobytes(), zlib.crc32(key.encode(), crc))
    for key in sorted(metadata.keys() - {"crc32", "format", "format_version"}):
        crc = zlib.crc32(f"{key}:{metadata[key]}".encode(), crc)
    return f"{crc:08x}"


@contextmanager
def damaged(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Within it, an error of values that a file holds is a CheckpointError that names `path` and `what`."""
    try:
        yield
    except (CheckpointError, BackendError) as error:  # says itself what is wrong
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except (FastbatchError, LookupError, AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: the {what} is damaged: {type(error).__name__}: {error}") from error


# -- values as JSON ----------------------------------------------------------------------------------------------------


def encode(value: Any, tensors: Tensors, where: str) -> Any:
    """`value` as JSON holds it; arrays go to `tensors`, under names that begin with `where`.

    Numbers, strings, lists, tuples, dicts of any such keys and arrays come back from :func:`decode` with the same types
    and bits. So do dataclasses and functions by name, where the reader knows the name.

    Raises
    ------
    CheckpointError
        For anything else; the message says where it was found.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_KIND: "float", "value": repr(float(value))}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return {_KIND: "array" if isinstance(value, np.ndarray) else "scalar", "key": _keep(value, tensors, where)}
    if isinstance(value, list):
        if len(value) >= _LONG and all(type(item) is float for item in value):
            return {_KIND: "floats", "key": _keep(value, tensors, where)}
        return [encode(item, tensors, f"{where}/{k}") for k, item in enumerate(value)]
    if isinstance(value, tuple):
        return {_KIND: "tuple", "items": [encode(item, tensors, f"{where}/{k}") for k, item in enumerate(value)]}
    if isinstance(value, dict):
        if all(isinstance(key, str) and key != _KIND for key in value):
            return {key: encode(item, tensors, f"{where}/{key}") for key, item in value.items()}
        items = [[encode(k, tensors, where), encode(item, tensors, f"{where}/{k}")] for k, item in value.items()]
        return {_KIND: "dict", "items": items}
    if is_dataclass(value) and not isinstance(value, type):
        own = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return {_KIND: "object", "name": type(value).__name__, "fields": encode(own, tensors, where)}
    if callable(value) and isinstance(getattr(value, "__name__", None), str):
        return {_KIND: "function", "name": value.__name__}
    raise CheckpointError(
        f"{where}: expected numbers, strings, lists, dicts, real arrays, descriptions or functions with a name, "
        f"got {type(value).__name__} {value!r}"
    )


def _keep(value: Any, tensors: Tensors, where: str) -> str:
    key = where if where not in tensors else f"{where}#{len(tensors)}"
    tensors[key] = np.asarray(value)
    return key


def names(value: Any) -> Iterator[str]:
    """Of the classes and functions that :func:`decode` must know for `value`."""
    if isinstance(value, dict):
        if value.get(_KIND) in ("object", "function"):
            yield value["name"]
        for item in value.values():
            yield from names(item)
    elif isinstance(value, list):
        for item in value:
            yield from names(item)


def decode(value: Any, tensors: Tensors, known: Mapping[str, Any]) -> Any:
    """What :func:`encode` was given; `known` has its classes and functions by name.

    A field that the file lacks takes its default.
    """
    if isinstance(value, list):
        return [decode(item, tensors, known) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: decode(item, tensors, known) for key, item in value.items()}
    if kind == "float":
        return float(value["value"])
    if kind == "array":
        return tensors[value["key"]]
    if kind == "scalar":
        return tensors[value["key"]][()]
    if kind == "floats":
        return tensors[value["key"]].tolist()
    if kind == "tuple":
        return tuple(decode(value["items"], tensors, known))
    if kind == "dict":
        return {decode(k, tensors, known): decode(item, tensors, known) for k, item in value["items"]}
    if kind == "object":
        return known[value["name"]](**decode(value["fields"], tensors, known))
    if kind == "function":
        return known[value["name"]]
    raise ArgumentError(f"expected a value of a kind that this version knows, got {kind!r}")
