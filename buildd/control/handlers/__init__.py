"""One function per method: parameters and peer in, answer out. `all_handlers` is the exhaustive dispatch."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from buildd.control.handlers import artifact, build, daemon, db, events, map, package, repo, run
from buildd.control.handlers.services import Services
from buildd.control.socket import Peer

_METHODS: dict[str, Callable[..., Awaitable[Any]]] = {
    "daemon.status": daemon.status,
    "daemon.resources": daemon.resources,
    "daemon.doctor": daemon.doctor,
    "daemon.drain": daemon.drain,
    "daemon.resume": daemon.resume,
    "daemon.reload": daemon.reload,
    "daemon.shutdown": daemon.shutdown,
    "repo.clone": repo.clone,
    "repo.status": repo.status,
    "repo.list": repo.list_all,
    "repo.refresh": repo.refresh,
    "repo.cancel": repo.cancel,
    "repo.delete": repo.delete,
    "repo.branches": repo.branches,
    "repo.files": map.files,
    "map.request": map.request,
    "map.status": map.status,
    "map.list": map.list_all,
    "map.get": map.get,
    "map.read": map.read,
    "map.tags": map.tags,
    "map.refs": map.refs,
    "map.cancel": map.cancel,
    "repo.tree": repo.tree,
    "repo.docs": repo.docs,
    "repo.cat": repo.cat,
    "run.start": run.start,
    "run.plan": run.plan,
    "package.why": package.why,
    "package.verify": package.verify,
    "run.status": run.status,
    "run.list": run.list_recent,
    "run.wait": run.wait,
    "run.cancel": run.cancel,
    "build.show": build.show,
    "build.list": build.list_builds,
    "build.log": build.read_log,
    "object.show": run.show_object,
    "events.poll": events.poll,
    "artifact.list": artifact.list_artifacts,
    "artifact.show": artifact.show,
    "artifact.export": artifact.export,
    "artifact.read": artifact.read,
    "artifact.verify": artifact.verify,
    "artifact.pin": artifact.pin,
    "artifact.unpin": artifact.unpin,
    "artifact.collect": artifact.collect,
    "db.latest": db.latest,
    "db.failures": db.failures,
    "db.fingerprint": db.fingerprint,
    "db.stats": db.stats,
    "db.verify": db.verify,
    "db.reset": db.reset,
}


def all_handlers(services: Services) -> dict[str, Callable[[Any, Peer], Awaitable[Any]]]:
    """Every method's handler, bound to what it works on."""
    return {name: partial(function, services) for name, function in _METHODS.items()}
