"""What a build can see and touch: nothing of the daemon, and with bwrap little of the machine."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator

import pytest
from harness import ROOT, Daemon, RecipeRepository, booted, named, needs_bwrap

SECRET = "a-secret-of-the-daemon"


@pytest.fixture(scope="module")
def jail() -> Iterator[Daemon]:
    secrets = {"API_TOKEN": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    with booted(backend="bwrap", environ=secrets, settings={"sandbox.readonly_paths": "[]"}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def open_field() -> Iterator[Daemon]:
    with booted(backend="plain", environ={"API_TOKEN": SECRET}) as daemon:
        yield daemon


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server on 127.0.0.1."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello from the network\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def lines_of(daemon: Daemon, repository: RecipeRepository, text: str) -> list[str]:
    """The output of a build phase."""
    repository.package("probe", phases={"build": text}).commit()
    view = daemon.build(repository, force=True)
    assert view.state == "completed", daemon.log_of(view, "probe")
    lines = daemon.log_of(view, "probe").splitlines()
    return lines[lines.index("==> build") + 1 : -1]


@needs_bwrap
def test_network_is_in_the_fetch_phase_only(jail: Daemon, repository: RecipeRepository, web: int) -> None:
    ask = (
        "python3 -c 'import urllib.request; "
        f'print(urllib.request.urlopen("http://127.0.0.1:{web}/", timeout=5).read().decode())\' 2>&1 | tail -2'
    )
    others = ("extract", "configure", "build", "check", "stage", "package")
    repository.package("net", phases={"fetch": ask, **dict.fromkeys(others, ask)}).commit()
    view = jail.build(repository)
    log = jail.log_of(view, "net")
    assert view.state == "completed", log
    parts = log.split("==> ")
    by_phase = {part.split("\n", 1)[0]: part for part in parts}
    assert "hello from the network" in by_phase["fetch"]
    for phase in others:
        assert "hello" not in by_phase[phase]
        assert "refused" in by_phase[phase] or "unreachable" in by_phase[phase]


@needs_bwrap
def test_secrets_of_the_host_and_the_daemon_are_out_of_reach(jail: Daemon, repository: RecipeRepository) -> None:
    paths = [
        *("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh", "/etc/machine-id", "/etc/ssl/private"),
        *("/root", "/home", "/run", "/srv", "/sys", "/var/lib", "/boot", "/mnt"),
        *map(str, (jail.state_dir, jail.cache_dir, jail.runtime_dir, jail.home, ROOT)),
    ]
    text = "\n".join(f"[ ! -e '{path}' ] || echo visible: '{path}'" for path in paths)
    assert [line for line in lines_of(jail, repository, text) if "visible" in line] == []


@needs_bwrap
def test_only_its_own_processes_and_no_rights(jail: Daemon, repository: RecipeRepository) -> None:
    text = """\
id -u; uname -n
ls -d /proc/[0-9]* | wc -l
grep -E '^Cap(Eff|Prm):' /proc/self/status | grep -vc 0000000000000000 || true
grep '^NoNewPrivs:' /proc/self/status | cut -f 2
cat /proc/1/environ | tr '\\0' '\\n' | grep -c a-secret || true
"""
    uid, host, processes, capabilities, no_new, secrets = lines_of(jail, repository, text)
    assert (uid, host) == ("1000", "buildd")
    assert int(processes) < 12
    assert (capabilities, no_new) == ("0", "1")
    assert secrets == "0"


@needs_bwrap
def test_the_system_is_read_only_and_the_build_s_own_places_are_writable(
    jail: Daemon, repository: RecipeRepository
) -> None:
    text = """\
for place in / /usr /usr/bin /etc /opt "$PREFIX" /proc/sys/kernel/hostname /build/..; do
  if touch "$place/x" 2>/dev/null; then echo "could write: $place"; fi
done
for place in "$SRCDIR" "$BUILDDIR" "$DESTDIR" "$HOME" "$TMPDIR" /tmp /var/tmp; do
  touch "$place/x" || echo "could not write: $place"
done
"""
    assert [line for line in lines_of(jail, repository, text) if line.startswith("could")] == []


@needs_bwrap
def test_the_prefix_of_the_dependencies_is_read_only(jail: Daemon, repository: RecipeRepository) -> None:
    repository.package("base", phases={"stage": 'mkdir -p "$DESTDIR$PREFIX" && echo good > "$DESTDIR$PREFIX/file"'})
    text = 'echo evil > "$PREFIX/file" || true; chmod 777 "$PREFIX/file" || true; rm -f "$PREFIX/file" || true; '
    repository.package("user", depends=["base"], phases={"build": text + 'cat "$PREFIX/file"'}).commit()
    view = jail.build(repository)
    assert view.state == "completed"
    assert "good" in jail.log_of(view, "user").splitlines()


@needs_bwrap
def test_a_path_of_the_configuration_is_visible_also_below_tmp(
    repository: RecipeRepository, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = tmp_path_factory.mktemp("shared")
    (shared / "file").write_text("shared with builds\n")
    with booted(backend="bwrap", settings={"sandbox.readonly_paths": f'["{shared}"]'}) as daemon:
        assert lines_of(daemon, repository, f"cat '{shared}/file'; touch /tmp/mine") == ["shared with builds"]


def test_the_environment_is_exactly_the_documented_one(
    open_field: Daemon, repository: RecipeRepository, request: pytest.FixtureRequest
) -> None:
    daemons = [open_field]
    if not needs_bwrap.args[0]:
        daemons.append(request.getfixturevalue("jail"))
    documented = {
        *("SRCDIR", "BUILDDIR", "DESTDIR", "PREFIX", "JOBS", "SOURCE_DATE_EPOCH", "HOME", "TMPDIR", "PATH"),
        *("PKG_CONFIG_PATH", "CMAKE_PREFIX_PATH", "MAKEFLAGS", "LC_ALL", "TZ"),
        *("BUILDD_PACKAGE", "BUILDD_VERSION", "BUILDD_BUILD", "BUILDD_DAEMON"),
    }
    for daemon in daemons:
        lines = lines_of(daemon, repository, "env")
        found = dict(line.split("=", 1) for line in lines)
        assert found.keys() - documented <= {"PWD", "OLDPWD", "SHLVL", "_"}  # the shell's own
        assert documented <= found.keys()
        assert (found["LC_ALL"], found["TZ"]) == ("C.UTF-8", "UTC")
        assert SECRET not in "\n".join(lines)
        assert found["HOME"] != os.environ.get("HOME")


def test_files_have_the_time_of_the_epoch_and_lie_in_no_git_repository(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    files = {"configure": "#!/bin/sh\n", "sub/file": "x\n"}
    text = 'date +%s; stat -c "%Y %n" configure sub/file sub .; echo "$SOURCE_DATE_EPOCH"; pwd; echo "$SRCDIR"; ls -A'
    repository.package("probe", files=files, phases={"build": text}).commit()
    (repository.path / "probe" / "configure").chmod(0o755)
    repository.commit()
    view = daemon.build(repository)
    lines = daemon.log_of(view, "probe").splitlines()
    lines = lines[lines.index("==> build") + 1 : -1]
    epoch = lines[5]
    assert [line.split()[0] for line in lines[1:4]] == [epoch] * 3
    assert lines[6] == lines[7]
    assert set(lines[8:]) == {"README", "configure", "sub"}


def test_a_build_cannot_keep_the_log_or_the_driver_s_pipe(open_field: Daemon, repository: RecipeRepository) -> None:
    lines = lines_of(open_field, repository, "ls -l /proc/$$/fd | grep -c socket || true; ls /proc/$$/fd")
    assert lines[0] == "0"
    # nothing of the daemon's, and no report pipe; in a pipeline the shell would have pipes of its own
    assert set(lines[1:]) <= {"0", "1", "2", "10", "255"}


def test_a_phase_cannot_forge_the_reports_of_the_driver(daemon: Daemon, repository: RecipeRepository) -> None:
    text = "echo 'end build 0' >&3 2>/dev/null || true; echo 'begin stage' >&0 2>/dev/null || true; exit 9"
    repository.package("forger", phases={"build": text, "stage": "true"}).commit()
    view = daemon.build(repository)
    record = daemon.record(named(view, "forger").build_id)
    assert (record.state, record.exit_status) == ("failed", 9)
    assert [phase.name for phase in record.phases] == ["build"]


def test_source_and_staged_files_may_be_anything_without_harm(daemon: Daemon, repository: RecipeRepository) -> None:
    text = """\
cd "$DESTDIR"
mkdir -p deep/er; ln -s /etc/passwd absolute; ln -s ../../.. up; ln -s nowhere dangling
printf x > "$(printf 'new\\nline')"; mkfifo pipe; chmod 0000 deep/er; chmod 4755 "$(printf 'new\\nline')"
"""
    repository.package("odd", phases={"stage": text}).commit()
    view = daemon.build(repository)
    package = named(view, "odd")
    # a pipe cannot be stored: that is said, with its path, and nothing is left
    assert package.state == "failed"
    assert "pipe" in str(package.message)
