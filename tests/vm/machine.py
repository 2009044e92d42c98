"""A virtual machine that is booted, told what to do, and loses its power.

It is emulated (`BUILDD_VM_ACCEL=kvm` takes the host's processor instead, where that works), has no network, and keeps
its disk until it is closed. The disk is written through: what the guest was told is written has reached the host's
kernel, which survives the death of qemu; what the guest had not written yet is lost with it, as in a power cut. What a
disk loses of its own cache is not tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple, Self

from vm import image as images
from vm.agent import Agent, AgentError

BOOT_S = 600.0
"""Deadline of a boot. On an idle machine it takes some 25 s, on a busy one minutes."""
RUN_S = 240.0
_MEMORY = "1536"
_PORT = "org.qemu.guest_agent.0"


class Result(NamedTuple):
    """How a command in the guest ended."""

    status: int
    out: str
    err: str


class Background:
    """A command that runs in the guest."""

    def __init__(self, machine: Machine, command: str, pid: int) -> None:
        self._machine, self.command, self._pid = machine, command, pid

    def wait(self, *, within: float = RUN_S, check: bool = True) -> Result:
        """Its end. With `check` any status but 0 is an AssertionError."""
        try:
            result = Result(*self._machine.agent.wait(self._pid, within=within))
        except AgentError as error:
            raise AssertionError(f"in the guest, {self.command!r}: {error}\n{self._machine.last_words()}") from None
        assert not check or result.status == 0, (
            f"in the guest, {self.command!r} ended with {result.status}:\n{result.out[-6000:]}{result.err[-6000:]}"
        )
        return result


class Machine:
    """Use it in a `with` block; at its end qemu and the disk are gone."""

    def __init__(self, *, checkout: Path = images.ROOT, directory: Path | None = None) -> None:
        """A machine of its own for a checkout, switched off. Raises Unavailable.

        Its disk, its console and its sockets lie in `directory`, a new one unless it is given.
        """
        with images.image(checkout) as image:
            self.directory = Path(tempfile.mkdtemp(prefix="buildd-vm-")) if directory is None else directory
            for file in (image.disk, image.kernel, image.initrd):
                subprocess.run(["cp", "--sparse=always", "--reflink=auto", file, self.directory], check=True)
        self.agent = Agent(self.directory / "agent.sock")
        self._console, self._complaints = self.directory / "console.log", self.directory / "qemu.log"
        self._qemu: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.is_on:
            self.power_cut()
        shutil.rmtree(self.directory)

    # --- power ----------------------------------------------------------------------------------------------

    @property
    def is_on(self) -> bool:
        return self._qemu is not None and self._qemu.poll() is None

    def boot(self, *, within: float = BOOT_S) -> Self:
        """Switch it on, and wait until systemd has started everything that is enabled."""
        assert not self.is_on, "it is on already"
        deadline = time.monotonic() + within
        # the kernel ends qemu with us, whatever ends us
        command = ["setpriv", "--pdeathsig=KILL", *self._command(f"file:{self._console}")]
        with self._complaints.open("ab") as log:
            self._qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.agent.connect(within=within, alive=self._assert_on)
            state = self.run("systemctl is-system-running --wait", within=deadline - time.monotonic(), check=False)
        except (AgentError, AssertionError) as error:
            raise AssertionError(f"the virtual machine did not boot: {error}\n{self.last_words()}") from None
        if state.out.strip() != "running":
            failed = self.run("systemctl --failed --no-legend --plain; journalctl -b -p warning --no-pager | tail -50")
            raise AssertionError(f"the virtual machine is {state.out.strip()}:\n{failed.out}")
        return self

    def power_cut(self) -> None:
        """End it without warning."""
        assert self._qemu is not None
        self._qemu.kill()
        self._qemu.wait()
        self.agent.close()

    def shut_down(self, *, within: float = RUN_S) -> None:
        """Switch it off as an administrator does."""
        assert self._qemu is not None
        self.background("systemctl poweroff")
        try:
            self._qemu.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not shut down within {within:g} s\n{self.last_words()}") from None
        self.agent.close()

    def console(self) -> int:
        """Boot with this terminal as its console, where root needs no password, until it is shut down."""
        return subprocess.run(self._command("mon:stdio"), check=False).returncode

    def _command(self, serial: str) -> list[str]:
        accelerator = os.environ.get("BUILDD_VM_ACCEL", "tcg,thread=multi")
        return [
            *("qemu-system-x86_64", "-nodefaults", "-accel", accelerator, "-cpu", "max", "-smp", "2", "-m", _MEMORY),
            *("-display", "none", "-monitor", "none", "-no-reboot", "-nic", "none", "-serial", serial),
            *("-kernel", f"{self.directory}/vmlinuz", "-initrd", f"{self.directory}/initrd.img"),
            *("-append", "root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet panic=1"),
            *("-drive", f"file={self.directory}/disk.img,format=raw,if=virtio,cache=writethrough"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=agent,path={self.directory}/agent.sock,server=on,wait=off"),
            *("-device", f"virtserialport,chardev=agent,name={_PORT}"),
        ]

    def _assert_on(self) -> None:
        assert self.is_on, "qemu ended by itself"

    def last_words(self) -> str:
        """What the console and qemu said last."""
        texts = [
            path.read_text(errors="replace") for path in (self._console, self.directory / "qemu.log") if path.exists()
        ]
        return "\n".join(text[-3000:] for text in texts)

    # --- commands -------------------------------------------------------------------------------------------

    def background(self, command: str, *, user: str = "root", stdin: bytes = b"", within: float = RUN_S) -> Background:
        """Start shell text as a user; the guest ends it after so many seconds."""
        deadline = ["/usr/bin/timeout", "--kill-after=5", f"{within:g}"]
        shell = ["/bin/sh", "-c", command] if user == "root" else ["/sbin/runuser", "-l", user, "-c", command]
        return Background(self, command, self.agent.start(*deadline, *shell, stdin=stdin))

    def run(
        self, command: str, *, user: str = "root", stdin: bytes = b"", within: float = RUN_S, check: bool = True
    ) -> Result:
        """Run shell text and wait for it. With `check` any status but 0 is an AssertionError; 124 is the deadline.

        It ends when nothing has its output open any more.
        """
        return self.background(command, user=user, stdin=stdin, within=within).wait(within=within + 15, check=check)

    def until(self, command: str, *, within: float = RUN_S) -> str:
        """Repeat shell text in the guest until it ends with 0; its output."""
        script = f'until out=$({command}); do sleep 0.2; done; printf %s "$out"'
        return self.run(script, within=within).out

    def write(self, path: str, text: str) -> None:
        """A file of root's in the guest, with its directories."""
        self.run(f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text.encode())

    def copy_in(self, source: Path, path: str) -> None:
        """Copy the content of a directory of the host into one of root's in the guest."""
        packed = subprocess.run(
            ["tar", "-C", source, "--owner=0", "--group=0", "-cz", "."], stdout=subprocess.PIPE, check=True
        )
        self.run(f"mkdir -p {path} && tar -C {path} -xz", stdin=packed.stdout)
