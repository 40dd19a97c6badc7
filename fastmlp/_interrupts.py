"""Ctrl-C while something runs that must not be broken off half-way.

Python raises KeyboardInterrupt wherever the main thread happens to be.  Inside Numba's start-up
that leaves registries half filled, after which nothing compiles in the process any more; inside a
call into LLVM it waits for the end of the call, and a destructor on the way swallows it.  So
imports and compilations run in a thread of their own, to their end, and only the waiting is
interrupted.
"""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")


def undisturbed(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, which Ctrl-C does not reach.

    Raises
    ------
    KeyboardInterrupt
        At once after Ctrl-C; the function goes on, and its result is dropped.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)  # Ctrl-C is for the main thread
    results: SimpleQueue[Any] = SimpleQueue()

    def work() -> None:
        try:
            results.put((function(*arguments), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=work, name="fastmlp", daemon=True).start()
    while True:
        try:
            result, error = results.get(timeout=0.1)
        except Empty:
            continue
        if error is not None:
            raise error
        return result


@contextlib.contextmanager
def heard_by(listener: Callable[[], None], *, raises: bool = False) -> Iterator[None]:
    """Ctrl-C calls ``listener``, in the main thread unless a handler of somebody else's is there.

    A KeyboardInterrupt may be swallowed by a destructor in which it happens to be raised, and may
    leave threads behind of which some were started and none told; a listener hears in any case.

    Parameters
    ----------
    listener : callable
        Must take no lock that this thread may hold.
    raises : bool
        Whether the first Ctrl-C raises a KeyboardInterrupt as well, and others nothing but that.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if raises:  # which may keep the block's end from doing this
            signal.signal(signal.SIGINT, signal.default_int_handler)
        listener()
        if raises:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
