"""What there is to build: repositories that change, and what must come out of each of their commits."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import random
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from harness import GitServer, RecipeRepository, Workspace, git, served

_DAEMONISES = "(setsid sleep 300 </dev/null >/dev/null 2>&1 &)"


@dataclass(frozen=True)
class Part:
    """A package as it always is; its code changes."""

    name: str
    needs: tuple[str, ...] = ()
    first: str = ""
    """Shell text that takes the time which the build takes."""
    packed: bool = False
    fetches: bool = False
    """Whether it has a source that is downloaded, another one for each code."""


@dataclass(frozen=True)
class Expected:
    """What must become of the packages of a commit."""

    outputs: Mapping[str, str]
    """The file in each package's output."""
    fails: frozenset[str]
    needs: Mapping[str, tuple[str, ...]]

    def state(self, name: str) -> str:
        """`failed`, `blocked` or `built` by the sources alone."""
        if any(self.state(other) != "built" for other in self.needs[name]):
            return "blocked"
        return "failed" if name in self.fails else "built"


@dataclass
class Place:
    """A repository, the target that names it, and its commits."""

    workspace: Workspace
    target: str
    parts: Sequence[Part]
    downloads: Downloads
    codes: dict[str, int] = field(default_factory=dict)
    fails: set[str] = field(default_factory=set)
    commits: list[tuple[str, Expected]] = field(default_factory=list)
    branches: int = 0

    def begin(self) -> None:
        for part in self.parts:
            self.codes[part.name] = 1
            self._write(part)
        self.commit()

    def change(self, rng: random.Random) -> None:
        """Change some packages, often back to what they were before, and commit."""
        changed = {part.name for part in rng.sample(self.parts, rng.choice((1, 1, 1, 2, 3)))}
        mended, self.fails = self.fails, {rng.choice(self.parts).name} if rng.random() < 0.15 else set()
        for part in self.parts:
            if part.name in changed:
                code = self.codes[part.name]
                self.codes[part.name] = rng.choice((code + 1, rng.randint(1, code + 1)))
            if part.name in changed | mended | self.fails:
                self._write(part)
        self.commit()
        if rng.random() < 0.3 and not self.workspace.plain:
            self._branch()

    def commit(self) -> None:
        self.commits.append((self.workspace.commit(), self._expected()))

    def at(self, commit: str) -> str:
        """The target that names a commit; a plain directory has none, and is taken as it is."""
        return f"{self.target}@{commit}" if commit else self.target

    def _expected(self) -> Expected:
        outputs: dict[str, str] = {}
        for part in self.parts:
            own = f"{part.name} {self.workspace.mark}\n{self._code(part)}\n"
            outputs[part.name] = own + "".join(outputs[other] for other in part.needs)
        return Expected(outputs, frozenset(self.fails), {part.name: part.needs for part in self.parts})

    def _code(self, part: Part) -> str:
        return f"{self.codes[part.name]}" + ("\nerror: it is to fail" if part.name in self.fails else "")

    def _write(self, part: Part) -> None:
        keys: dict[str, object] = {"formats": ["tar"]} if part.packed else {}
        if part.fetches:
            keys["source"] = [self.downloads.source(f"{part.name}-{self.codes[part.name]}")]
        self.workspace.compiled(part.name, *part.needs, first=part.first, **keys)
        self.workspace.edit(part.name, self._code(part))

    def _branch(self) -> None:
        """Make a branch, or remove the last one, so that a fetch has references to write and to prune."""
        if self.branches:
            git("branch", "-D", f"topic-{self.branches}", cwd=self.workspace.path)
            self.branches = 0
        else:
            self.branches = len(self.commits)
            git("branch", f"topic-{self.branches}", cwd=self.workspace.path)


def _parts(mark: str, pauses: Sequence[float], *, rough: bool) -> list[Part]:
    """A graph of eight packages; `rough` ones leave processes behind, or are slow to end."""
    slow = [f"sleep {pause}" for pause in pauses]
    if rough:
        slow[2] = f"{_DAEMONISES}; {slow[2]}"
        slow[5] = f"trap '' TERM; {slow[5]}"
    return [
        Part(f"{mark}0", first=slow[0]),
        Part(f"{mark}1", first=slow[1], packed=True),
        Part(f"{mark}2", (f"{mark}0",), first=slow[2]),
        Part(f"{mark}3", (f"{mark}0", f"{mark}1"), first=slow[3], fetches=True),
        Part(f"{mark}4", (f"{mark}2",), first=slow[4]),
        Part(f"{mark}5", (f"{mark}2", f"{mark}3"), first=slow[5], packed=True),
        Part(f"{mark}6", first=slow[6]),
        Part(f"{mark}7", (f"{mark}4", f"{mark}5", f"{mark}6"), first=slow[7]),
    ]


class World:
    """All repositories and servers. Use `a_world`."""

    def __init__(self, root: Path, server: GitServer, downloads: Downloads, silent: str) -> None:
        self.root = root
        self.silent = silent
        """A URL whose server accepts connections and says nothing."""
        pauses = (0.0, 0.02, 0.3, 0.05, 1.2, 0.1, 0.7, 0.0)
        self.local = Place(
            Workspace(root / "local", mark="local"), str(root / "local"), _parts("l", pauses, rough=True), downloads
        )
        shared = Workspace(root / "shared", mark="shared")
        self.shared = Place(shared, server.url(shared), _parts("s", (*pauses[4:], *pauses[:4]), rough=False), downloads)
        self.plain = Place(
            Workspace(root / "plain", mark="plain", plain=True),
            str(root / "plain"),
            [Part("d0"), Part("d1", ("d0",), first="sleep 0.1"), Part("d2", ("d0",))],
            downloads,
        )
        """A directory that git does not know. It must hold still while a run may look at it."""
        quick = Workspace(root / "quick", mark="quick")
        self.quick = Place(
            quick,
            server.url(quick),
            [Part("q0", packed=True), Part("q1", fetches=True), Part("q2", ("q0", "q1"))],
            downloads,
        )
        """A repository that is built in no time."""
        for place in (self.local, self.shared, self.plain, self.quick):
            place.begin()
        heavy = RecipeRepository(root / "heavy")
        noise = random.Random(0)
        for number in range(12):
            heavy.write(f"blob{number}", noise.randbytes(400_000)).commit()
        self.heavy = server.url(heavy)
        """The URL of a repository whose clone takes a moment; nothing is built from it."""


@contextmanager
def a_world(root: Path) -> Iterator[World]:
    with served(root) as server, _downloads() as downloads, silence() as silent:
        yield World(root, server, downloads, silent)


# --- servers ----------------------------------------------------------------------------------------------


class Downloads(http.server.ThreadingHTTPServer):
    """Gives out any file that is asked for, in small pieces; what is in it follows from its name."""

    def source(self, name: str) -> dict[str, object]:
        """As a recipe names it."""
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return {"url": url, "sha256": hashlib.sha256(_content(name)).hexdigest(), "extract": False}

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients are killed at any time."""


@cache
def _content(name: str) -> bytes:
    return random.Random(name).randbytes(100_000)


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        content = _content(self.path.removeprefix("/"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        for start in range(0, len(content), 10_000):
            self.wfile.write(content[start : start + 10_000])
            time.sleep(0.01)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _downloads() -> Iterator[Downloads]:
    with Downloads(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def silence() -> Iterator[str]:
    """The URL of a server that lets clients connect and says nothing; the kernel accepts for it."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0), backlog=100)) as listener:
        yield f"git://127.0.0.1:{listener.getsockname()[1]}/silent"
