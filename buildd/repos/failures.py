"""Why a transfer failed, told from what git, ssh, curl and libgit2 print.

Neither git nor libgit2 reports a machine-readable cause, so their English messages (the worker runs in the C
locale) are matched. A text that matches nothing is `other` and is passed on in full.
"""

from __future__ import annotations

import re

from buildd.repos.wire import FailureClass

_SIGNS: tuple[tuple[FailureClass, str], ...] = (
    ("disk_full", r"no space left|disk quota exceeded|disk full|file too large"),
    ("network", r"non-properly terminated|ssl_read|ssl_error_syscall"),
    (
        "host_key",
        r"host key verification failed|remote host identification has changed|no matching host key"
        r"|unknown certificate error.*ssh|invalid or unknown remote ssh hostkey|host ?key",
    ),
    (
        "tls",
        r"certificate|\bssl\b|\btls\b|gnutls",
    ),
    # git daemon does not tell a missing repository from one that it keeps to itself.
    ("not_found", r"repository not exported"),
    (
        "auth",
        r"authentication|could not read (username|password)|permission denied|access denied|unauthorized"
        r"|\b40[13]\b|too many redirects or authentication replays|no callback set|credentials"
        r"|not authorized|load key|publickey",
    ),
    (
        "not_found",
        r"not found|does not exist|not exported|\b404\b|does not appear to be a git repository"
        r"|no such repository|repository '.*' not|not a git repository|\b410\b",
    ),
    (
        "network",
        r"could not resolve|name or service not known|temporary failure in name|connection (refused|reset|timed out)"
        r"|unable to connect|failed to connect|connection closed|connection was closed|hung up|early eof"
        r"|network is unreachable|no route to host|timed out|timeout|broken pipe|unexpected disconnect"
        r"|\b50[0-9]\b|could not read (from|refs from) remote|eof|unable to look up|failed to resolve|error in sideband"
        r"|empty reply|transfer closed|bad pack|protocol error|invalid pkt",
    ),
)
_PATTERNS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _SIGNS)
_LIMIT = 1000


def classify(text: str) -> FailureClass:
    """The class of a failure by its message; the most specific cause wins over its consequences."""
    for kind, pattern in _PATTERNS:
        if pattern.search(text):
            return kind
    return "other"


def clean(text: str, secrets: tuple[str, ...] = ()) -> str:
    """`text` on one line without control characters and secrets, at most 1,000 characters."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LIMIT else text[: _LIMIT - 1] + "…"
