"""Inode flags, as chattr(1) sets them (ioctl_iflags(2)): where a file system has none, there are none."""

from __future__ import annotations

import fcntl
import struct

_LONG = struct.Struct("l")
_READ, _WRITE = 2, 1
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20


def ioctl_number(group: str, number: int, size: int, *, direction: int = _READ) -> int:
    """_IOC() of asm-generic/ioctl.h; on machines that number otherwise the call fails."""
    return direction << 30 | size << 16 | ord(group) << 8 | number


_GET = ioctl_number("f", 1, _LONG.size)
_SET = ioctl_number("f", 2, _LONG.size, direction=_WRITE)


def inode_flags(handle: int) -> int:
    """The flags of an open file. Raises OSError where they cannot be told."""
    flags: int = _LONG.unpack(fcntl.ioctl(handle, _GET, bytes(_LONG.size)))[0]
    return flags


def unseal(handle: int) -> bool:
    """Let an open file be changed and removed again; False when that was not what kept it, or is not ours to do."""
    try:
        flags = inode_flags(handle)
        if not flags & (_IMMUTABLE | _APPEND_ONLY):
            return False
        fcntl.ioctl(handle, _SET, _LONG.pack(flags & ~(_IMMUTABLE | _APPEND_ONLY)))
    except OSError:
        return False
    return True
