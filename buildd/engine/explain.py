"""Verdicts as people read them: which part of the key differs from the last success, down to the file (D7).

What a package would do now is compared with the last success of its name in its own repository, or else in any
other. Where the output of a dependency is the cause, what changed in that dependency is a verdict of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from buildd.engine.assess import Verdict
from buildd.engine.targets import is_url
from buildd.errors import InvalidInput, NotFound
from buildd.model import BuildRecord, Package
from buildd.planner.changes import Listing, file_changes
from buildd.planner.keys import Inputs
from buildd.planner.why import differences, short
from buildd.protocol import Cause, FileChange, PackageVerdict
from buildd.repos.clones import Clones
from buildd.repos.trees import GitStore
from buildd.store.queries import Queries, Success
from buildd.threads import in_thread

MAX_FILES = 1000
"""Changed files that one answer names; the message of the cause counts all."""
MAX_CHAIN = 100
"""Dependencies that are followed to see what changed in them."""
_NEVER = Cause(kind="never_built", message="it was never built")


class Explainer:
    def __init__(self, queries: Queries, clones: Clones, exists: Callable[[str], bool]) -> None:
        """`exists` says whether the artifact of an output is there."""
        self._queries = queries
        self._clones = clones
        self._exists = exists

    async def explain(self, verdicts: Iterable[Verdict], *, files: int = MAX_FILES) -> dict[str, PackageVerdict]:
        """What each of `verdicts` says, with the causes, by package; of a source at most `files` changes are named."""
        found = list(verdicts)
        built = await self._queries.names() if len(found) > 1 else None
        times = await self._queries.started_at({v.known.build for v in found if v.known is not None})
        return {v.package.name: await self._explain(v, times, built, files) for v in found}

    async def _explain(
        self, verdict: Verdict, times: Mapping[str, float], built: Collection[str] | None, files: int
    ) -> PackageVerdict:
        """`times` says when builds started; `built` are the packages that were ever built, if that is known."""
        package = verdict.package
        told = PackageVerdict(
            package=package.name,
            version=package.version,
            repository=package.repository,
            state=verdict.state,
            key=verdict.key,
        )
        if verdict.known is not None:
            build, output = verdict.known.build, verdict.known.output_id
            return msgspec.structs.replace(told, build=build, built_at=times.get(build), output_id=output)
        if verdict.state == "ignored":
            why = package.ignore or "something it depends on is ignored"
            return msgspec.structs.replace(told, causes=(Cause(kind="ignored", message=why),))
        inputs = verdict.inputs or verdict.partial
        assert inputs is not None, "what is to be built has inputs"
        new = built is not None and package.name not in built
        last = await self._compared(package, verdict.key, inputs) if not new else None
        if last is None:
            never = _NEVER if new else await self._never_built(package.name)
            return msgspec.structs.replace(told, causes=(*_strategy(inputs), never))
        causes = [*_strategy(inputs), *await self._differences(last, inputs, verdict.pending, files, package.store)]
        if not verdict.pending and last.build.key == verdict.key:
            causes += self._unusable(last, inputs)
        return _compared_with(told, last, causes)

    async def explain_build(self, build: BuildRecord, *, forced: bool) -> PackageVerdict:
        """Why a build that is on record was made."""
        inputs = await self._queries.inputs_of(build.id)
        causes = [Cause(kind="forced", message="it was forced")] if forced else []
        told = PackageVerdict(
            package=build.package, version=build.version, repository=build.repository, state="build", key=build.key
        )
        last = await self._queries.last_success(build.package, repository=build.repository, before=build.started_at)
        if inputs is None:
            causes.append(Cause(kind="format", message="what decided the build was not recorded by that buildd"))
            return msgspec.structs.replace(told, causes=tuple(causes))
        causes += _strategy(inputs)
        if last is None:
            causes.append(await self._never_built(build.package, before=build.started_at))
            return msgspec.structs.replace(told, causes=tuple(causes))
        causes += await self._differences(last, inputs, (), MAX_FILES, None)
        if not causes:
            causes.append(
                Cause(kind="artifact", old=last.build.output_id, message="its artifact was gone or could not be used")
            )
        return _compared_with(told, last, causes)

    async def chain(self, asked: PackageVerdict, needed: Sequence[PackageVerdict]) -> list[PackageVerdict]:
        """`needed`, with what changed in dependencies whose outputs are causes of these or of `asked` before them.

        Dependencies come first.
        """
        found: dict[str, PackageVerdict] = {}
        seen = {asked.package, *(verdict.package for verdict in needed)}
        limit = len(seen) + MAX_CHAIN
        for verdict in (*needed, asked):
            await self._follow(verdict, found, seen, limit)
            if verdict is not asked:
                found[verdict.package] = verdict
        return list(found.values())

    # --- one step -----------------------------------------------------------------------------------------

    async def _compared(self, package: Package, key: str | None, inputs: Inputs) -> Success | None:
        """The success that a package is compared with: the one with its key whose artifact is gone, or the last."""
        last = await self._queries.last_success(package.name, repository=package.repository)
        if key is not None and inputs.strategy == "aggressive" and (last is None or last.build.key != key):
            same = await self._queries.last_with_key(key)
            if same is not None and not await self._there(same):
                return same
        return last

    async def _there(self, success: Success) -> bool:
        output = success.build.output_id
        return output is not None and await in_thread(self._exists, output)

    async def _never_built(self, package: str, before: float | None = None) -> Cause:
        failed = await self._queries.failures(package, 1, before=before)
        if not failed:
            return _NEVER
        said = f"it was never built with success: build {failed[0].id[:8]} failed ({failed[0].reason})"
        return Cause(kind="never_built", what=failed[0].id, message=said)

    def _unusable(self, last: Success, inputs: Inputs) -> Iterable[Cause]:
        """Why a success with the very key does not answer."""
        output = last.build.output_id
        if inputs.strategy == "none":
            return
        if inputs.strategy == "conservative" and last.build.repository != inputs.repository:
            said = f"the strategy conservative takes no result of {last.build.repository}"
            yield Cause(kind="strategy", what="conservative", old=last.build.repository, message=said)
        else:
            said = f"its artifact {short(output)} is gone or cannot be used"
            yield Cause(kind="artifact", what=output or "", old=output, message=said)

    async def _differences(
        self, last: Success, inputs: Inputs, pending: Sequence[str], limit: int, store: str | None
    ) -> Sequence[Cause]:
        old = last.inputs
        if old is None:
            said = f"build {last.build.id[:8]} is of an early buildd, which did not record what decided it"
            return [Cause(kind="format", what=last.build.id, message=said)]
        files = None
        if old.parts.tree != inputs.parts.tree:
            places = dict.fromkeys((store, self._store(inputs.repository), self._store(old.repository)))
            files = await self._changes(old.parts.tree, inputs.parts.tree, [Path(p) for p in places if p])
        causes = differences(old, inputs, files, pending=pending)
        if inputs.strategy == "none":  # what it looks at and the last one did not is no change
            causes = tuple(c for c in causes if c.kind != "environment" or None not in (c.old, c.new))
        return [msgspec.structs.replace(c, files=c.files[:limit]) if len(c.files) > limit else c for c in causes]

    def _store(self, repository: str) -> str | None:
        """Where the objects of a repository are; None when there is no clone of it."""
        if not is_url(repository):
            return repository
        try:
            return self._clones.find(repository).path
        except NotFound:
            return None

    async def _changes(self, old: str, new: str, places: Sequence[Path]) -> tuple[FileChange, ...] | None:
        """The files that differ between two sources; None when one of the listings is nowhere to be had."""
        listings = [await self._queries.listing(tree) for tree in (old, new)]

        def work() -> tuple[FileChange, ...] | None:
            before, after = (
                listing if listing is not None else _listing(tree, places)
                for listing, tree in zip(listings, (old, new), strict=True)
            )
            return file_changes(before, after) if before is not None and after is not None else None

        return await in_thread(work)

    async def _follow(
        self, verdict: PackageVerdict, found: dict[str, PackageVerdict], seen: set[str], limit: int
    ) -> None:
        for cause in verdict.causes:
            if cause.kind != "dependency" or cause.what in seen or len(seen) >= limit:
                continue
            seen.add(cause.what)
            told = await self._output_change(cause, verdict.built_at)
            if told is not None:
                await self._follow(told, found, seen, limit)
                found[told.package] = told

    async def _output_change(self, cause: Cause, before: float | None) -> PackageVerdict | None:
        """What changed in a dependency between its two outputs; None when that is not on record."""
        if cause.old is None or cause.new is None or before is None:
            return None
        old = await self._queries.last_with_output(cause.what, cause.old, before=before)
        if old is None:
            return None
        new = await self._queries.first_with_output(cause.what, cause.new, after=old.build.started_at)
        if new is None:  # it went back to an output that it had before
            new = await self._queries.last_with_output(cause.what, cause.new, before=old.build.started_at)
        if new is None or new.inputs is None:
            return None
        causes = await self._differences(old, new.inputs, (), MAX_FILES, None)
        told = PackageVerdict(
            package=new.build.package,
            version=new.build.version,
            repository=new.build.repository,
            state="up_to_date",
            key=new.build.key,
        )
        return _compared_with(told, old, causes)


def _compared_with(told: PackageVerdict, last: Success, causes: Iterable[Cause]) -> PackageVerdict:
    return msgspec.structs.replace(
        told,
        build=last.build.id,
        built_at=last.build.started_at,
        output_id=last.build.output_id,
        causes=tuple(causes),
    )


def _strategy(inputs: Inputs) -> Iterable[Cause]:
    if inputs.strategy == "none":
        yield Cause(kind="strategy", what="none", message="the strategy none takes no earlier result")


def _listing(tree: str, places: Sequence[Path]) -> Listing | None:
    """The files of a tree, from the first repository that has it."""
    for place in places:
        try:
            with GitStore(place) as store:
                return store.listing(tree)
        except (NotFound, InvalidInput):
            continue
    return None
