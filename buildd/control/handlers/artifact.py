"""artifact.*: what builds left behind, listed, packed and handed out in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

import trio

from buildd.control.handlers.services import Services
from buildd.control.socket import Peer
from buildd.errors import InvalidInput, NotFound
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
    ArtifactReadParams,
)
from buildd.publish.tarball import pack
from buildd.store.artifacts import Manifest, file_digest

_SCAN_PER_ARTIFACT = 20  # builds looked at for each artifact wanted: many may share one output


async def list_artifacts(services: Services, params: ArtifactListParams, peer: Peer) -> ArtifactList:
    limit = max(1, min(params.limit, 1000))
    by_output: dict[str, list[BuildRecord]] = {}
    for build in await services.runs.builds_of_outputs(limit * _SCAN_PER_ARTIFACT, params.package):
        if build.output_id is not None:
            by_output.setdefault(build.output_id, []).append(build)

    def read() -> list[Artifact]:
        found: list[Artifact] = []
        for output, builds in by_output.items():
            if len(found) == limit:
                break
            if services.artifacts.exists(output):
                found.append(_view(services, services.artifacts.manifest(output), builds))
        return found

    return ArtifactList(artifacts=tuple(await trio.to_thread.run_sync(read)))


async def show(services: Services, params: ArtifactParams, peer: Peer) -> ArtifactDetail:
    output, build = await _find(services, params.artifact)
    manifest = await trio.to_thread.run_sync(services.artifacts.manifest, output)
    return ArtifactDetail(
        artifact=_view(services, manifest, [build]),
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


async def export(services: Services, params: ArtifactParams, peer: Peer) -> ArtifactExport:
    output, build = await _find(services, params.artifact)

    def work() -> ArtifactExport:
        path = pack(services.artifacts, output, build.package, build.version)
        return ArtifactExport(output_id=output, filename=path.name, bytes=path.stat().st_size, sha256=file_digest(path))

    return await trio.to_thread.run_sync(work)


async def read(services: Services, params: ArtifactReadParams, peer: Peer) -> ArtifactChunk:
    if "/" in params.filename or not params.filename.isprintable() or not params.filename.endswith(".tar.zst"):
        raise InvalidInput(f"{params.filename!r} is not the name of an exported file", hint="artifact.export gives it")
    path = services.artifacts.packed(params.output_id, params.filename)

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

    return await trio.to_thread.run_sync(work)


async def _find(services: Services, text: str) -> tuple[str, BuildRecord]:
    """The output that a build, an output id or `NAME[@VERSION]` names, and the newest build that made it."""
    if re.fullmatch(r"[0-9a-f]{8,64}", text):
        outputs = await services.runs.outputs_like(text)
        if len(outputs) > 1:
            raise InvalidInput(f"several artifacts begin with {text!r}", hint="give more of the id")
        if outputs:
            return outputs[0], await services.runs.build_of_output(outputs[0])
    try:
        build = await services.runs.find_build(text)
    except NotFound:
        build = await _latest(services, text)
    if build.output_id is None:
        raise NotFound(f"build {build.id} has no artifact", hint=f"it is {build.state}: `buildctl show {build.id}`")
    return build.output_id, build


async def _latest(services: Services, text: str) -> BuildRecord:
    name, _, version = text.partition("@")
    for build in await services.runs.builds_of_outputs(1000, name):
        if not version or build.version == version:
            return build
    raise NotFound(f"there is no artifact {text!r}", hint="`buildctl artifacts list` shows them")


def _view(services: Services, manifest: Manifest, builds: Sequence[BuildRecord]) -> Artifact:
    return Artifact(
        output_id=manifest.output_id,
        path=str(services.artifacts.directory(manifest.output_id)),
        bytes=manifest.bytes,
        files=sum(e.kind != "dir" for e in manifest.entries),
        created_at=manifest.created_at,
        packages=tuple(dict.fromkeys(f"{b.package}@{b.version}" for b in builds)),
    )
