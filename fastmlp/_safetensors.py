"""Arrays and text in one safetensors file: written atomically, and checked before it is believed.

The format (https://huggingface.co/docs/safetensors) is eight bytes with the length of a JSON
header, the header, and the arrays' bytes one behind the other.  The header gives each array's type,
shape and place, and under ``__metadata__`` a table of strings.  Any safetensors reader opens these
files.  Reading is written out here, because the library's own checks stop short of what is needed:
the first of the strings is the SHA-256 checksum of the whole file (with zeros in its own place), so
a damaged file is refused wherever it was hit; and no array is made before the header was compared
with the bytes that are there.

Writing goes to a new file in the same folder, which takes the old one's name when all of it is on
the disk.
"""

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from fastmlp._json import read as read_json

_TYPES = {
    "F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U64": "<u8", "U32": "<u4",
    "U8": "|u1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_BEFORE_CHECKSUM = b'{"__metadata__": {"sha256": "'
_NO_CHECKSUM = b"0" * 64
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_MAX_DIMENSIONS = 8


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a file.  Whatever happens, the old one or the new one is at ``path``, complete.

    Parameters
    ----------
    path : str or path-like
    arrays : mapping of str to ndarray
        Of float64, float32, int64, int32, uint64, uint32 or uint8.
    metadata : mapping of str to str

    Raises
    ------
    OSError
        If the file cannot be written; what was at ``path`` is still there.
    ValueError
        If the names and the metadata are longer than the format allows.
    """
    header: dict[str, Any] = {"__metadata__": {"sha256": _NO_CHECKSUM.decode(), **metadata}}
    chunks, start = [], 0
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        end = start + array.nbytes
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]
        }  # fmt: skip
        chunks.append(array.reshape(-1).view(np.uint8).data)
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER:
        raise ValueError(
            f"The texts to write take {len(text)} bytes, but safetensors files have room for "
            f"{_MAX_HEADER}; shorten them."
        )
    head = len(text).to_bytes(8, "little") + text
    checksum = hashlib.sha256(head)
    for chunk in chunks:
        checksum.update(chunk)
    at = 8 + len(_BEFORE_CHECKSUM)
    head = head[:at] + checksum.hexdigest().encode() + head[at + len(_NO_CHECKSUM) :]
    replace(path, [head, *chunks])


def replace(path: str | os.PathLike[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Put a file of these chunks of bytes in the place of the one at ``path``, at once.

    A killed process may leave a ``.fastmlp-*.tmp`` behind.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it points to is replaced
    new = path.with_name(f".fastmlp-{secrets.token_hex(8)}.tmp")
    try:
        with open(new, "xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink()
        if isinstance(error, OSError):
            error.filename, error.filename2 = os.fspath(path), None
        raise
    with suppress(OSError):  # not every system can open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the strings of a file that `write` wrote.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is anything but a complete, unchanged file of this kind.
    """
    with open(Path(path), "rb") as file:
        try:
            return _read(file)
        except (
            ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise ValueError(
                f"{os.fspath(path)!r} is damaged or was not written by fastmlp: {error}."
            ) from None


def _read(file: BufferedReader) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    n_text = int.from_bytes(start, "little")
    if len(start) < 8 or not 0 < n_text <= min(_MAX_HEADER, size - 8):
        raise ValueError("its header is incomplete")
    text = file.read(n_text)
    at = len(_BEFORE_CHECKSUM)
    expected = text[at : at + len(_NO_CHECKSUM)]
    if text[:at] != _BEFORE_CHECKSUM:
        raise ValueError("it has no checksum")
    checksum = hashlib.sha256(start + text[:at] + _NO_CHECKSUM + text[at + len(_NO_CHECKSUM) :])
    header = read_json(text, finite=True)
    metadata = header.pop("__metadata__")
    del metadata["sha256"]
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    layout, end = {}, 0
    for name, entry in header.items():
        layout[name], end = _place(entry, end)
    if end != size - 8 - n_text:
        raise ValueError("its size is not the one that its header implies")
    arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in layout.items()}
    for array in arrays.values():
        view = array.reshape(-1).view(np.uint8).data
        if file.readinto(view) != len(view):
            raise ValueError("it ends too early")
        checksum.update(view)
    if checksum.hexdigest().encode() != expected:
        raise ValueError("its checksum is wrong")
    return arrays, metadata


def _place(entry: dict[str, Any], start: int) -> tuple[tuple[tuple[int, ...], np.dtype], int]:
    """Shape and type of an array that must lie at ``start``, and its end."""
    dtype = np.dtype(_TYPES[entry["dtype"]])
    shape = tuple(entry["shape"])
    if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's shape is impossible")
    end = start + dtype.itemsize * math.prod(shape)
    if entry["data_offsets"] != [start, end]:
        raise ValueError("an array's place does not fit its shape")
    return (shape, dtype), end
