"""The database's shape, as migrations. `PRAGMA user_version` counts the ones applied.

A migration, once released, is never edited; a change of shape is a new one at the end. Records are JSON of the
structs in `buildd.model` and `buildd.store.records`; the columns beside them are what queries need.
"""

from __future__ import annotations

MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE repositories (
        url TEXT PRIMARY KEY,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE runs (
        id TEXT PRIMARY KEY,
        number INTEGER NOT NULL UNIQUE,
        finished INTEGER NOT NULL,
        record BLOB NOT NULL,
        plan BLOB,
        packages BLOB
    ) WITHOUT ROWID;
    CREATE INDEX runs_unfinished ON runs (number) WHERE finished = 0;
    CREATE TABLE builds (
        id TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        package TEXT NOT NULL,
        version TEXT NOT NULL,
        repository TEXT NOT NULL,
        state TEXT NOT NULL,
        started_at REAL NOT NULL,
        duration_s REAL,
        key TEXT NOT NULL,
        output_id TEXT,
        record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX builds_by_run ON builds (run, started_at);
    CREATE INDEX builds_by_package ON builds (package, started_at);
    CREATE INDEX builds_by_key ON builds (key, started_at) WHERE state = 'success';
    CREATE INDEX builds_by_output ON builds (output_id) WHERE state = 'success';
    CREATE INDEX builds_by_time ON builds (started_at);
    CREATE INDEX builds_unfinished ON builds (state) WHERE state = 'running';
    CREATE TABLE events (
        number INTEGER PRIMARY KEY,
        time REAL NOT NULL,
        kind TEXT NOT NULL,
        run TEXT,
        build TEXT,
        package TEXT,
        repository TEXT,
        data BLOB NOT NULL
    );
    CREATE INDEX events_by_run ON events (run, number) WHERE run IS NOT NULL;
    """,
    """
    -- what a run found in its repositories, to go on with after a restart; earlier versions kept whole plans here
    ALTER TABLE runs RENAME COLUMN plan TO places;
    UPDATE runs SET places = NULL;
    -- packages of a run that were up to date: a roster that runs share, and what differs from it
    ALTER TABLE runs ADD COLUMN roster TEXT;
    ALTER TABLE runs ADD COLUMN roster_changes BLOB;
    CREATE TABLE rosters (
        id TEXT PRIMARY KEY,
        body BLOB NOT NULL
    ) WITHOUT ROWID;
    ALTER TABLE builds ADD COLUMN inputs BLOB;
    CREATE INDEX builds_answers ON builds (package, started_at DESC, repository, key, output_id, duration_s)
        WHERE state = 'success' AND output_id IS NOT NULL;
    CREATE INDEX builds_failed ON builds (started_at) WHERE state = 'failed';
    CREATE TABLE source_trees (
        tree TEXT PRIMARY KEY,
        crc INTEGER NOT NULL,
        files BLOB
    ) WITHOUT ROWID;
    CREATE TABLE package_index (
        package TEXT NOT NULL,
        version TEXT NOT NULL,
        repository TEXT NOT NULL,
        build TEXT NOT NULL,
        key TEXT NOT NULL,
        output_id TEXT NOT NULL,
        tree TEXT NOT NULL,
        crc INTEGER,
        built_at REAL NOT NULL,
        PRIMARY KEY (package, version, repository)
    ) WITHOUT ROWID;
    INSERT OR REPLACE INTO package_index (package, version, repository, build, key, output_id, tree, crc, built_at)
        SELECT package, version, repository, id, key, output_id, '', NULL, started_at
        FROM builds WHERE state = 'success' AND output_id IS NOT NULL ORDER BY started_at;
    -- the last number of a kind ('runs', 'events') that was used when a lost database was replaced by this one
    CREATE TABLE numbers (
        kind TEXT PRIMARY KEY,
        last INTEGER NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE maps (
        repository TEXT NOT NULL,
        revision TEXT NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (repository, revision)
    ) WITHOUT ROWID;
    """,
)
