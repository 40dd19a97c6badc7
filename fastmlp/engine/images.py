"""Object code as an image: bytes to be put into memory and run.

Loading LLVM takes longer than a short fit, and pieces need none of what its linker can do: they
refer to constants of their own, and call a few functions of the C library.  So on Linux on x86-64
the compiling process places the sections of an object file one behind the other, fills in the
distances between them, and adds a jump for each function of the C library.  What is left to do at
run time is to map the image as memory that can be executed, and to write the addresses of those
functions behind their jumps.  Elsewhere LLVM loads the object files.

The layout of ELF files and the two relocations are those of the System V ABI for x86-64.
"""

import ctypes
import json
import mmap
import platform
import struct
import sys
from functools import cache
from typing import NamedTuple

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
_PC32, _PLT32 = 2, 4  # distances to a constant, and to a function that may be elsewhere
_CONTENT, _SYMBOLS, _RELOCATIONS, _UNWINDING = 1, 2, 4, 0x70000001  # types of sections
_WRITABLE, _ALLOCATED = 1, 2  # flags of sections
_ALIGNMENT = 64
_JUMP = b"\xff\x25\x00\x00\x00\x00"  # jmp *0(%rip): to the address that follows


class NotSelfContained(Exception):
    """Code that needs more than constants and the C library."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def link(code: bytes, symbol: str) -> bytes:
    """The image of an object file whose function ``symbol`` is to be called.

    Raises
    ------
    NotSelfContained
        If it has other sections or relocations than those need.
    """
    start, size, n = struct.unpack_from("<Q10xHH", code, 40)
    sections = [
        _Section(*struct.unpack_from("<IIQQQQIIQQ", code, start + i * size)) for i in range(n)
    ]
    image, places = _place(code, sections)
    jumps: dict[str, int] = {}
    for section in sections:
        if section.kind != _RELOCATIONS or section.info not in places:
            continue
        symbols = _symbols(code, sections, sections[section.link])
        for k in range(section.offset, section.offset + section.size, 24):
            offset, info, addend = struct.unpack_from("<QQq", code, k)
            name, index, value = symbols[info >> 32]
            if info & 0xFFFFFFFF not in (_PC32, _PLT32):
                raise NotSelfContained(f"relocation of type {info & 0xFFFFFFFF}")
            if index in places:
                target = places[index] + value
            elif name and index == 0:
                target = jumps.setdefault(name, len(image) + -len(image) % 8)
                if target >= len(image):
                    image += bytes(target - len(image)) + _JUMP + bytes(8)
            else:
                raise NotSelfContained(f"reference to section {index}")
            place = places[section.info] + offset
            struct.pack_into("<i", image, place, target + addend - place)
    header = {
        "entry": _entry(code, sections, places, symbol),
        "slots": {name: jump + len(_JUMP) for name, jump in jumps.items()},
    }
    return json.dumps(header).encode() + b"\n" + bytes(image)


def _place(code: bytes, sections: list[_Section]) -> tuple[bytearray, dict[int, int]]:
    """Code and constants one behind the other, and where each section begins."""
    image, places = bytearray(), {}
    for i, section in enumerate(sections):
        if not section.flags & _ALLOCATED or section.kind == _UNWINDING:
            continue
        if section.kind != _CONTENT or section.flags & _WRITABLE:
            raise NotSelfContained(f"section of type {section.kind} and flags {section.flags}")
        image += bytes(-len(image) % max(_ALIGNMENT, section.alignment))
        places[i] = len(image)
        image += code[section.offset : section.offset + section.size]
    return image, places


def _entry(code: bytes, sections: list[_Section], places: dict[int, int], symbol: str) -> int:
    for section in sections:
        if section.kind == _SYMBOLS:
            for name, index, value in _symbols(code, sections, section):
                if name == symbol and index in places:
                    return places[index] + value
    raise NotSelfContained(f"no function {symbol}")


def _symbols(code: bytes, sections: list[_Section], table: _Section) -> list[tuple[str, int, int]]:
    """Name, section and offset in it of each symbol."""
    found, names = [], sections[table.link].offset
    for k in range(table.offset, table.offset + table.size, 24):
        name, _, _, index, value, _ = struct.unpack_from("<IBBHQQ", code, k)
        text = code[names + name : code.index(b"\0", names + name)].decode()
        found.append((text, index, value))
    return found


def load(image: bytes) -> int:
    """Address of an image's function, in memory that stays until the process ends.

    A thread may still be in a kernel while Python's objects are taken down.

    Raises
    ------
    OSError
        If this process may not make memory executable.
    """
    line, _, rest = image.partition(b"\n")
    header, code = json.loads(line), bytearray(rest)
    for name, offset in header["slots"].items():
        struct.pack_into("<Q", code, offset, _c_function(name))
    libc, size = _libc(), ctypes.c_size_t(len(code))
    start = libc.mmap(
        None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1,
        ctypes.c_long(0),
    )  # fmt: skip
    if start != _MAP_FAILED:
        ctypes.memmove(start, bytes(code), len(code))
        executable = mmap.PROT_READ | mmap.PROT_EXEC
        if not libc.mprotect(ctypes.c_void_p(start), size, executable):
            LOADED.append(range(start, start + len(code)))
            return start + header["entry"]
    raise OSError(ctypes.get_errno(), "Kernels need executable memory, which is denied here")


LOADED: list[range] = []
"""Where images are; a profile tells by it which of them an address belongs to."""
_MAP_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    return libc


@cache
def _c_function(name: str) -> int:
    for library in (None, "libm.so.6", "libc.so.6"):
        function = getattr(ctypes.CDLL(library), name, None)
        if function is not None:
            return ctypes.cast(function, ctypes.c_void_p).value or 0
    raise OSError(f"The C library has no function {name}, which a kernel needs.")
