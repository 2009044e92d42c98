"""The words of buildd as data: frozen structs that every room shares.

One word per thing, the same here, in the command line, in JSON, in the database and in the man pages.
Times are seconds since the epoch (float); durations are seconds; sizes are bytes; ids of runs and builds are
UUIDs in their text form; git ids and digests are lower-case hexadecimal.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

# --- repositories -----------------------------------------------------------------------------------------

CloneState = Literal["not_started", "cloning", "cloned", "failed"]


class CloneStatus(Struct, frozen=True, kw_only=True):
    status: CloneState = "not_started"
    started_at: float | None = None
    completed_at: float | None = None
    error: str | None = None


class CloneProgress(Struct, frozen=True, kw_only=True):
    """Live progress of a clone or fetch, as the transport reports it."""

    received_objects: int
    total_objects: int
    indexed_objects: int
    received_bytes: int

    @property
    def percent(self) -> float:
        return 100.0 * self.received_objects / self.total_objects if self.total_objects else 0.0


class RepoMapStatus(Struct, frozen=True, kw_only=True):
    """A map of one commit: being made, made, or not."""

    repository: str
    """Normalised URL."""
    commit: str
    status: Literal["building", "complete", "failed"]
    build_id: str
    """UUID of the attempt to make it."""
    pid: int | None = None
    """Of the process that makes it; None while it waits for its turn."""
    started_at: float
    completed_at: float | None = None
    error: str | None = None
    output_path: str | None = None
    """Directory with `map.txt`, `tags.jsonl`, `tags` and `left_out.jsonl`, once it is complete."""
    stage: str = ""
    """What is being done: `waiting`, `listing`, `parsing`, `ranking`, `writing`."""
    done: int = 0
    total: int = 0
    """Files that are looked into."""
    files: int = 0
    """In the commit."""
    mapped: int = 0
    """Files that were looked into."""
    parsed: int = 0
    """Files that no earlier map knew of, those that were left out included."""
    definitions: int = 0
    left_out: dict[str, int] = {}
    """Number of files that were left out, by reason."""
    bytes: int = 0
    """On the disk."""


class MapTag(Struct, frozen=True, kw_only=True):
    """A definition."""

    path: str
    name: str
    kind: str
    line: int
    """From 1."""
    end_line: int
    parent: str
    """What encloses it, outermost first, joined by dots; empty at the top of a file."""
    signature: str
    score: float
    """Share of the rank of the whole repository that it has; a type has that of its members as well."""


class MapRef(Struct, frozen=True, kw_only=True):
    """A line that names an identifier, outside comments and strings."""

    path: str
    line: int
    """From 1."""
    text: str


class RankedFile(Struct, frozen=True, kw_only=True):
    path: str
    score: float
    """Share of the rank of the whole repository."""
    language: str
    """Empty when it is none of those that are parsed."""
    lines: int
    bytes: int
    definitions: int
    role: str
    """`source`, `test`, `vendored`, `generated`, `example`, `documentation` or `configuration`."""


class Repository(Struct, frozen=True, kw_only=True):
    """A URL and its bare clone."""

    url: str
    """Normalised, without credentials: the identity of the repository."""
    name: str
    """Last component of the URL without `.git`; what people may type for it."""
    path: str
    """Where the bare clone is, or will be."""
    last_access: float
    clone_status: CloneStatus = CloneStatus()
    bytes: int = 0
    """Size on disk of the clone when it was last cloned or fetched."""
    fetched_at: float | None = None
    repo_map_status: RepoMapStatus | None = None
    """Of the map that was asked for last."""


# --- packages ---------------------------------------------------------------------------------------------

PHASES = ("fetch", "checksum", "extract", "patch", "configure", "build", "check", "stage", "package")
"""The phases of a build, in order. Only `fetch` has the network."""


class Source(Struct, frozen=True, kw_only=True):
    """A file from outside the repository, fixed by its hash."""

    url: str
    sha256: str
    filename: str
    """The last component of the URL's path, checked to be a plain file name."""
    into: str = "."
    """Directory under $SRCDIR that it is extracted or copied to."""
    strip: int | None = None
    """Leading path components to drop; None drops a single directory that all members share."""
    extract: bool = True
    patches: tuple[str, ...] = ()
    """Patch or series files of the package's subtree, applied in order after extraction."""


class PhaseLimits(Struct, frozen=True, kw_only=True):
    """Bounds on one phase, beside those of its build; None sets none. Seconds."""

    timeout: float | None = None
    silence: float | None = None
    """Takes the place of the build's in this phase."""


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on one build; None takes the configuration's. Seconds and bytes."""

    timeout: float | None = None
    silence: float | None = None
    log: int | None = None
    memory: int | None = None
    """Bytes of all processes of the build together, and of what it has in /dev/shm."""
    cpu: float | None = None
    """Processors."""
    pids: int | None = None
    """Processes and threads at a time."""
    disk: int | None = None
    """Bytes that its directories take on the disk."""
    files: int | None = None
    """Files and directories in them."""
    open_files: int | None = None
    """Descriptors of each process."""
    phases: dict[str, PhaseLimits] = {}
    """By name of the phase."""


class Package(Struct, frozen=True, kw_only=True):
    """A buildable unit found in a revision, as a provider describes it."""

    name: str
    version: str
    path: str
    """Subtree of the revision, `.` for all of it."""
    repository: str
    """Identity of the repository: its normalised URL, or the absolute path of a local one."""
    store: str
    """Path of the git directory that holds the objects."""
    tree: str
    """Git tree id of the subtree: the hash of the source."""
    depends: tuple[str, ...] = ()
    system: str = "none"
    phases: dict[str, str] = {}
    """Shell text by phase, defaults of `system` already filled in. Phases without text are skipped."""
    sources: tuple[Source, ...] = ()
    patches: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    """Executables the build needs on its PATH; without them the package is ignored."""
    formats: tuple[str, ...] = ()
    limits: Limits = Limits()
    default: bool = True
    """False keeps the package out of runs that do not name it or need it."""
    summary: str = ""
    """One line about it."""
    ignore: str = ""
    """Why this package is not to be built here; empty builds it."""
    provider: str = "native"


# --- runs and builds --------------------------------------------------------------------------------------

PackageState = Literal["queued", "running", "success", "failed", "skipped", "blocked", "ignored", "cancelled"]
BuildState = Literal["running", "success", "failed", "cancelled"]
Strategy = Literal["none", "conservative", "aggressive"]
"""When an earlier result answers a package: never, only its own last one, or any with an equal key."""


class Stats(Struct, frozen=True, kw_only=True):
    """Counts of a run's packages by state; `total` is always their sum."""

    total: int = 0
    success: int = 0
    failed: int = 0
    skipped: int = 0
    blocked: int = 0
    ignored: int = 0
    cancelled: int = 0
    queued: int = 0
    running: int = 0


class PhaseRecord(Struct, frozen=True, kw_only=True):
    name: str
    started_at: float
    duration_s: float | None = None
    exit_status: int | None = None
    """0, a positive exit code, or minus the number of the signal that ended it; None while it runs."""


class Resources(Struct, frozen=True, kw_only=True):
    """What a build used."""

    cpu_s: float = 0.0
    max_rss_bytes: int = 0
    """Of its largest process."""
    peak_memory_bytes: int = 0
    """Of all of it together, at any moment that was looked at."""
    peak_processes: int = 0
    peak_disk_bytes: int = 0


class BuildRecord(Struct, frozen=True, kw_only=True):
    """One attempt at one package in a run."""

    id: str
    run: str
    package: str
    version: str
    state: BuildState
    started_at: float
    attempt: int = 1
    completed_at: float | None = None
    reason: str | None = None
    """A failure reason of `buildd.errors`, None on success."""
    message: str | None = None
    exit_status: int | None = None
    phases: tuple[PhaseRecord, ...] = ()
    resources: Resources = Resources()
    key: str = ""
    output_id: str | None = None
    artifact: str | None = None
    """Directory of the artifact; None without one."""
    log: str = ""
    """Path of the log file."""
    log_bytes: int = 0
    repository: str = ""
    """Identity of the repository that the package was found in."""
    tree: str = ""
    """Git tree id of its source."""
    crc: int | None = None
    """CRC-32 over the listing of its source."""
    retried: bool = False
    """A failed attempt that is followed by another one."""


class Event(Struct, frozen=True, kw_only=True):
    """A line of the journal. `number` rises by one, without gaps."""

    number: int
    time: float
    kind: str
    run: str | None = None
    build: str | None = None
    package: str | None = None
    repository: str | None = None
    data: dict[str, Any] = {}
