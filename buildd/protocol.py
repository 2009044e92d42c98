"""The control protocol: JSON-RPC 2.0 over a ZeroMQ ROUTER on a Unix socket, as data.

`METHODS` is the whole interface: every method with its parameters, its answer and the right it takes. The
daemon dispatches on it, `buildctl schema` prints it, buildd-protocol(7) describes it. Unknown parameters are
refused, so that a misspelt option is an error and not a silent default.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from buildd.model import (
    BuildRecord as BuildRecord,
    CloneProgress as CloneProgress,
    Event as Event,
    MapRef as MapRef,
    MapTag as MapTag,
    PackageState as PackageState,
    RankedFile as RankedFile,
    RepoMapStatus as RepoMapStatus,
    Repository as Repository,
    Stats as Stats,
    Strategy as Strategy,
)

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 20
"""Largest request frame the daemon accepts; libzmq ends the connection of a peer that sends more."""
MAX_POLL_S = 60.0
"""Longest time a long poll is held; ask again after an empty answer."""
MAX_CHUNK_BYTES = 256 * 1024
"""Most bytes of a log or artifact in one answer."""
MAX_EVENTS = 1000
"""Most events in one answer."""
SOCKET_NAME = "control.sock"

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603

Right = Literal["observe", "control"]


class Params(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all parameters."""


class Request(Struct, frozen=True, kw_only=True):
    jsonrpc: Literal["2.0"]
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")
    id: int | str | msgspec.UnsetType | None = msgspec.UNSET


class ErrorData(Struct, frozen=True, kw_only=True):
    hint: str = ""
    kind: str = ""
    """Name of the error class."""


class Error(Struct, frozen=True, kw_only=True):
    code: int
    message: str
    data: ErrorData = ErrorData()


class Ok(Struct, frozen=True, kw_only=True):
    """The answer of a method that only acts. `message` says what was done."""

    ok: bool = True
    message: str = ""


class Empty(Params, frozen=True, kw_only=True):
    pass


# --- daemon -----------------------------------------------------------------------------------------------

DaemonState = Literal["running", "draining", "stopping", "degraded"]


class Workers(Struct, frozen=True, kw_only=True):
    busy: int
    total: int


class ActiveClone(Struct, frozen=True, kw_only=True):
    url: str
    operation: Literal["clone", "fetch"]
    started_at: float
    progress: CloneProgress
    percent: float


class DaemonResources(Struct, frozen=True, kw_only=True):
    rss_bytes: int
    open_files: int
    threads: int
    children: int


class RunCounts(Struct, frozen=True, kw_only=True):
    active: int
    total: int


class BuildCounts(Struct, frozen=True, kw_only=True):
    queued: int
    running: int
    success: int
    failed: int
    """`success` and `failed` count since the daemon started."""


class ControlCounts(Struct, frozen=True, kw_only=True):
    requests: int
    dropped: int
    """Frames that could be neither answered nor used, and answers whose reader went away."""


class Throttle(Struct, frozen=True, kw_only=True):
    """How many builds may run side by side on a machine that is short of processors or memory."""

    workers: int
    """Allowed now."""
    total: int
    """Configured."""
    reason: str = ""
    """What is short, with its measure; empty while nothing is."""


class DaemonStatus(Struct, frozen=True, kw_only=True):
    version: str
    pid: int
    uptime_s: float
    state: DaemonState
    reasons: tuple[str, ...]
    """Why the daemon is degraded or draining, and what is weaker here than it could be."""
    sandbox: str
    runs: RunCounts
    builds: BuildCounts
    workers: Workers
    throttle: Throttle
    paused: str
    """Why no builds are started for want of room on a disk; empty when they are."""
    clones: tuple[ActiveClone, ...]
    maps: tuple[RepoMapStatus, ...] = ()
    """Those that wait or are being made."""
    resources: DaemonResources
    control: ControlCounts
    state_dir: str
    cache_dir: str
    config_files: tuple[str, ...]


class ResourcesParams(Params, frozen=True, kw_only=True):
    samples: int = 1
    """How many of the newest samples; no more than are kept."""


class Sample(Struct, frozen=True, kw_only=True):
    """The daemon and the machine at one moment."""

    at: float
    rss_bytes: int
    """Resident memory of the daemon, as the next three without its builds."""
    open_files: int
    threads: int
    children: int
    load_1m: float
    """Mean number of processes that ran or wanted to, over a minute."""
    memory_total_bytes: int
    memory_available_bytes: int
    """What could be had without swapping."""
    swap_total_bytes: int
    swap_used_bytes: int
    free_bytes: int | None
    """Least free space of the file systems of state_dir, work_dir and cache_dir; None when none can be read."""
    free_inodes: int | None
    """The same for inodes; None also where they are not counted."""
    busy: int
    """Builds that ran."""
    queued: int
    """Packages that waited."""


class MemoryWatch(Struct, frozen=True, kw_only=True):
    """Resident memory of the daemon since it started."""

    baseline_bytes: int
    """Measured when the daemon has settled; 0 before."""
    peak_bytes: int
    warnings: int
    """How often it was found too far above the baseline."""
    profile: str
    """The last profile that was dumped, a file; empty without one."""


class BuildUse(Struct, frozen=True, kw_only=True):
    """What a running build uses now."""

    build: str
    run: str
    package: str
    phase: str | None
    started_at: float
    processes: int
    memory_bytes: int
    cpu_s: float
    """Processor time so far."""
    disk_bytes: int


class ResourcesResult(Struct, frozen=True, kw_only=True):
    interval_s: float
    """Between two samples."""
    samples: tuple[Sample, ...]
    """Oldest first."""
    throttle: Throttle
    paused: str
    """Why no builds are started for want of room on a disk; empty when they are. A drain is another thing."""
    memory: MemoryWatch
    builds: tuple[BuildUse, ...]
    """In the order in which they started."""


class CheckResult(Struct, frozen=True, kw_only=True):
    name: str
    status: Literal["ok", "warning", "error"]
    message: str
    hint: str = ""


class DoctorResult(Struct, frozen=True, kw_only=True):
    checks: tuple[CheckResult, ...]


class ShutdownParams(Params, frozen=True, kw_only=True):
    drain: bool = False
    """Let running builds finish before the daemon stops."""


# --- repositories -----------------------------------------------------------------------------------------


class RepoParams(Params, frozen=True, kw_only=True):
    repo: str
    """URL, path or known name."""


class CloneParams(RepoParams, frozen=True, kw_only=True):
    again: bool = False
    """Try once more when the last clone failed; without it the answer is the reason."""


class CloneResult(Struct, frozen=True, kw_only=True):
    status: Literal["accepted", "cloning", "cloned", "failed"]
    path: str
    message: str


class RefreshParams(RepoParams, frozen=True, kw_only=True):
    if_changed: bool = False
    """Ask the server for its references, and for more only when one of them differs."""


class RefreshResult(Repository, frozen=True, kw_only=True):
    """The repository as it is now."""

    changed: bool
    """Whether a branch or tag differs from before, or there was no clone before."""


class RepoList(Struct, frozen=True, kw_only=True):
    repositories: tuple[Repository, ...]


class Branch(Struct, frozen=True, kw_only=True):
    name: str
    commit: str
    head: bool
    """True for the default branch."""


class BranchList(Struct, frozen=True, kw_only=True):
    branches: tuple[Branch, ...]


class RevisionParams(RepoParams, frozen=True, kw_only=True):
    revision: str = ""
    """Branch, tag, or full or unambiguous short commit id; empty for the default branch."""


# --- maps and reading code --------------------------------------------------------------------------------

DEFAULT_MAP_TOKENS = 4096
MAX_MAP_TOKENS = 65_536


class MapRequestParams(RevisionParams, frozen=True, kw_only=True):
    again: bool = False
    """Make it once more, also when there is one."""


class MapAnswer(Struct, frozen=True, kw_only=True):
    status: Literal["accepted", "building", "complete"]
    """`accepted` when it is begun by this request, which it is when the last attempt failed."""
    message: str
    repo_map_status: RepoMapStatus


class MapList(Struct, frozen=True, kw_only=True):
    maps: tuple[RepoMapStatus, ...]
    """Newest first."""


class MapGetParams(RevisionParams, frozen=True, kw_only=True):
    tokens: int = DEFAULT_MAP_TOKENS
    """The text never takes more; at most MAX_MAP_TOKENS."""
    focus: tuple[str, ...] = ()
    """Paths of files that the reader works on: what they lean on comes first."""
    mention: tuple[str, ...] = ()
    """Identifiers, or parts of paths, that the reader has in mind."""
    timeout: float = 0.0
    """Seconds that the answer may wait for the map to be made, at most MAX_POLL_S."""


class MapText(Struct, frozen=True, kw_only=True):
    repo_map_status: RepoMapStatus
    text: str = ""
    """Empty until the map is complete."""
    tokens: int = 0
    """Estimated, four bytes or one word to a token, whichever gives more."""
    files: int = 0
    """In the text."""
    definitions: int = 0
    """In the text."""
    unknown: tuple[str, ...] = ()
    """Focus files that are not in the commit, and mentioned names that nothing has."""


class MapReadParams(RevisionParams, frozen=True, kw_only=True):
    file: Literal["map.txt", "tags.jsonl", "tags", "left_out.jsonl"]
    offset: int = 0
    limit: int = MAX_CHUNK_BYTES


class MapChunk(Struct, frozen=True, kw_only=True):
    data: bytes
    """Base64 in JSON."""
    next_offset: int
    finished: bool


class MapTagsParams(RevisionParams, frozen=True, kw_only=True):
    name: str = ""
    """Exact, or a shell pattern. Empty conditions let everything through."""
    path: str = ""
    """A file, a directory, or a shell pattern."""
    kind: str = ""
    """`class`, `function`, `method` …"""
    limit: int = 100
    offset: int = 0


class MapTags(Struct, frozen=True, kw_only=True):
    tags: tuple[MapTag, ...]
    """Best first."""
    total: int
    """That fulfil the conditions."""


class MapRefsParams(RevisionParams, frozen=True, kw_only=True):
    name: str
    """An identifier."""
    limit: int = 100
    offset: int = 0


class MapRefs(Struct, frozen=True, kw_only=True):
    definitions: tuple[MapTag, ...]
    refs: tuple[MapRef, ...]
    total: int


class TreeParams(RevisionParams, frozen=True, kw_only=True):
    path: str = ""
    """A directory; empty for the top."""
    depth: int = 3
    """Levels of directories below it."""
    limit: int = 1000
    """Most entries."""


class TreeEntry(Struct, frozen=True, kw_only=True):
    path: str
    type: Literal["directory", "file", "executable", "link", "submodule"]
    files: int
    """In it and below; 1 for a file."""
    bytes: int
    """Of all these; 0 for a submodule."""


class Tree(Struct, frozen=True, kw_only=True):
    commit: str
    path: str
    files: int
    directories: int
    bytes: int
    """Of everything below the path, listed or not."""
    suffixes: dict[str, int]
    """Number of files by what their names end in, most frequent first, at most 20."""
    entries: tuple[TreeEntry, ...]
    """Directories before files, each by name, what is in a directory right after it."""
    truncated: bool
    """True when there are more entries within the depth."""


class FilesParams(RevisionParams, frozen=True, kw_only=True):
    limit: int = 50
    timeout: float = 0.0
    """Seconds that the answer may wait for the map to be made, at most MAX_POLL_S."""


class RankedFiles(Struct, frozen=True, kw_only=True):
    repo_map_status: RepoMapStatus
    files: tuple[RankedFile, ...] = ()
    """Most significant first; empty until the map is complete."""
    total: int = 0


class DocumentsParams(RevisionParams, frozen=True, kw_only=True):
    path: str = ""
    """Only below this directory."""
    limit: int = 100


class Document(Struct, frozen=True, kw_only=True):
    path: str
    kind: Literal["readme", "guide", "changelog", "license", "manual", "other"]
    title: str
    """First heading, or first line; empty when there is none."""
    bytes: int


class Documents(Struct, frozen=True, kw_only=True):
    commit: str
    documents: tuple[Document, ...]
    """What a newcomer reads first is first."""
    total: int


class CatParams(RevisionParams, frozen=True, kw_only=True):
    path: str
    first_line: int = 1
    last_line: int | None = None
    """None for as much as fits; both count from 1 and are included."""
    limit: int = MAX_CHUNK_BYTES
    """Most bytes of text; lines are whole unless one alone is longer."""
    offset: int = 0
    """Bytes of the first line to leave out: how to go on in a line that is longer than the limit."""


class FileContent(Struct, frozen=True, kw_only=True):
    commit: str
    path: str
    bytes: int
    """Of the whole file."""
    lines: int
    first_line: int
    last_line: int
    """Of what is in `text`; less than `first_line` when nothing is."""
    text: str
    """What is not UTF-8 is replaced. Empty for a binary file."""
    binary: bool
    truncated: bool
    """True when the file goes on after it."""
    next_offset: int = 0
    """Where to go on in `last_line` when that is too long to be whole: ask for it with this `offset`."""


# --- runs -------------------------------------------------------------------------------------------------


class StartParams(Params, frozen=True, kw_only=True):
    targets: tuple[str, ...]
    """`REPO[@REV][//PACKAGE]`; REPO a URL, an absolute path or a known name."""
    keep_going: bool = True
    """Go on with packages that do not depend on a failed one; False cancels the rest of the run."""
    force: bool = False
    """Build even what has a result already."""
    fetch_only: bool = False
    """Run the fetch and checksum phases of every package and stop there."""
    refresh: bool = True
    """Fetch cloned repositories before planning."""
    priority: int = 0
    """Higher goes first among packages that are equally urgent."""
    force_packages: tuple[str, ...] = ()
    """Names of packages to build even when they have a result already."""
    strategy: Strategy | None = None
    """When earlier results are used; None takes the configuration's word for each repository."""
    max_retries: int | None = None
    """Further attempts after failures that may pass by themselves; None takes the configuration's."""
    worktree: bool = False
    """Build local repositories as their files are now, uncommitted changes included."""
    verify: bool = False
    """Build the packages that are up to date again, in another directory, and compare the outputs."""
    wait: float = 0.0
    """Seconds that the answer may wait for the end of the run, at most MAX_POLL_S."""


class StartResult(Struct, frozen=True, kw_only=True):
    id: str
    number: int
    event: int = 0
    """Number of the last event before the run's own."""
    run: RunView | None = None
    """The run, when it has ended within `wait`, with those packages that were neither skipped nor ignored.

    Of a run with more than a thousand packages to build none may be there; `run.status` has them.
    """


class RunPackage(Struct, frozen=True, kw_only=True):
    name: str
    version: str
    state: PackageState
    reason: str | None
    phase: str | None
    duration_s: float | None
    build_id: str | None
    artifact: str | None
    log_bytes: int
    message: str | None = None
    """What a person should know: the failure, the blocking dependency, why it was ignored or skipped."""
    last_line: str | None = None
    """Last line of output; only while running and when asked for with `live`."""


class RunView(Struct, frozen=True, kw_only=True):
    """A run; `packages` is empty in lists."""

    id: str
    number: int
    state: str
    targets: tuple[str, ...]
    requested_by: str
    created_at: float
    started_at: float | None
    completed_at: float | None
    stats: Stats
    packages: tuple[RunPackage, ...]
    wave: int | None = None
    waves: int | None = None
    error: str | None = None
    hint: str | None = None


class RunParams(Params, frozen=True, kw_only=True):
    run: str
    """Id, unambiguous prefix of one, number, or `latest`."""


class RunStatusParams(RunParams, frozen=True, kw_only=True):
    live: bool = False
    packages: bool = True
    states: tuple[PackageState, ...] = ()
    """Only packages in these states; empty for all."""


class RunListParams(Params, frozen=True, kw_only=True):
    limit: int = 20
    active: bool = False


class RunList(Struct, frozen=True, kw_only=True):
    runs: tuple[RunView, ...]


class CancelParams(RunParams, frozen=True, kw_only=True):
    package: str | None = None
    """Only this package (and what depends on it is blocked)."""


class WaitParams(RunParams, frozen=True, kw_only=True):
    timeout: float = 30.0
    """Seconds, at most MAX_POLL_S."""
    packages: bool = True


class WaitResult(Struct, frozen=True, kw_only=True):
    finished: bool
    run: RunView


class PlanParams(Params, frozen=True, kw_only=True):
    targets: tuple[str, ...]
    refresh: bool = True
    worktree: bool = False
    """Take local repositories as their files are now, uncommitted changes included."""
    strategy: Strategy | None = None
    why: bool = False
    """Say of each package whether it would be built, and why."""


class FileChange(Struct, frozen=True, kw_only=True):
    """A file of a source that differs between two builds. Ids and modes are git's."""

    path: str
    change: Literal["added", "removed", "modified", "mode", "renamed"]
    old_path: str | None = None
    """Where a renamed file was."""
    old_blob: str | None = None
    new_blob: str | None = None
    old_mode: str | None = None
    new_mode: str | None = None


CauseKind = Literal[
    "never_built",
    "forced",
    "ignored",
    "strategy",
    "artifact",
    "version",
    "source",
    "fetched",
    "patches",
    "recipe",
    "formats",
    "dependency",
    "environment",
    "architecture",
    "format",
]


class Cause(Struct, frozen=True, kw_only=True):
    """One reason why a package is, or would be, built again."""

    kind: CauseKind
    what: str = ""
    """What of that kind: the phase, the dependency, the fetched file, the part of the environment."""
    old: str | None = None
    new: str | None = None
    message: str = ""
    """The same in words."""
    files: tuple[FileChange, ...] = ()
    """The files that make the difference, of a source."""


VerdictState = Literal["up_to_date", "build", "ignored"]


class PackageVerdict(Struct, frozen=True, kw_only=True):
    """Whether a package is built, and why."""

    package: str
    version: str
    repository: str
    state: VerdictState
    key: str | None = None
    """None while it depends on a package that is to be built."""
    build: str | None = None
    """The earlier build that answers it, or the last success that it is compared with."""
    built_at: float | None = None
    """When `build` started."""
    output_id: str | None = None
    """What `build` left behind."""
    causes: tuple[Cause, ...] = ()
    """Why it is built, or ignored; of one that is up to date, why its output is not what a dependent had."""


class WhyParams(Params, frozen=True, kw_only=True):
    package: str
    """NAME[@VERSION] of a package that was built before, or a target REPO[@REV]//PACKAGE."""
    run: str | None = None
    """Explain what this run did, instead of what one would do now."""
    worktree: bool = False
    strategy: Strategy | None = None
    refresh: bool = False


class VerifyParams(Params, frozen=True, kw_only=True):
    package: str
    """NAME[@VERSION] of a package that was built before, or a target REPO[@REV]//PACKAGE."""
    worktree: bool = False


class WhyResult(Struct, frozen=True, kw_only=True):
    verdict: PackageVerdict
    needed: tuple[PackageVerdict, ...] = ()
    """What the causes lead to, dependencies first: those that are built as well, and those whose output changed."""
    notes: tuple[str, ...] = ()
    """What was chosen where the request left a choice, in words."""


class PlannedPackage(Struct, frozen=True, kw_only=True):
    name: str
    version: str
    repository: str
    path: str
    tree: str
    depends: tuple[str, ...]
    wave: int
    """1 for packages without dependencies in the plan."""
    ignore: str = ""
    verdict: PackageVerdict | None = None
    """Only when asked for with `why`."""


class PlanResult(Struct, frozen=True, kw_only=True):
    packages: tuple[PlannedPackage, ...]
    """In topological order."""
    waves: int


# --- builds -----------------------------------------------------------------------------------------------


class BuildParams(Params, frozen=True, kw_only=True):
    build: str
    """Id or unambiguous prefix of one."""


class BuildListParams(Params, frozen=True, kw_only=True):
    package: str | None = None
    run: str | None = None
    limit: int = 20


class BuildList(Struct, frozen=True, kw_only=True):
    builds: tuple[BuildRecord, ...]


class LogParams(Params, frozen=True, kw_only=True):
    build: str
    offset: int = 0
    """Byte to start at; negative counts from the end."""
    limit: int = MAX_CHUNK_BYTES
    timeout: float = 0.0
    """Seconds to wait for more while the build runs."""


class LogChunk(Struct, frozen=True, kw_only=True):
    build: str
    offset: int
    """Where `text` starts."""
    next_offset: int
    text: str
    """The bytes as UTF-8; what is not UTF-8 is replaced. Chunks never split a character."""
    finished: bool
    """True when the build has ended and nothing follows `next_offset`."""


class ShowParams(Params, frozen=True, kw_only=True):
    id: str
    """A run or a build: id, prefix, or number of a run."""


class ShowResult(Struct, frozen=True, kw_only=True):
    run: RunView | None = None
    build: BuildRecord | None = None


# --- events -----------------------------------------------------------------------------------------------


class PollParams(Params, frozen=True, kw_only=True):
    after: int
    """Number of the last event seen; 0 for all that are kept, -1 for those to come."""
    timeout: float = 0.0
    limit: int = MAX_EVENTS
    run: str | None = None
    kinds: tuple[str, ...] = ()


class PollResult(Struct, frozen=True, kw_only=True):
    events: tuple[Event, ...]
    next: int
    """What to pass as `after` next time."""


# --- artifacts --------------------------------------------------------------------------------------------


class ArtifactFile(Struct, frozen=True, kw_only=True):
    path: str
    mode: str
    size: int
    sha256: str


class Artifact(Struct, frozen=True, kw_only=True):
    output_id: str
    path: str
    bytes: int
    files: int
    created_at: float
    packages: tuple[str, ...]
    """`NAME@VERSION` of the builds that made it."""
    last_used: float | None = None
    """When it was made, or last answered a package or was made again; the least recent go first."""
    pinned: str | None = None
    """Who wants it kept, and why; None when nobody has said so."""
    in_use: bool = False
    """Whether an unfinished run may need it, or somebody is fetching it: it is not collected now."""


class ArtifactList(Struct, frozen=True, kw_only=True):
    artifacts: tuple[Artifact, ...]


class ArtifactListParams(Params, frozen=True, kw_only=True):
    package: str | None = None
    limit: int = 100


class ArtifactParams(Params, frozen=True, kw_only=True):
    artifact: str
    """Output id or prefix, build id or prefix, or NAME[@VERSION] for the latest success."""


class ArtifactDetail(Struct, frozen=True, kw_only=True):
    artifact: Artifact
    listing: tuple[ArtifactFile, ...]


class ArtifactExport(Struct, frozen=True, kw_only=True):
    output_id: str
    filename: str
    bytes: int
    sha256: str


class ArtifactReadParams(Params, frozen=True, kw_only=True):
    output_id: str
    filename: str
    """As `artifact.export` answered."""
    offset: int = 0


class ArtifactChunk(Struct, frozen=True, kw_only=True):
    data: bytes
    """Base64 in JSON."""
    next_offset: int
    finished: bool


class ArtifactVerifyParams(Params, frozen=True, kw_only=True):
    artifact: str | None = None
    """As in the other methods; None for all."""


class ArtifactVerdict(Struct, frozen=True, kw_only=True):
    output_id: str
    packages: tuple[str, ...]
    """`NAME@VERSION` of the builds that made it; only of a damaged one."""
    ok: bool
    problems: tuple[str, ...] = ()
    kept: str | None = None
    """Where a damaged artifact is kept for people to look at; None when there was no room."""


class ArtifactVerifyResult(Struct, frozen=True, kw_only=True):
    artifacts: tuple[ArtifactVerdict, ...]
    damaged: int
    """How many of them are not ok. They are set aside, and built again when they are next needed."""


class ArtifactPinParams(ArtifactParams, frozen=True, kw_only=True):
    note: str | None = None
    """Why it is to be kept."""


class CollectParams(Params, frozen=True, kw_only=True):
    """Limits for this once; None takes the configuration's, 0 sets no limit."""

    dry_run: bool = False
    """Only say what would go."""
    max_bytes: int | None = None
    max_age: float | None = None
    min_free_bytes: int | None = None
    min_free_inodes: int | None = None


class Collected(Struct, frozen=True, kw_only=True):
    """Something that went, or would go."""

    kind: Literal["artifact", "release", "damaged"]
    id: str
    """Output id of an artifact, number of the run of a release, name of a damaged artifact."""
    packages: tuple[str, ...]
    """`NAME@VERSION` of the builds that made an artifact."""
    bytes: int
    """What it took of the disk."""
    inodes: int
    last_used: float
    reason: Literal["age", "size", "free_space", "free_inodes"]


class UnmetLimit(Struct, frozen=True, kw_only=True):
    limit: Literal["max_bytes", "min_free_bytes", "min_free_inodes"]
    wanted: int
    reached: int
    message: str
    """The same in words, with what could not go."""


class CollectResult(Struct, frozen=True, kw_only=True):
    """What went and what is left; of a dry run, what would be."""

    dry_run: bool
    collected: tuple[Collected, ...]
    """In the order in which they went."""
    freed_bytes: int
    freed_inodes: int
    artifacts: int
    """How many are left."""
    bytes: int
    """What artifacts and releases take of the disk now."""
    free_bytes: int
    """Free space of their file system."""
    free_inodes: int
    unmet: tuple[UnmetLimit, ...]
    """Limits that are still not kept."""
    failed: tuple[str, ...]
    """What could not be removed, and why."""


# --- the database -----------------------------------------------------------------------------------------


class IndexEntry(Struct, frozen=True, kw_only=True):
    """The latest successful build of one version of a package in one repository."""

    package: str
    version: str
    repository: str
    build: str
    key: str
    output_id: str
    tree: str
    """Git tree id of the source that was built."""
    crc: int | None
    """CRC-32 over the listing of that source."""
    built_at: float


class IndexParams(Params, frozen=True, kw_only=True):
    package: str | None = None
    """NAME[@VERSION]; None for all."""
    limit: int = 100


class IndexList(Struct, frozen=True, kw_only=True):
    entries: tuple[IndexEntry, ...]


class FailuresParams(Params, frozen=True, kw_only=True):
    package: str | None = None
    limit: int = 20


class FingerprintParams(Params, frozen=True, kw_only=True):
    package: str
    """NAME[@VERSION]"""


class Fingerprint(Struct, frozen=True, kw_only=True):
    """The source of a latest successful build."""

    package: str
    version: str
    repository: str
    tree: str
    crc: int | None
    files: int | None
    """Number of files in it; None when the listing is not kept."""
    build: str
    built_at: float


class FingerprintList(Struct, frozen=True, kw_only=True):
    fingerprints: tuple[Fingerprint, ...]


class PackageTime(Struct, frozen=True, kw_only=True):
    """How long the successful builds of a package took, in seconds."""

    package: str
    builds: int
    total_s: float
    mean_s: float
    median_s: float


class DatabaseStatsParams(Params, frozen=True, kw_only=True):
    slowest: int = 10
    """How many of the slowest packages to name."""


class DatabaseStats(Struct, frozen=True, kw_only=True):
    since: float | None
    """When the oldest run on record was accepted."""
    packages: int
    """Names with a successful build."""
    runs: dict[str, int]
    """Number of runs by state."""
    builds: dict[str, int]
    """Number of builds by state."""
    hits: int
    """Packages of ended runs that an earlier result answered."""
    misses: int
    """Packages of ended runs that were built, with or without success."""
    hit_rate: float | None
    """Hits of both; None without any."""
    total_s: float
    mean_s: float | None
    median_s: float | None
    """Of the durations of all successful builds."""
    slowest: tuple[PackageTime, ...]
    """By median duration, longest first."""
    outputs: int
    """Different outputs on record."""
    artifacts: int | None
    """Artifacts on disk; None when the disk cannot be read."""
    artifact_bytes: int | None
    """What they and releases take of it."""
    database_bytes: int


class DatabaseCheck(Struct, frozen=True, kw_only=True):
    ok: bool
    problems: tuple[str, ...]
    """What is wrong, in words."""
    builds: int
    """Builds on record."""
    missing_artifacts: int
    """Successful builds whose artifact is gone; their packages are built again when they are wanted."""
    stale_builds: int
    """Builds that are on record as running and do not run."""


class ResetParams(Params, frozen=True, kw_only=True):
    force: bool = False
    """Also while runs are active."""


# --- the table --------------------------------------------------------------------------------------------


class Method(Struct, frozen=True, kw_only=True):
    params: Any
    result: Any
    right: Right
    doc: str


METHODS: dict[str, Method] = {
    name: Method(params=params, result=result, right=right, doc=doc)  # type: ignore[arg-type]
    for name, params, result, right, doc in (
        ("daemon.status", Empty, DaemonStatus, "observe", "State, load and resources of the daemon."),
        ("daemon.resources", ResourcesParams, ResourcesResult, "observe", "What the machine, daemon and builds use."),
        ("daemon.doctor", Empty, DoctorResult, "observe", "Check what builds need on this machine."),
        ("daemon.drain", Empty, Ok, "control", "Start no more builds; let running ones finish."),
        ("daemon.resume", Empty, Ok, "control", "Undo drain."),
        ("daemon.reload", Empty, Ok, "control", "Read the configuration again, as SIGHUP does."),
        ("daemon.shutdown", ShutdownParams, Ok, "control", "Stop the daemon, as SIGTERM does."),
        ("repo.clone", CloneParams, CloneResult, "control", "Start a clone; answers at once."),
        ("repo.status", RepoParams, Repository, "observe", "One repository."),
        ("repo.list", Empty, RepoList, "observe", "All known repositories."),
        ("repo.refresh", RefreshParams, RefreshResult, "control", "Fetch; answers when it is done."),
        ("repo.cancel", RepoParams, Ok, "control", "Stop a clone or fetch that is under way."),
        ("repo.delete", RepoParams, Ok, "control", "Remove the clone and its record."),
        ("repo.branches", RepoParams, BranchList, "observe", "Branches of a clone and their commits."),
        ("repo.files", FilesParams, RankedFiles, "control", "Files by significance; has the map made if need be."),
        ("map.request", MapRequestParams, MapAnswer, "control", "Have a map made; answers at once."),
        ("map.status", RevisionParams, RepoMapStatus, "observe", "How a map is getting on, or what it is like."),
        ("map.list", Empty, MapList, "observe", "All maps, newest first."),
        ("map.get", MapGetParams, MapText, "control", "The map as text; has it made if need be."),
        ("map.read", MapReadParams, MapChunk, "observe", "A piece of a file of a complete map."),
        ("map.tags", MapTagsParams, MapTags, "observe", "Definitions, best first."),
        ("map.refs", MapRefsParams, MapRefs, "observe", "Where an identifier is defined and used."),
        ("map.cancel", RevisionParams, Ok, "control", "Stop making maps of a repository."),
        ("repo.tree", TreeParams, Tree, "observe", "What a directory of a commit holds, with counts."),
        ("repo.docs", DocumentsParams, Documents, "observe", "Documentation files of a commit."),
        ("repo.cat", CatParams, FileContent, "observe", "The text of a file of a commit."),
        ("run.start", StartParams, StartResult, "control", "Accept a run; answers once it is on disk."),
        ("run.plan", PlanParams, PlanResult, "control", "What a start of these targets would consider."),
        ("package.verify", VerifyParams, StartResult, "control", "Start a run that builds a package again to compare."),
        ("package.why", WhyParams, WhyResult, "control", "Why a package is, or would be, built or not."),
        ("run.status", RunStatusParams, RunView, "observe", "A run with its packages."),
        ("run.list", RunListParams, RunList, "observe", "Recent runs, newest first."),
        ("run.wait", WaitParams, WaitResult, "observe", "Answer when the run ends or the time is over."),
        ("run.cancel", CancelParams, Ok, "control", "Cancel a run or one of its packages."),
        ("build.show", BuildParams, BuildRecord, "observe", "One build."),
        ("build.list", BuildListParams, BuildList, "observe", "Builds, newest first."),
        ("build.log", LogParams, LogChunk, "observe", "A piece of a build's log, or wait for one."),
        ("object.show", ShowParams, ShowResult, "observe", "A run or a build, whichever the id names."),
        ("events.poll", PollParams, PollResult, "observe", "Events after a number, or wait for one."),
        ("artifact.list", ArtifactListParams, ArtifactList, "observe", "Artifacts, newest first."),
        ("artifact.show", ArtifactParams, ArtifactDetail, "observe", "One artifact and its files."),
        ("artifact.export", ArtifactParams, ArtifactExport, "observe", "Pack an artifact as .tar.zst."),
        ("artifact.read", ArtifactReadParams, ArtifactChunk, "observe", "A piece of an exported artifact."),
        ("artifact.verify", ArtifactVerifyParams, ArtifactVerifyResult, "control", "Read artifacts, and compare."),
        ("artifact.pin", ArtifactPinParams, Ok, "control", "Keep an artifact, whatever the limits say."),
        ("artifact.unpin", ArtifactParams, Ok, "control", "Undo pin."),
        ("artifact.collect", CollectParams, CollectResult, "control", "Remove what the limits do not allow."),
        ("db.latest", IndexParams, IndexList, "observe", "Latest successful builds, newest first."),
        ("db.failures", FailuresParams, BuildList, "observe", "Failed builds, newest first."),
        ("db.fingerprint", FingerprintParams, FingerprintList, "observe", "Sources of latest successful builds."),
        ("db.stats", DatabaseStatsParams, DatabaseStats, "observe", "Counts, hit rate and times of all on record."),
        ("db.verify", Empty, DatabaseCheck, "control", "Check the database and what it refers to."),
        ("db.reset", ResetParams, Ok, "control", "Forget runs, builds and fingerprints; artifacts stay."),
    )
}


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every method: `{methods: {name: {params, result, right, doc}}, $defs}`."""
    types = [t for m in METHODS.values() for t in (m.params, m.result)]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    pairs = iter(schemas)
    methods = {
        name: {"doc": m.doc, "right": m.right, "params": next(pairs), "result": next(pairs)}
        for name, m in METHODS.items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "protocol": VERSION,
        "methods": methods,
        "$defs": components,
    }
