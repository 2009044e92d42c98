"""Work directories that are used again: as good as new, or not used again."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from buildd.execute import workdirs
from buildd.execute.sandbox import WORK_DIRECTORIES
from buildd.execute.workdirs import WorkDirectories

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOATIME_FL = 0x80086601, 0x40086602, 0x80


def _answers(directory: Path) -> bool:
    """Whether the file system there says all that has to be known of a directory."""
    return workdirs._look_at(directory) is not None


class Place:
    """The work directories below a path, and the builds that have one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.work = WorkDirectories(root)

    def build(self, name: str) -> Path:
        self.work.make(name)
        return self.root / name

    def inode(self, name: str) -> int:
        return (self.root / name).stat().st_ino

    @property
    def left(self) -> list[str]:
        return sorted(os.listdir(self.root))


@pytest.fixture
def place() -> Iterator[Place]:
    """On a disk: what a tmpfs does not answer is not used again."""
    root = Path(tempfile.mkdtemp(prefix="bd-work-", dir="/var/tmp"))
    try:
        if not _answers(root):
            pytest.skip("the file system of /var/tmp does not say what flags a directory has")
        yield Place(root)
    finally:
        shutil.rmtree(root)


def is_as_new(work: Path) -> bool:
    assert sorted(os.listdir(work)) == sorted(WORK_DIRECTORIES)
    assert work.stat().st_mode & 0o777 == 0o700
    fresh = work.parent / "fresh"
    fresh.mkdir()
    looks = {workdirs._look_at(work / name) for name in WORK_DIRECTORIES} | {workdirs._look_at(fresh)}
    fresh.rmdir()
    return len(looks) == 1 and all(os.listdir(work / name) == [] for name in WORK_DIRECTORIES)


def test_a_build_has_its_directories(place: Place) -> None:
    assert is_as_new(place.build("one"))
    place.work.remove("one", reuse=False)
    assert place.left == []
    place.work.remove("one", reuse=True)  # there is none
    assert [name for name in place.left if not name.startswith(".spare-")] == []


def test_the_directories_of_a_build_are_used_again(place: Place) -> None:
    inode = place.build("one").stat().st_ino
    place.work.remove("one", reuse=True)
    assert len(place.left) == 1
    assert place.left[0].startswith(".spare-")
    assert is_as_new(place.build("two"))
    assert place.inode("two") == inode
    assert is_as_new(place.build("three"))
    assert place.inode("three") != inode


def _fill(work: Path) -> None:
    (work / "src" / "deep" / "deeper").mkdir(parents=True)
    (work / "src" / "deep" / "deeper" / "file").write_text("x")
    (work / "build" / "link").symlink_to("/etc/passwd")
    (work / "tmp" / ".hidden").write_text("x")
    os.mkfifo(work / "tmp" / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(work / "tmp" / "socket"))
    (work / "home" / "locked").mkdir(mode=0)


def _date(work: Path) -> None:
    os.utime(work / "build", (4_000_000_000, 4_000_000_000))


@pytest.mark.parametrize("leave", [_fill, _date, lambda work: (work / "dest").rmdir()])
def test_nothing_of_the_build_before_is_left(place: Place, leave: Callable[[Path], object]) -> None:
    work = place.build("one")
    inode = work.stat().st_ino
    leave(work)
    place.work.remove("one", reuse=True)
    assert is_as_new(place.build("two"))
    assert place.inode("two") == inode
    assert all((place.root / "two" / name).stat().st_mtime < 3_000_000_000 for name in WORK_DIRECTORIES)


def _set_flag(work: Path) -> None:
    handle = os.open(work / "tmp", os.O_RDONLY)
    try:
        (flags,) = struct.unpack("l", fcntl.ioctl(handle, FS_IOC_GETFLAGS, bytes(8)))
        fcntl.ioctl(handle, FS_IOC_SETFLAGS, struct.pack("l", flags | FS_NOATIME_FL))
    except OSError as error:
        pytest.skip(f"no flags here: {error}")
    finally:
        os.close(handle)


def _set_acl(work: Path) -> None:
    if shutil.which("setfacl") is None:
        # version 2; user::rwx, group::r-x, other::rwx
        entries = ((1, 7, -1), (4, 5, -1), (32, 7, -1))
        acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        os.setxattr(work / "src", "system.posix_acl_default", acl)
    else:
        subprocess.run(["setfacl", "-d", "-m", "o::rwx", str(work / "src")], check=True)


def _make_large(work: Path) -> None:
    for number in range(2000):
        (work / "build" / f"a rather long name of a file, number {number:06}").touch()


def _replace_by_link(work: Path) -> None:
    (work / "build").rmdir()
    (work / "build").symlink_to("src")


def _replace_by_file(work: Path) -> None:
    (work / "build").rmdir()
    (work / "build").write_text("x")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda work: (work / "src").chmod(0o777),
        lambda work: (work / "src").chmod(0o2755),
        lambda work: (work / "src").chmod(0),
        lambda work: os.setxattr(work / "home", "user.message", b"from one build to the next"),
        lambda work: (work / "further").mkdir(),
        _set_flag,
        _set_acl,
        _make_large,
        _replace_by_link,
        _replace_by_file,
    ],
)
def test_what_differs_from_a_new_one_is_removed(place: Place, spoil: Callable[[Path], object]) -> None:
    work = place.build("one")
    try:
        spoil(work)
    except OSError as error:
        pytest.skip(f"not possible here: {error}")
    place.work.remove("one", reuse=True)
    assert place.left == []
    assert is_as_new(place.build("two"))


def test_what_cannot_be_told_of_a_directory_is_not_taken_for_granted(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workdirs, "_FS_IOC_FSGETXATTR", 0)
    place.build("one")
    place.work.remove("one", reuse=True)
    assert place.left == []


def test_a_spare_that_somebody_removed_is_not_missed(place: Place) -> None:
    place.build("one")
    place.work.remove("one", reuse=True)
    shutil.rmtree(place.root / place.left[0])
    assert is_as_new(place.build("two"))


def test_no_more_are_kept_than_builds_may_need(place: Place) -> None:
    for number in range(40):
        place.build(str(number))
    for number in range(40):
        place.work.remove(str(number), reuse=True)
    assert len(place.left) == workdirs._MOST_SPARES


def test_nothing_is_kept_in_the_end_nor_after_that(place: Place) -> None:
    for name in ("one", "two"):
        place.build(name)
    place.work.remove("one", reuse=True)
    place.work.close()
    assert place.left == ["two"]
    place.work.remove("two", reuse=True)
    assert place.left == []


def test_what_a_killed_daemon_kept_is_removed(place: Place) -> None:
    place.build("one")
    place.work.remove("one", reuse=True)
    (place.root / place.left[0] / "src" / "file").touch()
    place.work = WorkDirectories(place.root)
    assert place.left == []
