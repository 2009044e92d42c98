"""What could not be removed, and is tried again until it can be: so that a disk or a machine that was in trouble for
a while has nothing of ours on it afterwards, without waiting for the next start.

Invariant: what is handed over here has a name that is never used again.
"""

from __future__ import annotations

import threading
from pathlib import Path

import structlog

from buildd.store.tree import remove_tree
from buildd.threads import in_thread

log = structlog.get_logger()

_lock = threading.Lock()
_remains: dict[Path, None] = {}


def remove(path: Path) -> None:
    """Remove a tree, or later what is left of it. Blocks. Raises OSError when it is not gone by now."""
    try:
        remove_tree(path)
    except OSError:
        with _lock:
            _remains[path] = None
        raise


def discard(path: Path) -> None:
    """The same for who has nothing to say about it."""
    try:
        remove(path)
    except OSError as error:
        log.warning("something cannot be removed yet", path=str(path), error=str(error))


async def discard_in_thread(path: Path) -> None:
    """The same without blocking; cut short, it goes on in the background."""
    await in_thread(discard, path, abandon_on_cancel=True)


def remove_again() -> None:
    """Try once more to remove what could not be. Blocks."""
    with _lock:
        paths = list(_remains)
    for path in paths:
        try:
            remove_tree(path)
        except OSError:
            continue  # the next time
        with _lock:
            _remains.pop(path, None)
        log.info("what could not be removed is gone now", path=str(path))


def some() -> bool:
    """Whether there is anything to be tried again."""
    return bool(_remains)
