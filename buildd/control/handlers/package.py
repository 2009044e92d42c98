"""package.why: whether a package would be built, or what a run did with it, and the cause."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import PurePath

from buildd.control.handlers.run import view
from buildd.control.handlers.services import Services
from buildd.control.rights import user_name
from buildd.control.socket import Peer
from buildd.engine.assess import Verdict
from buildd.engine.targets import Target, parse_target
from buildd.errors import InvalidInput, NotFound
from buildd.protocol import (
    Cause,
    PackageVerdict,
    RunPackage,
    RunView,
    StartParams,
    StartResult,
    VerifyParams,
    WhyParams,
    WhyResult,
)
from buildd.store.queries import split_version
from buildd.threads import in_thread

MAX_NEEDED = 100
"""Dependencies that would be built as well and are explained; of more, those at the root come first."""


async def why(services: Services, params: WhyParams, peer: Peer) -> WhyResult:
    if params.run is not None:
        return await _in_run(services, params.package, params.run)
    subject = await _subject(services, params)
    name = parse_target(subject.target).package
    if name is None:
        raise InvalidInput(f"{params.package} names no package", hint="write REPO[@REV]//NAME, or NAME")
    assessment = await services.engine.assess(
        [subject.target], refresh=params.refresh, worktree=subject.worktree, strategy=params.strategy
    )
    notes = list(subject.notes)
    verdict = assessment.verdicts[name]
    if subject.version not in (None, verdict.package.version):
        notes.append(f"{verdict.package.repository} has {name} {verdict.package.version} now, not {subject.version}")
    asked = (await services.explainer.explain([verdict]))[name]
    others = [v for other, v in assessment.verdicts.items() if other != name and v.state == "build"]
    chosen = _chosen(others)
    if len(chosen) < len(others):
        notes.append(f"{len(others)} dependencies would be built as well; {len(chosen)} of them are explained")
    needed = await services.explainer.explain(chosen)
    chain = await services.explainer.chain(asked, list(needed.values()))
    return WhyResult(verdict=asked, needed=tuple(chain), notes=tuple(notes))


async def verify(services: Services, params: VerifyParams, peer: Peer) -> StartResult:
    subject = await _subject(services, WhyParams(package=params.package, worktree=params.worktree))
    if parse_target(subject.target).package is None:
        raise InvalidInput(f"{params.package} names no package", hint="write REPO[@REV]//NAME, or NAME")
    event = services.journal.last
    wish = StartParams(targets=(subject.target,), worktree=subject.worktree, verify=True, refresh=False)
    run = await services.engine.start(wish, user_name(peer.uid))
    return StartResult(id=run.id, number=run.record.number, event=event)


def _chosen(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """At most MAX_NEEDED, those first that wait for nothing else: what they have is the root of it."""
    by_depth = sorted(verdicts, key=lambda verdict: bool(verdict.pending))
    names = {verdict.package.name for verdict in by_depth[:MAX_NEEDED]}
    return [verdict for verdict in verdicts if verdict.package.name in names]


# --- what is asked about ----------------------------------------------------------------------------------


class _Subject:
    """A target, and what is to be said about how it was chosen."""

    def __init__(self, target: str, *, worktree: bool, version: str | None = None, notes: Sequence[str] = ()) -> None:
        self.target = target
        self.worktree = worktree
        self.version = version
        self.notes = notes


async def _subject(services: Services, params: WhyParams) -> _Subject:
    """The target that the request means: for a name, where it was built last, as it was asked for then."""
    if "/" in params.package:
        return _Subject(params.package, worktree=params.worktree)
    name, version = split_version(params.package)
    entries = await services.queries.latest(params.package, 1000)
    if entries:
        repository, build = entries[0].repository, entries[0].build
    else:
        tried = [build for build in await services.queries.failures(params.package, 1) if build.repository]
        if not tried:
            raise NotFound(f"{params.package} was never built", hint=f"say where it is: `buildctl why REPO//{name}`")
        repository, build = tried[0].repository, tried[0].id
    notes = []
    homes = list(dict.fromkeys(entry.repository for entry in entries))
    if len(homes) > 1:
        notes.append(f"{name} was built from {len(homes)} repositories, this is the last: {repository}")
    revision, worktree = await _last_wish(services, build, repository)
    if params.worktree:
        revision, worktree = None, True
    at = f"@{revision}" if revision is not None else ""
    if revision is not None or worktree != params.worktree:
        notes.append(f"taken as it was built last: {'the work tree of ' if worktree else ''}{repository}{at}")
    return _Subject(f"{repository}{at}//{name}", worktree=worktree, version=version, notes=notes)


async def _last_wish(services: Services, build: str, repository: str) -> tuple[str | None, bool]:
    """The revision of a repository, and whether its work tree, that was asked for when a build was made."""
    try:
        record, _ = await services.runs.find_run((await services.runs.find_build(build)).run)
    except NotFound:  # the record of the run may be gone
        return None, False
    for text in record.request.targets:
        target = parse_target(text)
        if await _is_of(services, target, repository):
            return target.revision, record.request.worktree
    return None, False


async def _is_of(services: Services, target: Target, repository: str) -> bool:
    if target.local:
        path: str = await in_thread(os.path.realpath, target.repo)
        return path == repository or path.startswith(f"{repository}/")
    try:
        return services.clones.find(target.repo).url == repository
    except NotFound:
        return False


# --- what a run did ---------------------------------------------------------------------------------------


async def _in_run(services: Services, text: str, run: str) -> WhyResult:
    name, version = (parse_target(text).package or "", None) if "/" in text else split_version(text)
    shown = await view(services, run)
    package = next((p for p in shown.packages if p.name == name and version in (None, p.version)), None)
    if package is None:
        raise NotFound(
            f"run {shown.number} has no package {text}", hint=f"`buildctl show {shown.number}` lists those it has"
        )
    if package.state == "skipped":
        return WhyResult(verdict=await _skipped(services, package, shown))
    if package.state == "ignored":
        cause = Cause(kind="ignored", message=package.message or "")
        verdict = PackageVerdict(package=name, version=package.version, repository="", state="ignored", causes=(cause,))
        return WhyResult(verdict=verdict)
    if package.build_id is None:
        raise NotFound(
            f"run {shown.number} did not build {name}: it is {package.state}"
            + (f" ({package.message})" if package.message else ""),
            hint=f"`buildctl why {name}` tells what a run would do now",
        )
    build = await services.runs.find_build(package.build_id)
    record, _ = await services.runs.find_run(shown.id)
    forced = record.request.force or record.request.verify or name in record.request.force_packages
    asked = await services.explainer.explain_build(build, forced=forced)
    chain = await services.explainer.chain(asked, ())
    note = f"run {shown.number} built it as build {build.id[:8]}: {build.state}"
    return WhyResult(verdict=asked, needed=tuple(chain), notes=(note,))


async def _skipped(services: Services, package: RunPackage, run: RunView) -> PackageVerdict:
    """What answered a package that a run did not build."""
    output = PurePath(package.artifact).name if package.artifact is not None else ""
    until = run.completed_at if run.completed_at is not None else time.time()
    success = await services.queries.last_with_output(package.name, output, before=until)
    if success is None:
        return PackageVerdict(
            package=package.name, version=package.version, repository="", state="up_to_date", output_id=output or None
        )
    return PackageVerdict(
        package=package.name,
        version=package.version,
        repository=success.build.repository,
        state="up_to_date",
        key=success.build.key,
        build=success.build.id,
        built_at=success.build.started_at,
        output_id=output,
    )
