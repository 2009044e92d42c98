"""The load: rounds of builds and clones of every kind of end, each against sources that it has not seen before.

A round is BUILDS builds and CLONES clones: most succeed, some fail, some hit a time limit, some are cancelled one by
one and some with their run; clones are deleted when they are there, fail for want of a repository, are cancelled while
the server is silent, and are made for a run that builds what is in them.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Daemon, GitServer, RecipeRepository, RpcError, named, states, until

GOOD, FAILING, SLOW, CANCELLED, DROPPED, CLONED = 14, 4, 2, 2, 2, 1
BUILDS = GOOD + FAILING + SLOW + CANCELLED + DROPPED + CLONED
CLONES = 5
_WITHIN_S = 120.0
_STAGE = 'mkdir -p "$DESTDIR$PREFIX/share" && cp "$SRCDIR/source" "$DESTDIR$PREFIX/share/$BUILDD_PACKAGE"'
_CHILDREN = "(sleep 600 & exec setsid sleep 600) & echo at work; wait"
"""Processes that have to be ended: in the background, and in a session of their own."""


class Load:
    """Rounds against one daemon, with its sources below `directory`."""

    def __init__(self, daemon: Daemon, server: GitServer, silent: str) -> None:
        """`silent` is the URL of a server that accepts connections and says nothing."""
        self._daemon, self._server, self._silent = daemon, server, silent
        self._rounds = 0
        self._main = RecipeRepository(server.root / "main")
        self._dropped = RecipeRepository(server.root / "dropped")
        self._served = [RecipeRepository(server.root / f"served{n}.git") for n in range(3)]

    @property
    def builds(self) -> int:
        """Builds of all rounds so far."""
        return self._rounds * BUILDS

    @property
    def clones(self) -> int:
        return self._rounds * CLONES

    @property
    def operations(self) -> int:
        return self.builds + self.clones

    def run(self) -> None:
        """One round; returns when all of it has ended. Raises AssertionError when it did not end as it should."""
        self._rounds += 1
        self._change_sources()
        clones = self._begin_clones()
        self._build_and_cancel_some()
        self._cancel_a_run()
        self._end_clones(clones)
        self._clone_for_a_run()

    def _change_sources(self) -> None:
        mark = f"round {self._rounds}\n"
        for index in range(GOOD):
            depends = ["good0", "good1"] if index in (2, 3) else []
            self._package(self._main, f"good{index}", mark, "echo built", depends=depends)
        for index in range(FAILING):
            self._package(self._main, f"failing{index}", mark, "echo no >&2; exit 3")
        for index in range(SLOW):
            self._package(self._main, f"slow{index}", mark, _CHILDREN, limits={"timeout": "1s"})
        for index in range(CANCELLED):
            self._package(self._main, f"cancelled{index}", mark, _CHILDREN)
        for index in range(DROPPED):
            self._package(self._dropped, f"dropped{index}", mark, _CHILDREN)
        for repository in self._served:
            self._package(repository, repository.path.stem, mark, "echo built")
        for repository in (self._main, self._dropped, *self._served):
            repository.commit()

    def _package(self, repository: RecipeRepository, name: str, mark: str, build: str, **keys: object) -> None:
        repository.package(name, files={"source": f"{name} {mark}"}, phases={"build": build, "stage": _STAGE}, **keys)

    # --- builds -------------------------------------------------------------------------------------------

    def _build_and_cancel_some(self) -> None:
        daemon = self._daemon
        number = daemon.start(self._main)
        for index in range(CANCELLED):
            name = f"cancelled{index}"
            until(lambda name=name: states(daemon.run(number)).get(name) == "running", f"{name} runs", within=_WITHIN_S)
            daemon.call("run.cancel", {"run": str(number), "package": name})
        view = daemon.wait(number, within=_WITHIN_S)
        stats = view.stats
        assert (stats.success, stats.failed, stats.cancelled) == (GOOD, FAILING + SLOW, CANCELLED), stats
        assert named(view, "slow0").reason == "timeout"

    def _cancel_a_run(self) -> None:
        number = self._daemon.start(self._dropped)
        self._daemon.until_running(number, DROPPED, saying="at work", within=_WITHIN_S)
        self._daemon.call("run.cancel", {"run": str(number)})
        view = self._daemon.wait(number, within=_WITHIN_S)
        assert (view.state, view.stats.cancelled) == ("cancelled", DROPPED)

    # --- clones -------------------------------------------------------------------------------------------

    def _begin_clones(self) -> dict[str, str]:
        """Ask for clones; the URL of each, and how it is to end."""
        good = [self._server.url(repository) for repository in self._served[:2]]
        missing = f"{good[0].rpartition('/')[0]}/missing.git"
        ends = {**dict.fromkeys(good, "cloned"), missing: "failed", self._silent: "cancelled"}
        for url in ends:
            answer = self._daemon.call("repo.clone", {"repo": url})
            assert answer["status"] == "accepted", answer
        return ends

    def _end_clones(self, ends: dict[str, str]) -> None:
        for url, end in ends.items():
            if end == "cancelled":
                self._daemon.call("repo.cancel", {"repo": url})
            until(lambda url=url: self._clone_state(url) != "cloning", f"the clone of {url} ends", within=_WITHIN_S)
            assert self._clone_state(url) == ("cloned" if end == "cloned" else "failed")
            if url == next(iter(ends)):  # the maps of the others are stopped when they are deleted
                until(lambda url=url: self._map_state(url) == "complete", f"{url} is mapped", within=_WITHIN_S)
            self._delete(url)

    def _map_state(self, url: str) -> str:
        made = self._daemon.call("repo.status", {"repo": url})["repo_map_status"]
        return str(made["status"]) if made else ""

    def _clone_state(self, url: str) -> str:
        return str(self._daemon.call("repo.status", {"repo": url})["clone_status"]["status"])

    def _delete(self, url: str) -> None:
        """Delete a repository once nothing works on it any more."""

        def deleted() -> bool:
            with contextlib.suppress(RpcError):
                self._daemon.call("repo.delete", {"repo": url})
                return True
            return False

        until(deleted, f"{url} is deleted", within=_WITHIN_S)

    def _clone_for_a_run(self) -> None:
        url = self._server.url(self._served[2])
        view = self._daemon.build(url)
        assert view.stats.success == CLONED, view
        self._delete(url)


@contextmanager
def silent_server() -> Iterator[str]:
    """A git URL whose server accepts connections, in the kernel, and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        yield f"git://127.0.0.1:{listener.getsockname()[1]}/silent.git"


def sources_below(home: Path) -> Path:
    """Where the repositories go."""
    directory = home / "sources"
    directory.mkdir()
    return directory
