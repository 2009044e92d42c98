"""The tag queries, one for each language, and the version of what makes records of blobs."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

RECORD_VERSION = 6
"""The next number when other records are made: by `tagger`, `lexer`, `qualified`, `examine`, `contents`, `records`."""


_QUERY_OF = {"tsx": "typescript"}
"""Grammars that have all the nodes of another one."""


def query_text(language: str) -> str:
    return resources.files(__name__).joinpath(f"{_QUERY_OF.get(language, language)}.scm").read_text(encoding="utf-8")


@cache
def version_of(language: str) -> str:
    """Changes with whatever changes the record of a blob. Of "" it is that of text of any other kind."""
    text = query_text(language) if language else ""
    return hashlib.sha256(f"{RECORD_VERSION} {text}".encode()).hexdigest()
