"""The patch phase: which patches a recipe names, and the shell text that applies them.

The text runs by `/bin/sh -e` in $SRCDIR inside the sandbox, since a patch is as foreign as the sources. Context
must match exactly (`--fuzz=0`, as Debian's dpkg-source has it; line offsets are fine), because a hunk that fits
"more or less" may land in the wrong function and still compile. `git apply`, which is used where `patch` is not
installed, asks for the same (and does not move a hunk that is for line 1). No backups and no rejects are left
behind, and a patch that is applied already is a failure.

Files that were changed get the time SOURCE_DATE_EPOCH + 1: make sees that they are newer than what is generated
from them, as it must, and the tree is still the same each time.
"""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from buildd.errors import BuildFailure

_SERIES = "series"
_OPTION = re.compile(r"-p([0-9]{1,2})")
_MAX_SERIES = 1 << 20


class Patch(Struct, frozen=True, kw_only=True):
    """One patch. Both paths are relative to $SRCDIR."""

    path: str
    strip: int = 1
    """Leading components to drop from the names in it, as `patch -pN`."""
    directory: str = "."
    """Where it is applied: the directory that its source was put into."""


def patch_list(srcdir: Path, entries: Sequence[str], *, directory: str = ".") -> list[Patch]:
    """The patches that `entries` (relative to `srcdir`) stand for, in order.

    An entry is a patch, a quilt `series` file, or a directory that holds one. Raises BuildFailure (`phase_failed`)
    for what does not exist, is not a file, leads out of `srcdir` (through a link too), or cannot be understood.
    """
    patches: list[Patch] = []
    for entry in entries:
        path = _inside(entry, entry)
        mode = _mode(srcdir, path)
        if stat.S_ISDIR(mode):
            path = posixpath.join(path, _SERIES)
            mode = _mode(srcdir, path)
        if posixpath.basename(path) != _SERIES:
            _require_file(path, mode)
            patches.append(Patch(path=path, directory=directory))
            continue
        _require_file(path, mode)
        for name, strip in _read_series(srcdir / path, path):
            member = _inside(posixpath.join(posixpath.dirname(path), name), name)
            _require_file(member, _mode(srcdir, member))
            patches.append(Patch(path=member, strip=strip, directory=directory))
    return patches


def patch_script(patches: Sequence[Patch]) -> str:
    """Shell text that applies `patches` in order and stops at the first that fails, naming it; "" for none."""
    if not patches:
        return ""
    calls = [
        f"apply {shlex.quote('./' + patch.path)} {patch.strip} {shlex.quote('./' + patch.directory)}"
        for patch in patches
    ]
    first = shlex.quote("./" + patches[0].path)
    return "\n".join([_PRELUDE.strip(), *calls, _SETTLE.replace("PATCH", first).strip(), ""])


_PRELUDE = r"""
if patch --version >/dev/null 2>&1; then
    run() {
        patch "-p$1" --directory="$2" --batch --forward --fuzz=0 --no-backup-if-mismatch --reject-file=- --get=0
    }
elif git --version >/dev/null 2>&1; then
    # Told that there is no repository, git does not leave out what lies outside of one it may find above.
    run() {
        (cd -- "$2" && GIT_DIR=/dev/null GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null \
            git apply "-p$1" --whitespace=nowarn --verbose -)
    }
else
    echo 'cannot apply patches: neither patch nor git is installed in the environment' >&2
    exit 1
fi
apply() {
    echo "applying ${1#./}"
    run "$2" "$3" <"$1" || {
        echo "the patch ${1#./} does not apply" >&2
        exit 1
    }
}
"""

# All of $SRCDIR has the time SOURCE_DATE_EPOCH before this phase, the patches included.
_SETTLE = r"""
if [ -n "${SOURCE_DATE_EPOCH:-}" ]; then
    find . -newer PATCH -exec touch -h -d "@$((SOURCE_DATE_EPOCH + 1))" {} +
fi
"""


def _read_series(file: Path, shown: str) -> list[tuple[str, int]]:
    """Names and strip levels in a series file."""
    data = file.read_bytes()
    if len(data) > _MAX_SERIES:
        raise BuildFailure("phase_failed", f"{shown} is too large for a series of patches")
    found = []
    for number, line in enumerate(data.decode(errors="surrogateescape").splitlines(), 1):
        words = line.split(" #", 1)[0].split()
        if not words or words[0].startswith("#"):
            continue
        strip = 1
        for word in words[1:]:
            match = _OPTION.fullmatch(word)
            if match is None:
                raise BuildFailure(
                    "phase_failed",
                    f"{shown}, line {number}: {word!r} is not understood",
                    hint="a line is a file name and, if need be, -pN; reversed patches (-R) are not supported",
                )
            strip = int(match[1])
        found.append((words[0], strip))
    return found


def _inside(path: str, shown: str) -> str:
    """`path` normalised, which must not leave the tree it is relative to."""
    normal = posixpath.normpath(path)
    if path.startswith("/") or normal in {".", ".."} or normal.startswith("../") or _unprintable(path):
        raise BuildFailure(
            "phase_failed",
            f"{shown!r} is not the path of a patch inside the package",
            hint="give a path relative to the package's directory",
        )
    return normal


def _unprintable(path: str) -> bool:
    return any(ord(letter) < 32 or ord(letter) == 127 for letter in path)


def _mode(srcdir: Path, path: str) -> int:
    """Type of what lies at `path`; every component on the way must be a real directory."""
    mode = stat.S_IFDIR
    current = srcdir
    for component in path.split("/"):
        current /= component
        try:
            mode = os.lstat(current).st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise BuildFailure(
                "phase_failed",
                f"there is no patch at {path!r}",
                hint="is it committed, and inside the package's directory?",
            ) from None
        if stat.S_ISLNK(mode):
            raise BuildFailure(
                "phase_failed",
                f"the patch {path!r} lies behind a symbolic link",
                hint="name the file that the link leads to",
            )
    return mode


def _require_file(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise BuildFailure("phase_failed", f"{path!r} is neither a patch nor a directory that holds a series file")
