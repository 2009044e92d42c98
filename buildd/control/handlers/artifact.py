"""artifact.*: what builds left behind: listed, verified, packed and handed out in pieces, kept or collected.

Invariant: nothing damaged is handed out. What is found damaged is set aside at once, also when a run still counts on
it: better a build that fails than one that is wrong.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice

import msgspec
import structlog
import trio

from buildd.control.handlers.services import Services
from buildd.control.rights import user_name
from buildd.control.socket import Peer
from buildd.errors import BuilddError, InvalidInput, NotFound, Refused, encodable
from buildd.model import BuildRecord
from buildd.protocol import (
    MAX_CHUNK_BYTES,
    Artifact,
    ArtifactChunk,
    ArtifactDetail,
    ArtifactExport,
    ArtifactFile,
    ArtifactList,
    ArtifactListParams,
    ArtifactParams,
    ArtifactPinParams,
    ArtifactReadParams,
    ArtifactVerdict,
    ArtifactVerifyParams,
    ArtifactVerifyResult,
    CollectParams,
    CollectResult,
    Ok,
)
from buildd.publish.tarball import is_whole, pack, tarball_name
from buildd.store.artifacts import ManifestHead, file_digest
from buildd.store.pins import Pin
from buildd.threads import in_thread

log = structlog.get_logger()

_SCAN_PER_ARTIFACT = 20  # builds looked at for each artifact wanted: many may share one output
_READER_S = 60.0
"""How long an exported artifact is held for the next request of who fetches it."""
_NOTE_LENGTH = 1000
_SLICE = 20
"""Artifacts that the engine is asked about before other requests have their turn."""


# --- looking ----------------------------------------------------------------------------------------------


async def list_artifacts(services: Services, params: ArtifactListParams, peer: Peer) -> ArtifactList:
    limit = max(1, min(params.limit, 1000))
    by_output: dict[str, list[str]] = {}
    for build in await services.runs.builds_of_outputs(limit * _SCAN_PER_ARTIFACT, params.package):
        if build.output_id is not None:
            by_output.setdefault(build.output_id, []).append(_title(build))

    def read() -> list[Artifact]:
        found: list[Artifact] = []
        for output, packages in by_output.items():
            if len(found) == limit:
                break
            try:
                found.append(_view(services, services.artifacts.head(output), packages))
            except (NotFound, Refused, OSError):  # gone; or damaged, which is for verify to say
                continue
        return found

    artifacts = await in_thread(read)
    for index, artifact in enumerate(artifacts):
        if _in_use(services, artifact.output_id):
            artifacts[index] = msgspec.structs.replace(artifact, in_use=True)
        if index % _SLICE == 0:
            await trio.lowlevel.checkpoint()
    return ArtifactList(artifacts=tuple(artifacts))


async def show(services: Services, params: ArtifactParams, peer: Peer) -> ArtifactDetail:
    output, build = await _find(services, params.artifact)

    def read() -> ArtifactDetail:
        packages = [_title(build)] if build is not None else []
        manifest = services.artifacts.manifest(output)
        head = services.artifacts.head(output)
        return ArtifactDetail(
            artifact=_view(services, head, [*packages, *services.artifacts.packages(output)]),
            listing=tuple(
                ArtifactFile(
                    path=e.path if e.kind != "link" else f"{e.path} -> {e.target}",
                    mode=f"{e.mode:o}",
                    size=e.size,
                    sha256=e.sha256,
                )
                for e in manifest.entries
                if e.kind != "dir"
            ),
        )

    detail = await in_thread(read)
    artifact = msgspec.structs.replace(detail.artifact, in_use=_in_use(services, output))
    return msgspec.structs.replace(detail, artifact=artifact)


def _in_use(services: Services, output: str) -> bool:
    return services.artifacts.holds.is_held(output) or services.engine.in_use(output)


def _view(services: Services, head: ManifestHead, packages: Sequence[str]) -> Artifact:
    """Blocks. Raises OSError when it goes in this moment."""
    pin = services.artifacts.pinned(head.output_id)
    return Artifact(
        output_id=head.output_id,
        path=str(services.artifacts.directory(head.output_id)),
        bytes=head.bytes,
        files=head.files or 0,
        created_at=head.created_at,
        packages=tuple(dict.fromkeys(packages)),
        last_used=services.artifacts.last_used(head.output_id),
        pinned=None if pin is None else ": ".join(part for part in (pin.by, pin.note) if part),
    )


def _title(build: BuildRecord) -> str:
    return f"{build.package}@{build.version}"


# --- sound or damaged -------------------------------------------------------------------------------------


async def verify(services: Services, params: ArtifactVerifyParams, peer: Peer) -> ArtifactVerifyResult:
    if params.artifact is not None:
        output, _ = await _find(services, params.artifact)
        verdicts = [await _verify(services, output)]
    else:
        verdicts = []
        for output in await in_thread(lambda: list(services.artifacts.outputs())):
            try:
                verdicts.append(await _verify(services, output))
            except NotFound:  # collected meanwhile, or never one
                continue
    return ArtifactVerifyResult(artifacts=tuple(verdicts), damaged=sum(not verdict.ok for verdict in verdicts))


async def _verify(services: Services, output: str) -> ArtifactVerdict:
    """Read an artifact and set it aside if it is damaged. Raises NotFound."""
    with services.artifacts.holds.holding(output):
        problems = await in_thread(partial(services.artifacts.verify, output, check=trio.from_thread.check_cancelled))
        if not problems:
            return ArtifactVerdict(output_id=output, packages=(), ok=True)
        return await _set_aside(services, output, problems)


async def _set_aside(services: Services, output: str, problems: Sequence[str]) -> ArtifactVerdict:
    """Take a damaged artifact out of use, and tell everybody."""
    packages = await in_thread(services.artifacts.packages, output)
    place = await in_thread(services.artifacts.set_aside, output)
    services.engine.forget([output])
    told = tuple(encodable(problem) for problem in problems)
    kept = str(place) if place is not None else None
    log.error("a damaged artifact is set aside", output_id=output, packages=packages, problems=told, kept=kept)
    services.journal.emit(
        "artifact_damaged", data={"output_id": output, "packages": packages, "problems": told, "kept": kept}
    )
    return ArtifactVerdict(output_id=output, packages=packages, ok=False, problems=told, kept=kept)


async def _refuse_damaged(services: Services, output: str) -> None:
    """Raises Refused for a damaged artifact, after setting it aside, and NotFound for one that is gone."""
    if await in_thread(services.artifacts.verify_on_use, output, trio.from_thread.check_cancelled):
        return
    verdict = await _verify(services, output)
    if not verdict.ok:
        where = f"; it is kept as {verdict.kept}" if verdict.kept else ""
        raise Refused(
            f"artifact {output} is damaged and was set aside: {verdict.problems[0]}{where}",
            hint="start its package again: it is built anew",
        )


# --- handing out ------------------------------------------------------------------------------------------


async def export(services: Services, params: ArtifactParams, peer: Peer) -> ArtifactExport:
    output, build = await _find(services, params.artifact)

    def work() -> ArtifactExport:
        name, version = (build.package, build.version) if build is not None else ("artifact", output[:12])
        earlier = services.artifacts.packed(output, tarball_name(name, version))
        if earlier.exists() and not is_whole(earlier):
            earlier.unlink()
        path = pack(services.artifacts, output, name, version, check=trio.from_thread.check_cancelled)
        return ArtifactExport(output_id=output, filename=path.name, bytes=path.stat().st_size, sha256=file_digest(path))

    with services.artifacts.holds.holding(output):
        await _refuse_damaged(services, output)
        answer = await in_thread(work)
        services.artifacts.holds.keep_for(output, _READER_S)
        return answer


async def read(services: Services, params: ArtifactReadParams, peer: Peer) -> ArtifactChunk:
    if "/" in params.filename or not params.filename.isprintable() or not params.filename.endswith(".tar.zst"):
        raise InvalidInput(f"{params.filename!r} is not the name of an exported file", hint="artifact.export gives it")
    path = services.artifacts.packed(params.output_id, params.filename)
    services.artifacts.holds.keep_for(params.output_id, _READER_S)

    def work() -> ArtifactChunk:
        try:
            with path.open("rb") as file:
                file.seek(max(0, params.offset))
                data = file.read(MAX_CHUNK_BYTES)
                finished = not file.read(1)
        except FileNotFoundError:
            raise NotFound(
                f"artifact {params.output_id} has no packed file {params.filename!r}", hint="call artifact.export first"
            ) from None
        return ArtifactChunk(data=data, next_offset=max(0, params.offset) + len(data), finished=finished)

    return await in_thread(work)


# --- staying and going ------------------------------------------------------------------------------------


async def pin(services: Services, params: ArtifactPinParams, peer: Peer) -> Ok:
    note = params.note or ""
    if len(note) > _NOTE_LENGTH:
        raise InvalidInput(f"the note has {len(note)} characters", hint=f"at most {_NOTE_LENGTH}")
    output, _ = await _find(services, params.artifact)
    by = user_name(peer.uid)
    wish = Pin(by=by, at=time.time(), note=encodable(note))
    await in_thread(services.artifacts.pin, output, wish)
    services.journal.emit("artifact_pinned", data={"output_id": output, "by": by, "note": wish.note})
    return Ok(message=f"artifact {output} is kept until it is unpinned")


async def unpin(services: Services, params: ArtifactParams, peer: Peer) -> Ok:
    output, _ = await _find(services, params.artifact)
    if not await in_thread(services.artifacts.unpin, output):
        return Ok(message=f"artifact {output} was not pinned")
    services.journal.emit("artifact_unpinned", data={"output_id": output, "by": user_name(peer.uid)})
    return Ok(message=f"artifact {output} may be collected")


async def collect(services: Services, params: CollectParams, peer: Peer) -> CollectResult:
    given = {
        name: value
        for name in ("max_bytes", "max_age", "min_free_bytes", "min_free_inodes")
        if (value := getattr(params, name)) is not None
    }
    for name, value in given.items():
        if not 0 <= value < 2**62:
            raise InvalidInput(f"{name} = {value} is no limit", hint="0 sets none")
    limits = msgspec.structs.replace(await services.collector.limits(), **given)
    return await services.collector.collect(limits, dry_run=params.dry_run)


# --- names ------------------------------------------------------------------------------------------------


async def _find(services: Services, text: str) -> tuple[str, BuildRecord | None]:
    """The output that a build, an output id or `NAME[@VERSION]` names, and the newest build that made it.

    Ids of outputs are found on the disk, so that they can be had, and pinned, without a database.
    """
    if re.fullmatch(r"[0-9a-f]{8,64}", text):
        outputs = await in_thread(lambda: list(islice(services.artifacts.outputs(text), 2)))
        if len(outputs) > 1:
            raise InvalidInput(f"several artifacts begin with {text!r}", hint="give more of the id")
        if outputs:
            return outputs[0], await _maker(services, outputs[0])
    try:
        build = await services.runs.find_build(text)
    except NotFound:
        build = await _latest(services, text)
    if build.output_id is None:
        raise NotFound(f"build {build.id} has no artifact", hint=f"it is {build.state}: `buildctl show {build.id}`")
    if not await in_thread(services.artifacts.exists, build.output_id):
        raise NotFound(
            f"artifact {build.output_id} of {_title(build)} is not there any more",
            hint="start its package again: it is built anew",
        )
    return build.output_id, build


async def _maker(services: Services, output: str) -> BuildRecord | None:
    """The newest build that made an output, as the database or the receipts know it."""
    try:
        return await services.runs.build_of_output(output)
    except BuilddError:
        receipts = await in_thread(services.artifacts.receipts, output)
        return receipts[0].build if receipts else None


async def _latest(services: Services, text: str) -> BuildRecord:
    name, _, version = text.partition("@")
    for build in await services.runs.builds_of_outputs(1000, name):
        if not version or build.version == version:
            return build
    raise NotFound(f"there is no artifact {text!r}", hint="`buildctl artifacts list` shows them")
