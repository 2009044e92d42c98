"""The disk: Debian with buildd installed as README.md says, made in three steps that are each kept in a cache.

* the system, by mmdebstrap from PACKAGES and what is below `system/`: minutes, and needs the network
* the wheels of what buildd needs: needs the network
* the installation of this checkout by the very commands of README.md, in a chroot: half a minute

The cache is `$XDG_CACHE_HOME/buildd-vm`. The name of everything in it has a hash of what it was made from, it appears
by one rename, and only the last few are kept. A lock lets several checkouts use it at the same time.
"""

from __future__ import annotations

import configparser
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SYSTEM = Path(__file__).parent / "system"
RELEASE = "bookworm"
PACKAGES = (
    *("linux-image-cloud-amd64", "initramfs-tools", "zstd", "kmod", "udev"),
    *("systemd", "systemd-sysv", "libpam-systemd", "dbus", "procps", "qemu-guest-agent"),
    *("python3", "python3-venv", "git", "bubblewrap", "make", "gcc", "libc6-dev", "patch", "sqlite3"),
)
INSTALLED = ("buildd", "ctl", "systemd", "man", "README.md", "LICENSE", "pyproject.toml", "setup.cfg")
"""What of this checkout goes into the machine."""
SOMEBODY = "alice"
"""The user of the guest who may control the daemon."""
NOBODY_SPECIAL = "bob"
"""The user of the guest who may only look."""
DISK_SIZE = "12G"
_KEPT = 3
_TOOLS = {  # program -> Debian package
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "tar": "tar",
}


class Unavailable(Exception):
    """This machine cannot make or run the virtual one; says what to do about it."""


class Image(NamedTuple):
    """A directory with what boots."""

    path: Path

    @property
    def disk(self) -> Path:
        return self.path / "disk.img"

    @property
    def kernel(self) -> Path:
        return self.path / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.path / "initrd.img"


def require_tools() -> None:
    """Raises Unavailable."""
    missing = sorted({package for program, package in _TOOLS.items() if shutil.which(program) is None})
    if os.geteuid() != 0:
        raise Unavailable("tests in a virtual machine must be run by root: they make a root file system")
    if missing:
        raise Unavailable(
            f"programs are missing; on Debian: apt-get install --no-install-recommends {' '.join(missing)}"
        )


@contextlib.contextmanager
def image(checkout: Path = ROOT) -> Iterator[Image]:
    """The disk for a checkout, made where it is not in the cache. Nobody removes it inside of the block.

    Raises Unavailable.
    """
    require_tools()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "buildd-vm"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        system = _kept(cache, "system", _hash(*_system_command(), *_contents(SYSTEM)), _make_system)
        needed = _requirements(checkout)
        wheels = _kept(cache, "wheels", _hash(*needed), lambda to: _download(needed, to))
        content = _hash(system.name, wheels.name, *_contents(Path(__file__), *(checkout / name for name in INSTALLED)))
        yield Image(_kept(cache, "image", content, lambda to: _install(checkout, system, wheels, to)))


def commands_of_readme(checkout: Path) -> list[str]:
    """How README.md says that a machine gets buildd as a service, line by line."""
    section = (checkout / "README.md").read_text().split("\n## Under systemd\n", 1)[1]
    block = re.search(r"(?:^ {4}.*\n)+", section, re.MULTILINE)
    assert block, "README.md has no commands under 'Under systemd'"
    return [line.strip().replace("SOMEBODY", SOMEBODY) for line in block[0].splitlines()]


# --- the cache --------------------------------------------------------------------------------------------


def _kept(cache: Path, kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The directory of this kind and key, made by `make` unless it is there; older ones of the kind go."""
    path = cache / f"{kind}-{key}"
    if not path.is_dir():
        with tempfile.TemporaryDirectory(prefix="new-", dir=cache) as workplace:
            fresh = Path(workplace) / kind
            fresh.mkdir()
            make(fresh)
            fresh.rename(path)
    path.touch()
    for old in sorted(cache.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old)
    return path


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _contents(*paths: Path) -> Iterator[str]:
    """Names, modes and hashes of all files, in an order that depends on nothing else."""
    for top in paths:
        for file in [top] if top.is_file() else sorted(top.rglob("*")):
            if file.is_file() and not _is_made(file):
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                yield f"{file.relative_to(top.parent)} {file.stat().st_mode:o} {digest}"


def _is_made(path: Path) -> bool:
    return path.suffix == ".pyc" or any(part.endswith(".egg-info") for part in path.parts)


# --- the steps --------------------------------------------------------------------------------------------


def _system_command() -> list[str]:
    """How the system is made, but for where it goes."""
    tree = 'tar -C "$VM_SYSTEM" --owner=0 --group=0 --mode=u=rwX,go=rX -c . | tar -C "$1" -x'
    inside = (
        "update-initramfs -u",
        "passwd --delete root",
        *(f"useradd --create-home --shell /bin/bash {user}" for user in (SOMEBODY, NOBODY_SPECIAL)),
        "systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer",
    )
    return [
        *("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(PACKAGES)}"),
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale", "info")),
        f"--customize-hook={tree}",
        *(f'--customize-hook=chroot "$1" sh -c {shlex.quote(command)}' for command in inside),
        RELEASE,
    ]


def _make_system(to: Path) -> None:
    _say(f"making a Debian {RELEASE} with mmdebstrap; this takes some minutes, once")
    _execute(*_system_command(), str(to / "root.tar"), env={**os.environ, "VM_SYSTEM": str(SYSTEM)})


def _requirements(checkout: Path) -> list[str]:
    """What pip needs to install the checkout, in the notation of pip."""
    setup = configparser.ConfigParser()
    setup.read(checkout / "setup.cfg")
    project = tomllib.loads((checkout / "pyproject.toml").read_text())
    return [*setup["options"]["install_requires"].split(), *project["build-system"]["requires"], "wheel"]


def _download(requirements: list[str], to: Path) -> None:
    _say("downloading wheels for the guest's Python")
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(17, 37)] + ["manylinux2014_x86_64"]
    _execute(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"),
        *("--dest", str(to), "--only-binary=:all:", "--implementation=cp", "--python-version=3.11"),
        *(f"--abi={abi}" for abi in ("cp311", "abi3", "none")),
        *(f"--platform={platform}" for platform in platforms),
        *requirements,
    )


def _install(checkout: Path, system: Path, wheels: Path, to: Path) -> None:
    _say("installing this checkout into an image")
    root = to.parent / "root"
    root.mkdir()
    _execute("tar", "-C", str(root), "-xf", str(system / "root.tar"), "--exclude=./dev/*")
    place = root / "root" / "buildd"
    for name in INSTALLED:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("*.pyc", "__pycache__", "*.egg-info"))
        else:
            place.mkdir(exist_ok=True)
            shutil.copy(source, place / name)
    shutil.copytree(wheels, root / "wheels")
    # pip works as on any machine, but takes everything from the wheels
    environment = {"PATH": "/usr/sbin:/usr/bin", "HOME": "/root", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
    # the first boot starts what is enabled; nothing can be started in a chroot
    commands = [
        command.replace("systemctl enable --now", "systemctl enable") for command in commands_of_readme(checkout)
    ]
    script = "\n".join(["set -eux", "systemd-machine-id-setup", "cd /root/buildd", *commands])
    # systemctl knows a chroot by process 1 having another root: it must not be replaced
    chroot = f'mount -t proc proc "$0/proc"; chroot "$0" sh -c {shlex.quote(script)}; exit'
    _execute("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", chroot, str(root), env=environment)
    shutil.rmtree(root / "wheels")
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
        (found,) = (root / "boot").glob(pattern)
        found.rename(to / name)
    _execute("mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(to / "disk.img"), DISK_SIZE)
    shutil.rmtree(root)


def _execute(*command: str, env: dict[str, str] | None = None) -> None:
    """Run a command of the host; its output is only of interest when it fails. Raises Unavailable."""
    done = subprocess.run(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if done.returncode != 0:
        tail = done.stdout.decode(errors="replace")[-4000:]
        raise Unavailable(f"{shlex.join(command)} ended with {done.returncode}:\n{tail}")


def _say(what: str) -> None:
    sys.stderr.write(f"vm: {what}\n")
