"""Makes a map: listing, records of blobs from the cache or the parsers, ranks, files.

The result depends on the commit and the version of the engine only (and on files that took too long, which no one can
foresee): not on what was in the cache, nor on the order in which parsers answered.
"""

from __future__ import annotations

import gc
import hashlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import msgspec

from buildd.errors import NotFound
from buildd.repomap import languages, roles
from buildd.repomap.cache import Cache
from buildd.repomap.queries import version_of
from buildd.repomap.records import Record, Task
from buildd.repomap.wire import MAX_TEXT, BuildRequest, Built, Progress
from buildd.repos.trees import EXECUTABLE, FILE, LINK, GitStore, RawEntry, map_little

_KEPT_AT_ONCE = 256
_NOT_KEPT = frozenset({"missing", "too_large", "crashed"})
"""Said about a repository, a configuration or perhaps a machine, not about a blob."""
_MAX_ATTRIBUTES_BYTES = 1 << 18
_decode_record = msgspec.msgpack.Decoder(Record).decode


def build(request: BuildRequest, report: Callable[[Progress], None]) -> Built:
    """Fill `request.output`. Raises NotFound, InvalidInput, OSError, sqlite.Error."""
    report(Progress(stage="listing"))
    gc.disable()  # the process ends with the map; until then everything that it makes is needed
    map_little()
    with GitStore(Path(request.repository)) as store:
        entries = store.raw_listing(store.resolve(request.commit))
        attributes = _attributes(store, entries)
    left_out: dict[int, str] = {}
    tasks: dict[int, Task] = {}
    for number, entry in enumerate(entries):
        if entry.mode in (FILE, EXECUTABLE):
            tasks[number] = entry.id, languages.hint_of(entry.path)
        else:
            left_out[number] = "link" if entry.mode == LINK else "submodule"
    records, parsed = _records(request, list(tasks.values()), report)
    by_file: list[Record | None] = [None] * len(entries)
    for number, task in tasks.items():
        record = records[task]
        if record.reason:
            left_out[number] = record.reason
        else:
            by_file[number] = record
    report(Progress(stage="ranking"))
    from buildd.repomap.publish import publish  # numpy, which the parsers shall not inherit

    role = []
    for number, entry in enumerate(entries):
        known = by_file[number]
        told = roles.role_of(
            entry.path,
            is_code=known is not None and known.language != "",
            says_generated=known is not None and known.generated,
        )
        role.append(attributes.role(entry.path, told))
    published = publish(
        request,
        entries,
        by_file,
        role,
        {number: left_out[number] for number in sorted(left_out)},
        engine_version(),
        report,
    )
    return Built(
        files=len(entries),
        mapped=len(entries) - len(left_out),
        parsed=parsed,
        definitions=published.definitions,
        left_out=dict(sorted(Counter(left_out.values()).items())),
        bytes=published.bytes,
        engine=engine_version(),
        text=published.text if len(published.text.text) <= MAX_TEXT else None,
    )


@cache
def engine_version() -> str:
    """Changes with whatever makes another map of the same commit."""
    text = " ".join(version_of(language) for language in languages.NAMES)
    return hashlib.sha256(f"{MAP_VERSION} {text}".encode()).hexdigest()[:16]


MAP_VERSION = 4
"""The next number when ranking or files change."""


def _attributes(store: GitStore, entries: list[RawEntry]) -> roles.Attributes:
    found = []
    with store.blobs() as read:
        for entry in entries:
            if entry.path.endswith(b".gitattributes") and entry.path.rpartition(b"/")[2] == b".gitattributes":
                try:
                    data = read(entry.id, _MAX_ATTRIBUTES_BYTES)[1]
                except NotFound:
                    continue
                if data is not None:
                    found.append((entry.path, data))
    return roles.Attributes(found)


def _version(hint: str) -> str:
    """Of what makes records of files with this hint."""
    if hint == languages.HEADER:
        return version_of("c") + version_of("cpp")
    if hint == languages.UNKNOWN:
        return "".join(version_of(language) for language in languages.NAMES)
    return version_of("" if hint == languages.TEXT else hint)


def _records(
    request: BuildRequest, tasks: list[Task], report: Callable[[Progress], None]
) -> tuple[dict[Task, Record], int]:
    """Of each task, and how many files were parsed for that."""
    records: dict[Task, Record] = {}
    files = Counter(tasks)
    cache = Cache(Path(request.cache), _version)
    fresh: list[tuple[Task, bytes]] = []
    parsed = 0

    def take(task: Task, answer: bytes | Record) -> None:
        nonlocal parsed
        record = answer if isinstance(answer, Record) else _decode_record(answer)
        records[task] = record
        if record.reason not in _NOT_KEPT:
            parsed += files[task]
            fresh.append((task, answer if isinstance(answer, bytes) else msgspec.msgpack.encode(answer)))
            if len(fresh) >= _KEPT_AT_ONCE:
                cache.keep(fresh)
                fresh.clear()
        report(Progress(stage="parsing", done=len(records), total=len(files)))

    try:
        report(Progress(stage="parsing", done=0, total=len(files)))
        for task, data in cache.find(files):
            try:
                record = _decode_record(data)
            except msgspec.MsgspecError:
                continue
            records[task] = record if record.size <= request.max_file_bytes else Record(record.size, "too_large")
        missing = sorted((task for task in files if task not in records), key=lambda task: task[1])
        if missing:
            from buildd.repomap.parsers import parse  # tree-sitter, which most maps do without

            parse(
                missing,
                repository=request.repository,
                max_file_bytes=request.max_file_bytes,
                max_file_s=request.max_file_s,
                processes=request.processes,
                take=take,
            )
        cache.keep(fresh)
        if missing:
            cache.prune(request.max_cache_bytes)
    finally:
        cache.close()
    return records, parsed
