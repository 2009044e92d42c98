"""Parsing side by side, in processes that can be killed: a file that a grammar never finishes is given up.

Each child has a few tasks at a time and answers them in order, so the first one that is not answered is the one it is
at. Its time is processor time, for a busy machine is not the file's fault. A child that grew is replaced when it has
nothing to do; one that died is replaced as well, and a file that children died of twice is given up.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from buildd.repomap.examine import FRAME, serve
from buildd.repomap.forks import Child
from buildd.repomap.records import Record, Task

_BATCH = 16
_MAX_PENDING = 32
_READ_BYTES = 1 << 18
_GATHERED_S = 0.005
"""Answers of so long are taken at once while there is much to do: each look at them keeps a parser from its work."""
_MAX_MEMORY = 1 << 30
"""More than it began with; then an allocation fails."""
_RECYCLE_BYTES = 64 << 20
_WALL_FACTOR = 20
"""A child that gets no processor time at all is given up after this many times the limit."""
_ATTEMPTS = 2


class _Parser:
    def __init__(self, start: Callable[[int, int], None]) -> None:
        self.child = Child(start, _MAX_MEMORY)
        self.pending: deque[Task] = deque()
        self.buffer = bytearray()
        self.begin()

    def begin(self) -> None:
        """The first pending task begins now."""
        self.since = time.monotonic()
        self.cpu = self.child.cpu_s()

    def give(self, tasks: list[Task]) -> None:
        data = msgspec.msgpack.encode(tasks)
        if not self.pending:
            self.begin()
        self.pending.extend(tasks)
        try:
            os.write(self.child.requests, FRAME.pack(len(data)) + data)  # far less than a pipe holds
        except BrokenPipeError:
            pass  # it died, which is seen at the end of its answers

    @property
    def has_room(self) -> bool:
        return len(self.pending) + _BATCH <= _MAX_PENDING

    def overdue(self, limit: float, now: float) -> bool:
        if not self.pending or now - self.since < limit:
            return False
        return self.child.cpu_s() - self.cpu >= limit or now - self.since >= limit * _WALL_FACTOR


def parse(
    tasks: Iterable[Task],
    *,
    repository: str,
    max_file_bytes: int,
    max_file_s: float,
    processes: int,
    take: Callable[[Task, bytes | Record], None],
) -> None:
    """Call `take` once for each task, with the packed record or one that tells why there is none."""
    queue = deque(tasks)
    attempts: dict[Task, int] = {}
    parsers: dict[int, _Parser] = {}
    poll = select.poll()

    def start(requests: int, replies: int) -> None:
        for other in parsers.values():  # else they would not see the end of their requests
            os.close(other.child.requests)
            os.close(other.child.replies)
        serve(repository, max_file_bytes, requests, replies)

    def feed(parser: _Parser) -> None:
        while queue and parser.has_room:
            parser.give([queue.popleft() for _ in range(min(_BATCH, len(queue), 1 + len(queue) // (4 * processes)))])

    def drop(fd: int, *, kill: bool) -> _Parser:
        parser = parsers.pop(fd)
        poll.unregister(fd)
        parser.child.end(kill=kill)
        return parser

    def give_up(parser: _Parser, reason: str, attempt_limit: int) -> None:
        """Its first task has used an attempt; the others were not begun."""
        if not parser.pending:
            return
        first = parser.pending.popleft()
        queue.extendleft(reversed(parser.pending))
        attempts[first] = attempts.get(first, 0) + 1
        if attempts[first] >= attempt_limit:
            take(first, Record(0, reason))
        else:
            queue.appendleft(first)

    try:
        while queue or any(parser.pending for parser in parsers.values()):
            while queue and len(parsers) < min(processes, len(queue) + len(parsers)):
                parser = _Parser(start)
                parsers[parser.child.replies] = parser
                poll.register(parser.child.replies, select.POLLIN)
                feed(parser)
            answered = poll.poll(min(1.0, max_file_s / 4) * 1000)
            if queue:
                time.sleep(_GATHERED_S)
            for fd, _ in answered:
                parser = parsers[fd]
                data = os.read(fd, _READ_BYTES)
                if not data:
                    give_up(drop(fd, kill=True), "crashed", _ATTEMPTS)
                    continue
                _take_answers(parser, data, take)
                if not parser.has_room:
                    continue
                if parser.child.growth() <= _RECYCLE_BYTES:
                    feed(parser)
                elif not parser.pending:
                    drop(fd, kill=False)
            now = time.monotonic()
            for fd, parser in list(parsers.items()):
                if parser.overdue(max_file_s, now):
                    give_up(drop(fd, kill=True), "timeout", 1)
    finally:
        for fd in list(parsers):
            drop(fd, kill=True)


def _take_answers(parser: _Parser, data: bytes, take: Callable[[Task, bytes | Record], None]) -> None:
    buffer = parser.buffer
    buffer += data
    position = 0
    while len(buffer) - position >= FRAME.size:
        end = position + FRAME.size + FRAME.unpack_from(buffer, position)[0]
        if end > len(buffer):
            break
        take(parser.pending.popleft(), bytes(buffer[position + FRAME.size : end]))
        position = end
    if position:
        del buffer[:position]
        parser.begin()
