"""`buildctl artifacts`: what builds left behind.

Invariant of `get`: the file that is named is whole and has the hash the daemon gave, or it is not there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from buildd import protocol
from ctl.actions import Actions, action_parsers, run_action
from ctl.client import Client
from ctl.failure import FAILED, OK, CtlError
from ctl.output import note, paint, say, say_json, say_lines
from ctl.text import moment, plural, printable, size, table
from ctl.verbs import Verb, connection_options


def _list(args: argparse.Namespace, client: Client) -> int:
    params = protocol.ArtifactListParams(package=args.package, limit=args.limit)
    if args.json:
        say_json(client.raw("artifact.list", params))
        return OK
    found = client.call("artifact.list", params, protocol.ArtifactList).artifacts
    rows = [
        (
            a.output_id[:12],
            size(a.bytes),
            str(a.files),
            moment(a.created_at),
            moment(a.last_used),
            "pinned" if a.pinned is not None else "in use" if a.in_use else "-",
            " ".join(a.packages),
        )
        for a in found
    ]
    say_lines(table(("ARTIFACT", "SIZE", "FILES", "CREATED", "LAST USED", "KEPT", "PACKAGES"), rows, right=(1, 2)))
    return OK


def _show(args: argparse.Namespace, client: Client) -> int:
    params = protocol.ArtifactParams(artifact=args.artifact)
    if args.json:
        say_json(client.raw("artifact.show", params))
        return OK
    detail = client.call("artifact.show", params, protocol.ArtifactDetail)
    artifact = detail.artifact
    say(f"artifact {artifact.output_id}")
    say(f"  packages  {printable(' '.join(artifact.packages))}")
    say(f"  created   {moment(artifact.created_at)}")
    say(f"  last used {moment(artifact.last_used)}{', in use now' if artifact.in_use else ''}")
    if artifact.pinned is not None:
        say(f"  pinned    {printable(artifact.pinned)}")
    say(f"  path      {printable(artifact.path)}")
    say(f"  size      {size(artifact.bytes)} in {plural(artifact.files, 'file')}\n")
    rows = [(f.mode, str(f.size), f.sha256[:12], f.path) for f in detail.listing]
    say_lines(table(("MODE", "BYTES", "SHA-256", "PATH"), rows, right=(1,)))
    return OK


def _get(args: argparse.Namespace, client: Client) -> int:
    params = protocol.ArtifactParams(artifact=args.artifact)
    export = client.call("artifact.export", params, protocol.ArtifactExport, timeout=None)
    if args.output == "-":
        _copy(client, export, sys.stdout.buffer)
        return OK
    if args.extract is not None:
        with tempfile.TemporaryFile() as packed:
            _copy(client, export, packed)
            packed.seek(0)
            from ctl.unpack import unpack  # milliseconds that no other verb has

            unpack(packed, Path(args.extract))
        note(f"extracted {printable(export.filename)} to {args.extract}")
        return OK
    path = _destination(args.output, export.filename)
    with _complete_or_absent(path) as file:
        _copy(client, export, file)
    note(f"{printable(str(path))}: {size(export.bytes)}, sha256 {export.sha256}")
    return OK


def _destination(output: str | None, filename: str) -> Path:
    if filename != os.path.basename(filename) or filename in ("", ".", ".."):
        raise CtlError(f"the daemon names the file {filename!r}, which is no file name", hint="choose one by -o FILE")
    if output is None:
        return Path(filename)
    return Path(output) / filename if os.path.isdir(output) else Path(output)


@contextmanager
def _complete_or_absent(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name beside `path`, which it gets when the block ends well."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _copy(client: Client, export: protocol.ArtifactExport, file: BinaryIO) -> None:
    """Write the export to `file` and compare its hash. Raises CtlError when it is not what was announced."""
    digest, offset = hashlib.sha256(), 0
    while True:
        params = protocol.ArtifactReadParams(output_id=export.output_id, filename=export.filename, offset=offset)
        chunk = client.call("artifact.read", params, protocol.ArtifactChunk)
        digest.update(chunk.data)
        file.write(chunk.data)
        if chunk.finished:
            break
        if chunk.next_offset <= offset:
            raise CtlError(f"the daemon sends no more of {export.filename} after {offset} bytes")
        offset = chunk.next_offset
    file.flush()
    if digest.hexdigest() != export.sha256:
        raise CtlError(
            f"{export.filename} arrived damaged: sha256 {digest.hexdigest()}, expected {export.sha256}",
            hint="get it again; `buildctl doctor` checks the daemon's disk",
        )


def _verify(args: argparse.Namespace, client: Client) -> int:
    params = protocol.ArtifactVerifyParams(artifact=args.artifact)
    found = client.call("artifact.verify", params, protocol.ArtifactVerifyResult, timeout=None)
    if args.json:
        say_json(found)
        return FAILED if found.damaged else OK
    for artifact in found.artifacts:
        if not artifact.ok:
            say(paint(f"artifact {artifact.output_id} {printable(' '.join(artifact.packages))} is damaged", "red"))
            say_lines(f"  {printable(problem)}" for problem in artifact.problems)
            note(f"set aside, {f'kept as {artifact.kept}' if artifact.kept else 'and removed'}: it is built again")
    sound = len(found.artifacts) - found.damaged
    note(f"{plural(sound, 'artifact')} sound, {found.damaged} damaged")
    return FAILED if found.damaged else OK


def _pin(args: argparse.Namespace, client: Client) -> int:
    return _act(args, client, "artifact.pin", protocol.ArtifactPinParams(artifact=args.artifact, note=args.note))


def _unpin(args: argparse.Namespace, client: Client) -> int:
    return _act(args, client, "artifact.unpin", protocol.ArtifactParams(artifact=args.artifact))


def _act(args: argparse.Namespace, client: Client, method: str, params: protocol.Params) -> int:
    if args.json:
        say_json(client.raw(method, params))
    else:
        say(printable(client.call(method, params, protocol.Ok).message))
    return OK


_ACTIONS: Actions = {
    "list": (_list, "artifacts, newest first"),
    "show": (_show, "one artifact and its files"),
    "get": (_get, "fetch an artifact as a .tar.zst file, or extract it"),
    "verify": (_verify, "read one artifact, or all, and compare with what was built"),
    "pin": (_pin, "keep an artifact, whatever the limits of the cache say"),
    "unpin": (_unpin, "let an artifact be collected again"),
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    for name, action in action_parsers(parser, _ACTIONS):
        if name == "list":
            action.add_argument("package", metavar="PACKAGE", nargs="?", help="only those of this package")
            action.add_argument("--limit", "-n", type=int, default=100, metavar="N", help="at most N (default 100)")
        else:
            action.add_argument(
                "artifact",
                metavar="ARTIFACT",
                nargs="?" if name == "verify" else None,
                help="output id or build id, a prefix of one, or NAME[@VERSION]",
            )
        if name == "pin":
            action.add_argument("--note", metavar="TEXT", help="why it is to be kept")
        if name == "get":
            where = action.add_mutually_exclusive_group()
            where.add_argument(
                "--output", "-o", metavar="FILE", help="file or directory to write to, - for standard output"
            )
            where.add_argument("--extract", "-x", metavar="DIR", help="extract to this directory instead")
        else:
            action.add_argument("--json", action="store_true", help="print the answer as one object")
        connection_options(action, nested=True)


VERBS = {
    "artifacts": Verb(
        partial(run_action, _ACTIONS),
        _arguments,
        "  buildctl artifacts list zlib\n"
        "  buildctl artifacts get zlib@1.3.1 -o /tmp\n"
        "  buildctl artifacts get zlib --extract ./prefix\n"
        "  buildctl artifacts pin zlib@1.3.1 --note 'shipped to customers'\n"
        "  buildctl artifacts verify",
    )
}
