"""The house: a room imports only rooms below it, and each thing that is done once has one door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # from top to bottom
    {"app", "__main__"},
    {"control"},
    {"engine"},
    {"execute"},
    {"repomap"},
    {"repos"},
    {"recipes"},
    {"publish"},
    {"store"},
    {"monitor"},
    {"planner"},
    {
        "model",
        "protocol",
        "config",
        "errors",
        "process",
        "conversation",
        "answering",
        "systemd",
        "logging",
        "heap",
        "cgroups",
        "scope",
        "life",
        "threads",
        "shortage",
        "descriptors",
        "journald",
        "launch",
    },
]
DOORS = {
    "zmq": "buildd/control/socket.py",
    "sqlite3": "buildd/store/sqlite.py",
    "subprocess": None,
    "multiprocessing": None,
    "asyncio": None,
}
CLIENT_DOORS: dict[str, str | None] = {"zmq": None, "curses": "ctl/top/screen.py", "mcp": "ctl/mcp/server.py"}
LEVEL = {room: len(FLOORS) - index for index, floor in enumerate(FLOORS) for room in floor}
MODULES = sorted((ROOT / "buildd").rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in it, with `buildd` names in full."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "buildd" and len(parts) > 1 and parts[1] in LEVEL else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    if path == ROOT / "buildd" / "__init__.py":
        assert list(imports(path)) == []
        return
    own = path.relative_to(ROOT / "buildd").with_suffix("").parts[0]
    assert own in LEVEL, f"the room {own} has no floor"
    found = {room for name in imports(path) if (room := room_of(name)) is not None} - {own}
    upward = sorted(room for room in found if LEVEL[room] > LEVEL[own])
    assert upward == [], f"{own} imports {', '.join(upward)}, which lie above it"


@pytest.mark.parametrize("package", DOORS)
def test_what_is_done_once_has_one_door(package: str) -> None:
    users = {str(path.relative_to(ROOT)) for path in MODULES if any(n.split(".")[0] == package for n in imports(path))}
    assert users == ({DOORS[package]} - {None})


def test_the_client_knows_the_protocol_and_nothing_else_of_the_daemon() -> None:
    allowed = ("buildd.protocol", "buildd.__version__")
    for path in sorted((ROOT / "ctl").rglob("*.py")):
        for name in imports(path):
            assert name.split(".")[0] not in ("trio", "pygit2", "sqlite3"), f"{path.name} imports {name}"
            if name.split(".")[0] == "buildd":
                assert name.startswith(allowed), f"{path.name} imports {name}"


@pytest.mark.parametrize("package", CLIENT_DOORS)
def test_what_the_client_does_once_has_one_door(package: str) -> None:
    modules = sorted((ROOT / "ctl").rglob("*.py"))
    users = {str(path.relative_to(ROOT)) for path in modules if any(n.split(".")[0] == package for n in imports(path))}
    assert users == {CLIENT_DOORS[package]} - {None}
