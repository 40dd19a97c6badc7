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
def heard_by(listener: Callable[[], None]) -> Iterator[None]:
    """While other threads work for this one: Ctrl-C calls ``listener`` and raises nothing.

    There is no moment at which a KeyboardInterrupt could leave the block with some threads started
    and none told, or be swallowed by a destructor.  In a thread that is not the main one there is
    no Ctrl-C, and a handler of somebody else's stays.  Whatever error ends the block, such a
    handler's among them, ``listener`` hears of it as well.

    Parameters
    ----------
    listener : callable
        Tells the threads to end.  It must take no lock that this thread may hold.
    """
    is_main = threading.current_thread() is threading.main_thread()
    replaces = is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    try:
        if replaces:
            signal.signal(signal.SIGINT, lambda number, frame: listener())
        yield
    except BaseException:
        listener()
        raise
    finally:
        if replaces:
            signal.signal(signal.SIGINT, signal.default_int_handler)
