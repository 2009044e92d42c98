"""What is known of one blob, whatever path and commit it is found at: this is what the cache keeps.

Identifiers are kept as 64-bit hashes, which need no table that processes would have to share: `word_hash`. Lists are
packed as native arrays, for they are joined by the thousand.
"""

from __future__ import annotations

from hashlib import blake2b

from msgspec import Struct

KINDS = (
    "class",
    "struct",
    "union",
    "interface",
    "trait",
    "enum",
    "object",
    "implementation",
    "module",
    "namespace",
    "type",
    "function",
    "method",
    "constructor",
    "prototype",
    "macro",
    "constant",
    "variable",
    "property",
)
KIND_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
TYPES = frozenset({"class", "struct", "union", "interface", "trait", "enum", "object", "implementation"})
"""What has members: a function in one is a method."""
ONLY_SCOPES = frozenset({"implementation", "namespace"})
"""They enclose definitions, and define no name themselves."""

Task = tuple[bytes, str]
"""Id of a blob, and the hint that its name gives about its language: of this a record is made."""


class Record(Struct, frozen=True, array_like=True, gc=False):
    size: int
    reason: str = ""
    """Why the blob is left out; then the rest is empty."""
    language: str = ""
    lines: int = 0
    generated: bool = False
    """It says so in its first lines."""
    words: bytes = b""
    """Hashes (uint64, ascending) of the identifiers that it names, with their prefixes."""
    counts: bytes = b""
    """How often (uint16, at most 65,535), in the same order."""
    names: tuple[str, ...] = ()
    """Of its definitions, in the order of the text, those that enclose others first."""
    hashes: bytes = b""
    """Of the names (uint64), with the prefixes by which they are named elsewhere."""
    owners: bytes = b""
    """Hash (uint64) of the name of the type that each is a member of without standing in it, or 0."""
    weights: bytes = b""
    """How telling each name is, in sixteenths (uint8)."""
    kinds: bytes = b""
    """Index in KINDS (uint8)."""
    places: bytes = b""
    """First line, last line, and number of the definition that encloses it or -1 (int32 each)."""
    tags: tuple[bytes, ...] = ()
    """Of each definition: members of its line in `tags.jsonl`, from `name` to `signature`."""
    ctags: tuple[bytes, ...] = ()
    """Of each definition: its line in `tags` from behind the path."""


def word_hash(word: bytes) -> int:
    return int.from_bytes(blake2b(word, digest_size=8).digest(), "little")
