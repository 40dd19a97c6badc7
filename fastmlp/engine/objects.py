"""The store of compiled kernels: object code by name, from the package, from a cache, or compiled.

Kernels are made of pieces (`fastmlp.engine.cpu.pieces` names them), each the object code of one C
function that needs nothing but the C library.  So a process that finds its pieces compiled never
imports Numba, nor LLVM where `fastmlp.engine.images` loads them, and an object outlives any version
of either.  A piece is looked up

- in the package, where the build of a wheel has left those of several processor levels, and
  kernels for GPUs if it was asked to;
- in the user's cache: ``FASTMLP_CACHE_DIR``, or fastmlp's folder where the system keeps caches;
- then it is compiled, in processes of their own that share the work, and put into the cache.

What is missing is compiled elsewhere because it takes seconds: Ctrl-C ends the wait at once,
several processors work at it, and this process keeps its memory.  Only functions of the user's are
compiled here, for no other process has them.

A file begins with the checksum of its key and its code.  The key has a checksum of all sources that
end up in a kernel, so nothing stale, damaged, truncated or exchanged is ever run; it costs a
compilation.  A cache that cannot be read or written costs a compilation per process.  Each version
of the sources has a folder of its own in the cache, whose time of change is that of its last use;
the process that creates one removes those that were not used for long.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from fastmlp.engine import images
from fastmlp.engine.processor import LEVEL, LEVELS, features, n_processors

LOGGER = logging.getLogger("fastmlp")
PACKAGE = Path(__file__).parents[1]
PREBUILT = PACKAGE / "_prebuilt"
_SECONDS_PER_PIECE, _SECONDS_TO_START = 0.15, 1.0  # rough, on the slower processors
_WORTH_SAYING = 2.0  # seconds of compilation
_DIGEST = hashlib.sha256().digest_size
_UNUSED = 60 * 24 * 3600  # seconds after which another version's part of the cache is removed


def _stamp() -> str:
    cpu = PACKAGE / "engine" / "cpu"
    sources = [
        PACKAGE / "dropout.py",
        PACKAGE / "functions.py",
        PACKAGE / "optimizers.py",
        PACKAGE / "engine" / "processor.py",
        PACKAGE / "engine" / "images.py",
        *(cpu / f"{name}.py" for name in ("blocks", "layout", "standby")),
        *sorted((cpu / "kernels").glob("*.py")),
    ]
    checksum = hashlib.sha256()
    for source in sources:
        checksum.update(source.read_bytes())
    return checksum.hexdigest()[:16]


STAMP = _stamp()


class Key(NamedTuple):
    """Which piece: its name, element type and processor level."""

    name: str
    dtype: str
    level: str = LEVEL

    @property
    def symbol(self) -> str:
        """The C function's name."""
        return re.sub(r"\W", "_", f"fastmlp_{self.name}_{self.dtype}")

    @property
    def path(self) -> Path:
        """Its place in a folder of objects."""
        return Path(self.level, f"{self.name.replace('/', '-')}-{self.dtype}.o")

    def digest(self, code: bytes) -> bytes:
        """Checksum of an object file of this piece, for this version of the sources."""
        key = "\0".join((STAMP, sys.platform, *self))
        return hashlib.sha256(key.encode() + b"\0" + code).digest()


# --- files ------------------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Where this user's objects are kept, None if there is no such place."""
    chosen = os.environ.get("FASTMLP_CACHE_DIR")
    if chosen:
        return Path(chosen)
    try:
        if sys.platform == "win32":
            local = os.environ.get("LOCALAPPDATA")
            base = Path(local) if local else Path.home() / "AppData" / "Local"
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        return None
    return base / "fastmlp"


def _cached() -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / STAMP


def _create(folder: Path) -> None:
    """Make a folder of the cache; whoever is the first to removes those that are out of use."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    with contextlib.suppress(OSError):
        for other in folder.parent.iterdir():
            _remove_if_unused(other)


def _remove_if_unused(folder: Path) -> None:
    """A process that comes back to it at the same moment misses pieces, which it compiles."""
    with contextlib.suppress(OSError):  # somebody else has removed it
        status = folder.lstat()
        is_ours = stat.S_ISDIR(status.st_mode) and re.fullmatch("[0-9a-f]{16}", folder.name)
        if is_ours and time.time() - status.st_mtime > _UNUSED:
            shutil.rmtree(folder, ignore_errors=True)


def read(folder: Path, key: Key) -> bytes | None:
    """The object code of a piece, None unless it is there as it was written."""
    try:
        content = (folder / key.path).read_bytes()
    except OSError:
        return None
    digest, code = content[:_DIGEST], content[_DIGEST:]
    return code if code and digest == key.digest(code) else None


def write(folder: Path, key: Key, code: bytes) -> None:
    """Keep the object code of a piece: all of the file appears at once.

    Raises
    ------
    OSError
        If that is not possible.
    """
    path = folder / key.path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(key.digest(code) + code)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_cached(key: Key) -> bytes | None:
    """`read` from the user's cache."""
    folder = _cached()
    code = None if folder is None else read(folder, key)
    if code is not None:
        _touch(folder)
    return code


def find_code(key: Key) -> tuple[bytes | None, str]:
    """(object code of a piece, where it is): in the package, in the user's cache, or None."""
    code = read(PREBUILT, key)
    return (read_cached(key), "cache") if code is None else (code, "package")


@cache
def _touch(folder: Path) -> None:
    """Say that this version's part of the cache is in use."""
    with contextlib.suppress(OSError):
        os.utime(folder)


def write_cached(key: Key, code: bytes) -> None:
    """`write` to the user's cache, if that is possible."""
    folder = _cached()
    if folder is not None:
        with contextlib.suppress(OSError):
            _create(folder)
            write(folder, key, code)


# --- compilation ------------------------------------------------------------------------------


def compile_pieces(keys: list[Key]) -> list[bytes]:
    """Object code of pieces for one level, compiled in processes of their own.

    Raises
    ------
    RuntimeError
        If no process can be started, or one fails.
    """
    n = min(len(keys), n_processors())
    groups = [keys[i::n] for i in range(n)]
    processes: list[subprocess.Popen] = []
    codes: dict[Key, bytes] = {}
    try:
        processes.extend(map(_start, groups))
        for process, group in zip(processes, groups, strict=True):
            output, errors = process.communicate()
            if process.returncode:
                last = errors.decode(errors="replace").strip()[-2000:]
                raise RuntimeError(
                    f"fastmlp could not compile its kernels; this is a fault of fastmlp or of its "
                    f"installation: please report it with this message. {last}"
                )
            codes.update(zip(group, pickle.loads(output), strict=True))
    finally:
        for process in processes:
            process.kill()
    return [codes[key] for key in keys]


def _start(keys: list[Key]) -> subprocess.Popen:
    if not sys.executable or getattr(sys, "frozen", False):
        raise RuntimeError(
            f"fastmlp has no compiled kernels for {LEVEL} in this application, and no Python to "
            "compile them with; call fastmlp.warmup() where the application is built, with "
            "FASTMLP_CACHE_DIR set to a folder that goes with it."
        )
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    env |= {
        "NUMBA_OPT": "0",
        "FASTMLP_CPU_LEVEL": keys[0].level,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    program, names = str(PACKAGE / "_compile.py"), [":".join(key) for key in keys]
    # Ctrl-C in a terminal is for this process, which then ends the others
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "ignore", program, *names],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


# --- this process -----------------------------------------------------------------------------


class _Loaded:
    """What this process has loaded: addresses of pieces, and where they came from."""

    def __init__(self) -> None:
        self.addresses: dict[Key, int] = {}
        self.origins: dict[Key, str] = {}
        self.entries: dict[tuple[str, str], Callable[[int, int], float]] = {}
        self.lock = threading.RLock()
        self._linker: Any = None
        self._said = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _after_fork(self) -> None:
        self.lock = threading.RLock()  # another thread may have held it

    def require(self, keys: Iterable[Key], likely: Callable[[], Iterable[Key]] = tuple) -> None:
        """Load pieces, after those that are nowhere were compiled together.

        If any are compiled, so is what is missing of those that are ``likely`` to be needed later:
        starting takes longer than a few pieces more.
        """
        missing = [key for key in dict.fromkeys(keys) if key not in self.addresses]
        if not missing:
            return
        with self.lock:
            missing = [key for key in missing if not self._find(key)]
            if missing:
                missing += [key for key in likely() if not self._find(key) and key not in missing]
                self._announce(missing)
                for key, code in zip(missing, compile_pieces(missing), strict=True):
                    self.keep(key, code)

    def _find(self, key: Key) -> bool:
        if key in self.addresses:
            return True
        code, origin = find_code(key)
        if code is None:
            return False
        self._load(key, code, origin)
        return True

    def find(self, key: Key) -> bool:
        """Load a piece if it is there compiled; whether it was."""
        with self.lock:
            return self._find(key)

    def keep(self, key: Key, code: bytes) -> None:
        """Load what was just compiled, and put it into the cache."""
        write_cached(key, code)
        with self.lock:
            self._load(key, code, "compiled")

    def _load(self, key: Key, code: bytes, origin: str) -> None:
        if not self.addresses:  # the first
            lacking = sorted(LEVELS[LEVEL].features - features())
            if lacking:
                raise ValueError(
                    f"FASTMLP_CPU_LEVEL={LEVEL!r} is more than this processor has, which lacks "
                    f"{', '.join(lacking)}; leave it unset to use the best level."
                )
        address = images.load(code) if images.SUPPORTED else self._link(code, key.symbol)
        self.origins[key] = origin
        self.addresses[key] = address

    def _link(self, code: bytes, symbol: str) -> int:
        from llvmlite import binding

        if self._linker is None:
            binding.initialize_native_target()
            binding.initialize_native_asmprinter()
            machine = binding.Target.from_triple(
                binding.get_process_triple()
            ).create_target_machine()
            self._linker = binding.create_mcjit_compiler(binding.parse_assembly(""), machine)
        self._linker.add_object_file(binding.ObjectFileRef.from_data(code))
        self._linker.finalize_object()
        return self._linker.get_function_address(symbol)

    def _announce(self, keys: list[Key]) -> None:
        n_processes = min(len(keys), n_processors())
        seconds = _SECONDS_TO_START + _SECONDS_PER_PIECE * len(keys) / n_processes
        if seconds > _WORTH_SAYING and not self._said:
            self._said = True
            LOGGER.warning(
                "fastmlp compiles %d kernels for %s, which takes about %.0f s, once; to have them "
                "beforehand, run python -m fastmlp where fastmlp is installed.",
                len(keys), LEVEL, seconds,
            )  # fmt: skip


_LOADED = _Loaded()
_ENTRY = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64, ctypes.c_int64)


def require(keys: Iterable[Key], likely: Callable[[], Iterable[Key]] = tuple) -> None:
    """Make pieces ready; if some have to be compiled, then `likely` ones as well."""
    _LOADED.require(keys, likely)


def address(name: str | None, dtype: str = "float64") -> int:
    """Address of a piece, 0 for None."""
    if name is None:
        return 0
    key = Key(name, dtype)
    if key not in _LOADED.addresses:
        _LOADED.require([key])
    return _LOADED.addresses[key]


def entry(name: str, dtype: str = "float64") -> Callable[[int, int], float]:
    """A piece for Python to call, with a thread's number and a block's address.

    The call releases the interpreter's lock.
    """
    function = _LOADED.entries.get((name, dtype))
    if function is None:
        function = _LOADED.entries[name, dtype] = _ENTRY(address(name, dtype))
    return function


def find(name: str, dtype: str) -> bool:
    """Whether a piece is there compiled; it is loaded."""
    return _LOADED.find(Key(name, dtype))


def keep(key: Key, code: bytes) -> None:
    """Load a piece that was compiled in this process, and put it into the cache."""
    _LOADED.keep(key, code)


def addresses() -> dict[Key, int]:
    """The pieces of this process."""
    return dict(_LOADED.addresses)


def origins() -> dict[str, int]:
    """How many pieces of this process came out of the package, the cache, and the compiler."""
    found = list(_LOADED.origins.values())
    return {origin: found.count(origin) for origin in ("package", "cache", "compiled")}
