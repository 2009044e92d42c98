"""posix_spawn(3) of the C library, on a thread that does nothing else.

What starts a child waits until the child has executed its program, and on a busy machine that takes as long as the
child waits for a processor: many milliseconds. Python's own ways to start one hold its global lock for so long, and
everything in the daemon stands still. A call by ctypes holds no lock.

One thread for all children, which lives as long as the process: PR_SET_PDEATHSIG (`bwrap --die-with-parent`) is tied to
the thread that started the child.
"""

from __future__ import annotations

import ctypes
import errno
import os
import queue
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import trio
from msgspec import Struct

_OPAQUE_BYTES = 1024
"""More than any C library takes for what it keeps in these."""
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_libc = ctypes.CDLL(None)


class Launch(Struct, frozen=True, kw_only=True):
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str
    streams: tuple[int | None, int | None, int | None]
    """Descriptors that become 0, 1 and 2; /dev/null in the place of None."""
    processors: Collection[int] | None
    nice: int


class Launcher:
    """Starts children one after the other, in the order in which it is asked to."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def thread_id(self) -> int | None:
        """The kernel's id of the thread whose children all are; None while there is none."""
        return self._thread.native_id if self._thread is not None else None

    async def start(self, launch: Launch, take: Callable[[int], None]) -> None:
        """Start a child; `take` is called on the thread with its pid before anything else can happen there.

        Not cut short by cancellation: a child is never left without an owner. Raises OSError.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        token, done = trio.lowlevel.current_trio_token(), trio.Event()
        failure: OSError | None = None

        def work() -> None:
            nonlocal failure
            try:
                take(_start(launch))
            except OSError as error:
                failure = error
            try:
                token.run_sync_soon(done.set)
            except trio.RunFinishedError:
                pass  # nobody waits any more

        self._begin()
        self._queue.put(work)
        with trio.CancelScope(shield=True):
            await done.wait()
        if failure is not None:
            raise failure

    def _begin(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="launcher", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the machine is short of threads or memory
            raise OSError(errno.EAGAIN, str(error)) from None
        self._thread = thread

    def _run(self) -> None:
        while True:
            self._queue.get()()


def _start(launch: Launch) -> int:
    """The pid of a child that has executed its program. Raises OSError with nothing left behind."""
    program = _find(launch.argv[0], launch.env)
    pid = ctypes.c_int()
    argv = _strings(map(os.fsencode, launch.argv))
    env = _strings(os.fsencode(name) + b"=" + os.fsencode(value) for name, value in launch.env.items())
    with _file_actions(launch) as actions, _bound_to(launch.processors):
        number = _libc.posix_spawn(ctypes.byref(pid), os.fsencode(program), actions, _attributes(), argv, env)
    if number:
        where = program if os.path.isdir(launch.cwd) else launch.cwd
        raise OSError(number, os.strerror(number), where)
    if launch.nice > 0:
        try:
            os.setpriority(os.PRIO_PGRP, pid.value, launch.nice)  # with what it may have started by now
        except ProcessLookupError:
            pass  # it has ended
    return pid.value


def _find(program: str, env: Mapping[str, str]) -> str:
    if "/" in program:
        return program
    found = shutil.which(program, path=env.get("PATH", os.defpath))
    if found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program)
    return found


def _strings(values: Iterator[bytes] | map[bytes]) -> ctypes.Array[ctypes.c_char_p]:
    found = list(values)
    return (ctypes.c_char_p * (len(found) + 1))(*found, None)


@contextmanager
def _file_actions(launch: Launch) -> Iterator[ctypes.Array[ctypes.c_char]]:
    actions = ctypes.create_string_buffer(_OPAQUE_BYTES)
    _check(_libc.posix_spawn_file_actions_init(actions))
    try:
        for target, source in enumerate(launch.streams):
            if source is None:
                _check(_libc.posix_spawn_file_actions_addopen(actions, target, b"/dev/null", os.O_RDWR, 0))
            else:
                _check(_libc.posix_spawn_file_actions_adddup2(actions, source, target))
        _check(_libc.posix_spawn_file_actions_addchdir_np(actions, os.fsencode(launch.cwd)))
        if hasattr(_libc, "posix_spawn_file_actions_addclosefrom_np"):  # glibc; all of ours are closed on exec anyway
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, 3))
        yield actions
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)


@cache
def _attributes() -> ctypes.Array[ctypes.c_char]:
    """A session of its own, no signal blocked, and those at their default that Python ignores. Made once, kept."""
    attributes, signals = ctypes.create_string_buffer(_OPAQUE_BYTES), ctypes.create_string_buffer(_OPAQUE_BYTES)
    _check(_libc.posix_spawnattr_init(attributes))
    _libc.sigemptyset(signals)
    _check(_libc.posix_spawnattr_setsigmask(attributes, signals))
    for number in _IGNORED_BY_PYTHON:
        _libc.sigaddset(signals, int(number))
    _check(_libc.posix_spawnattr_setsigdefault(attributes, signals))
    _check(_libc.posix_spawnattr_setflags(attributes, ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)))
    return attributes


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


@contextmanager
def _bound_to(processors: Collection[int] | None) -> Iterator[None]:
    """Have this thread, and so the child that it makes, run on these processors for a moment."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
