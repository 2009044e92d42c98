"""Artifacts: content-addressed directories of what builds left behind.

`artifacts/ab/<output id>/` holds `tree/` (the staged files, read-only), `manifest.json` (every file with its
hash; its time is that of the last use), `builds/<build id>.json` (a receipt for each build that made this output,
from which the database can be rebuilt), `pin.json` if somebody wants it kept and, once asked for, packed forms.
`artifacts/.damaged/` keeps the last few whose files were not what their manifest says.

Invariants: a directory under its final name is complete; a receipt is on disk before the database says
`success`; the tree and the listing of it are never changed in place; an artifact goes by one rename, and none
that is held goes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec

from buildd.errors import InvalidInput, NotFound
from buildd.store import remains
from buildd.store.damaged import Damaged
from buildd.store.holds import Holds
from buildd.store.listing import OutputListing, output_id, scan
from buildd.store.manifest import (
    Manifest as Manifest,
    ManifestHead as ManifestHead,
    Receipt as Receipt,
    count_files,
    missing,
    read_manifest,
    read_receipts,
)
from buildd.store.output import publish
from buildd.store.pins import Pin, move_pin, read_pin, remove_pin, write_pin
from buildd.store.presence import Presence
from buildd.store.tree import remove_tree, sync_directory, uncancelled, write_file
from buildd.store.verify import Soundness, snapshot

_ID = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """Everything below `directory`. The methods block on the disk: call them in worker threads."""

    def __init__(self, directory: Path) -> None:
        self.root = directory
        self._place = str(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.holds = Holds()
        self.damaged = Damaged(directory / ".damaged")
        self._presence = Presence(directory)
        self._soundness = Soundness()
        self._moving = threading.Lock()
        """Held while an artifact loses its name."""

    # --- what is there ------------------------------------------------------------------------------------

    def directory(self, output: str) -> Path:
        """Where the artifact with this output id is, or would be. Raises InvalidInput."""
        if not _ID.fullmatch(output):
            raise InvalidInput(f"{output!r} is not an output id", hint="64 hexadecimal digits")
        return self.root / output[:2] / output

    def tree(self, output: str) -> Path:
        return self.directory(output) / "tree"

    def exists(self, output: str) -> bool:
        """Whether the artifact can be had now: one stat."""
        if self.holds.is_withdrawn(output) or not _ID.fullmatch(output):
            return False
        try:
            os.stat(f"{self._place}/{output[:2]}/{output}/manifest.json")  # asked for each package of a run
        except OSError:
            return False
        return True

    def vanished(self) -> set[str]:
        """Output ids that an earlier call saw and that are gone, whoever removed them: some 256 stats."""
        return self._presence.vanished()

    def outputs(self, prefix: str = "") -> Iterator[str]:
        """The ids of what lies here, in order; `prefix`, if any, has at least two hexadecimal digits."""
        for short in [prefix[:2]] if prefix else sorted(os.listdir(self.root)):
            if len(short) != 2:
                continue
            try:
                names = sorted(os.listdir(self.root / short))
            except (FileNotFoundError, NotADirectoryError):
                continue
            yield from (name for name in names if name.startswith(prefix) and _ID.fullmatch(name))

    def manifest(self, output: str) -> Manifest:
        """Raises NotFound, or Refused when it is damaged."""
        return read_manifest(self.directory(output), Manifest)

    def head(self, output: str) -> ManifestHead:
        """The manifest without its entries. Raises NotFound, or Refused when it is damaged."""
        head = read_manifest(self.directory(output), ManifestHead)
        if head.files is None:
            head = msgspec.structs.replace(head, files=count_files(self.manifest(output).entries))
        return head

    def listing(self, output: str) -> OutputListing:
        return OutputListing(entries=self.manifest(output).entries)

    def packed(self, output: str, name: str) -> Path:
        """Where the packed form called `name` is, or would be."""
        return self.directory(output) / name

    def unfinished(self, output: str) -> Path:
        """A new name for a file that is to go into an artifact, where the next start finds and removes it."""
        return _hidden(self.directory(output))

    def receipts(self, output: str) -> list[Receipt]:
        """The newest receipts of an artifact, newest first; those that cannot be read are passed over."""
        return read_receipts(self.directory(output) / "builds")

    def packages(self, output: str) -> tuple[str, ...]:
        """`NAME@VERSION` of the builds that made an artifact, as far as their receipts can be read."""
        return tuple(dict.fromkeys(f"{r.build.package}@{r.build.version}" for r in self.receipts(output)))

    def touch(self, outputs: Iterable[str]) -> None:
        """Note that these are used now. What cannot be noted is not: it matters for the order of going only."""
        for output in outputs:
            with contextlib.suppress(OSError):
                os.utime(self.directory(output) / "manifest.json")

    def last_used(self, output: str) -> float:
        """When an artifact was made or last used. Raises OSError."""
        return (self.directory(output) / "manifest.json").stat().st_mtime

    # --- coming -------------------------------------------------------------------------------------------

    def add(self, staged: Path, *, created_at: float, mtime: int, check: Callable[[], None]) -> Manifest:
        """Take over the tree at `staged`. Returns its manifest, the earlier one when the output is known.

        The artifact is held for as long as that manifest lives, so that it is not collected before whoever made
        it has recorded it. Raises BuildFailure for what an output cannot hold, OSError for the disk.
        """
        listing = scan(staged, check)
        output = output_id(listing)
        self._hold(output)
        try:
            manifest = self._known(output, check) or self._publish(output, listing, staged, created_at, mtime, check)
        except BaseException:
            self.holds.release(output)
            raise
        self._presence.saw(output)
        weakref.finalize(manifest, self.holds.release, output).atexit = False
        return manifest

    def _hold(self, output: str) -> None:
        """Hold an artifact that exists or not; one that is on its way out goes first."""
        while not self.holds.take(output):
            with contextlib.suppress(OSError):  # either way it is withdrawn no longer
                self.remove_withdrawn(output)

    def _known(self, output: str, check: Callable[[], None]) -> Manifest | None:
        """The manifest of an artifact that is there already; a damaged one makes way."""
        if not self.exists(output):
            return None
        if not self.verify_on_use(output, check):
            self.set_aside(output)
            return None
        self.touch((output,))
        return self.manifest(output)

    def _publish(
        self,
        output: str,
        listing: OutputListing,
        staged: Path,
        created_at: float,
        mtime: int,
        check: Callable[[], None],
    ) -> Manifest:
        directory = self.directory(output)
        manifest = Manifest(
            output_id=output,
            created_at=created_at,
            bytes=listing.bytes,
            files=count_files(listing.entries),
            entries=listing.entries,
        )
        with contextlib.suppress(FileExistsError):
            directory.parent.mkdir()
            sync_directory(self.root)
        temporary = _hidden(directory)
        temporary.mkdir()
        try:
            publish(staged, temporary / "tree", mtime=mtime, check=check)
            (temporary / "builds").mkdir()
            write_file(temporary / "manifest.json", msgspec.json.encode(manifest))
            sync_directory(temporary)
            seen = snapshot(temporary / "tree")
            if not self.exists(output) and directory.exists():
                self.set_aside(output)  # without its manifest it is no artifact
            try:
                temporary.rename(directory)
            except OSError:
                if not self.exists(output):  # else another build was faster with the same output
                    raise
            else:
                self._soundness.note(output, seen)
                for damaged in self.damaged.kept(output):
                    move_pin(damaged, directory)
            sync_directory(directory.parent)
        finally:
            remains.discard(temporary)
        return manifest

    def add_receipt(self, output: str, receipt: Receipt) -> None:
        """Leave a receipt, on disk when this returns. Raises OSError, with nothing left behind."""
        builds = self.directory(output) / "builds"
        final = builds / f"{receipt.build.id}.json"
        temporary = self.root / f".{receipt.build.id}.tmp"
        try:
            write_file(temporary, msgspec.json.encode(receipt))
            temporary.rename(final)
            sync_directory(builds)
        except OSError:
            for path in (temporary, final):
                with contextlib.suppress(OSError):
                    path.unlink()
            raise

    # --- pins ---------------------------------------------------------------------------------------------

    def pin(self, output: str, pin: Pin) -> None:
        """Keep an artifact until `unpin`. Raises NotFound, OSError."""
        with self.holds.holding(output) as held:
            if not held or not self.exists(output):
                raise missing(output)
            write_pin(self.directory(output), pin, temporary=self.unfinished(output))

    def unpin(self, output: str) -> bool:
        """Undo `pin`; False when it was not pinned. Raises OSError."""
        return remove_pin(self.directory(output))

    def pinned(self, output: str) -> Pin | None:
        """The pin of an artifact, if it has one."""
        return read_pin(self.directory(output))

    # --- sound or damaged ---------------------------------------------------------------------------------

    def verify(self, output: str, check: Callable[[], None] = uncancelled) -> list[str]:
        """What is wrong with an artifact, by reading all of it; nothing when it is sound.

        `check` may raise to end it. Raises NotFound, and OSError for trouble that says nothing about the artifact.
        """
        with self.holds.holding(output) as held:
            if not held:  # it is just going, and would look like a damaged one
                raise missing(output)
            return self._soundness.verify(output, self.tree(output), lambda: self.listing(output), check)

    def verify_on_use(self, output: str, check: Callable[[], None] = uncancelled) -> bool:
        """Whether an artifact is there and sound.

        It is read in full unless that was done in this life of the daemon, and sizes, times and inodes of its files
        are what they were then. Raises OSError for trouble that says nothing about the artifact; `check` may raise to
        end it.
        """
        try:
            return self.exists(output) and self._soundness.is_sound(
                output, self.tree(output), lambda: self.listing(output), check
            )
        except NotFound:  # it went in this moment
            return False

    def set_aside(self, output: str) -> Path | None:
        """Take a damaged artifact out of use; where it is kept for people to look at.

        None when it is gone already or just going, when a sound one has come in its place, or when there was no room
        to keep it.
        """
        if self.holds.is_withdrawn(output):  # whoever looked for it did not find it, and knows no more than that
            return None
        if self.exists(output) and self._soundness.unchanged(output, self.tree(output)):
            return None
        self._soundness.forget(output)
        directory, hidden, place = self.directory(output), None, None
        with self._moving:
            try:
                place = self.damaged.take(directory)
            except FileNotFoundError:
                return None
            except OSError:  # as on a full disk
                hidden = _hide(directory)
        if hidden is not None:
            remains.remove(hidden)
        with contextlib.suppress(OSError):  # one too many is kept
            self.damaged.trim()
        return place

    # --- going --------------------------------------------------------------------------------------------

    def remove_withdrawn(self, output: str) -> bool:
        """Remove an artifact that was withdrawn from `holds`; False when somebody else did, or it is pinned now.

        Raises OSError; then the artifact is there again, or what is left of it is hidden and goes when it can.
        """
        with self._moving:
            if not self.holds.is_withdrawn(output):
                return False
            try:
                if self.pinned(output) is not None:
                    return False
                self._soundness.forget(output)
                hidden = _hide(self.directory(output))
            except FileNotFoundError:
                return False
            finally:
                self.holds.restore(output)
        remains.remove(hidden)
        return True

    def remove_temporaries(self) -> int:
        """Remove what interrupted builds and collections left behind; the number of things removed."""
        count = 0
        for path in (*self.root.glob("??/.*.tmp"), *self.root.glob(".*.tmp")):
            remove_tree(path)
            count += 1
        return count


def _hidden(directory: Path) -> Path:
    """A name beside an artifact's that is none of an artifact."""
    return directory.parent / f".{directory.name}.{secrets.token_hex(4)}.tmp"


def _hide(directory: Path) -> Path:
    """Rename an artifact so that nobody finds it: in the same directory, which a full disk has room for."""
    return directory.rename(_hidden(directory))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
