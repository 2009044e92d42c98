"""Branches, tags and HEAD: of a clone on the disk, and as a server lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from msgspec import Struct

_LINE = re.compile(rb"([0-9a-f]{40,64}) (\S+)")
KEPT = ("refs/heads/", "refs/tags/")
"""What is fetched; servers have more, such as the pull requests of a forge."""


class References(Struct, frozen=True, kw_only=True):
    head: str | None
    """The branch that HEAD names, in full; None when that is not known, or HEAD is no branch."""
    ids: dict[str, str]
    """By full name."""

    def differ(self, listed: References) -> bool:
        """Whether a fetch from the server that listed those would change these."""
        return self.ids != listed.ids or (listed.head is not None and self.head != listed.head)


def kept(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Of pairs of name and id those of branches and tags; what a tag leads to is none itself."""
    return {name: id for name, id in pairs if name.startswith(KEPT) and not name.endswith("^{}")}


def read_references(path: str) -> References:
    """Those of the bare clone at `path`, as far as it has any. Raises OSError."""
    head, found = "", {}
    try:
        with open(os.path.join(path, "HEAD"), encoding="utf-8", errors="surrogateescape") as file:
            head = file.read(4096).strip()
    except FileNotFoundError:
        pass
    try:
        with open(os.path.join(path, "packed-refs"), "rb") as packed:
            found = {os.fsdecode(m[2]): m[1].decode() for line in packed if (m := _LINE.match(line)) is not None}
    except FileNotFoundError:
        pass
    for folder, _, names in os.walk(os.path.join(path, "refs")):
        for name in names:
            file_name = os.path.join(folder, name)
            with open(file_name, encoding="utf-8", errors="surrogateescape") as loose:
                found[os.path.relpath(file_name, path)] = loose.read(4096).strip()
    return References(head=head.removeprefix("ref: ") if head.startswith("ref: ") else None, ids=kept(found.items()))
