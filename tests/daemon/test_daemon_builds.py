"""What a run does with its packages: order, prefix, failures, skips."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, RecipeRepository, RpcError, named

from buildd.model import Resources

STAGE = 'mkdir -p "$DESTDIR$PREFIX/share" && echo {0} > "$DESTDIR$PREFIX/share/{0}"'


def test_a_dependency_is_built_first_and_its_output_is_at_the_prefix(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("base", phases={"stage": STAGE.format("base")})
    repository.package("middle", depends=["base"], phases={"stage": STAGE.format("middle")})
    listing = 'cat "$PREFIX/share/base" "$PREFIX/share/middle"'
    repository.package("top", depends=["middle"], phases={"build": listing}).commit()

    view = daemon.build(repository)

    assert view.state == "completed"
    assert [p.name for p in view.packages] == ["base", "middle", "top"]
    lines = daemon.log_of(view, "top").splitlines()
    assert lines[lines.index("==> build") + 1 :][:2] == ["base", "middle"]  # the whole closure, not only the nearest
    records = [daemon.record(p.build_id) for p in view.packages]
    for earlier, later in itertools.pairwise(records):
        assert earlier.completed_at is not None
        assert earlier.completed_at <= later.started_at


def test_phases_run_in_their_order_and_only_those_with_text(daemon: Daemon, repository: RecipeRepository) -> None:
    order = ["fetch", "checksum", "extract", "patch", "configure", "build", "check", "stage", "package"]
    repository.package("all", phases={phase: f"echo this is {phase}" for phase in reversed(order)})
    repository.package("few", phases={"check": "true", "build": "true"}).commit()

    view = daemon.build(repository)

    assert view.state == "completed"
    record = daemon.record(named(view, "all").build_id)
    assert [phase.name for phase in record.phases] == order
    assert all(phase.exit_status == 0 and phase.duration_s is not None for phase in record.phases)
    said = [line for line in daemon.log_of(view, "all").splitlines() if line.startswith("this is")]
    assert said == [f"this is {phase}" for phase in order]
    few = daemon.record(named(view, "few").build_id)
    assert [phase.name for phase in few.phases] == ["build", "check"]


def test_a_second_run_skips_everything_and_says_so_in_the_log(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("lib", version="2.1", phases={"stage": STAGE.format("lib")})
    repository.package("app", version="9.0.0", depends=["lib"], phases={"stage": STAGE.format("app")}).commit()
    assert daemon.build(repository).stats.success == 2

    again = daemon.build(repository)

    assert again.state == "completed"
    assert (again.stats.skipped, again.stats.total) == (2, 2)
    assert [line["run"] for line in daemon.log_lines("app@9.0.0 (CRC match, skipped)")] == [again.id]
    assert [line["run"] for line in daemon.log_lines("lib@2.1 (CRC match, skipped)")] == [again.id]
    assert named(again, "app").artifact is not None


def test_a_change_builds_the_package_and_what_its_output_changes(daemon: Daemon, repository: RecipeRepository) -> None:
    copy = 'mkdir -p "$DESTDIR$PREFIX" && cp README "$DESTDIR$PREFIX/{0}"'
    repository.package("lib", phases={"stage": copy.format("lib")})
    repository.package("other", phases={"stage": copy.format("other")})
    repository.package("app", depends=["lib"], phases={"stage": 'cp "$PREFIX/lib" "$DESTDIR/app"'}).commit()
    assert daemon.build(repository).stats.success == 3

    repository.write("lib/README", "changed\n").commit()
    states = {p.name: p.state for p in daemon.build(repository).packages}
    assert states == {"lib": "success", "app": "success", "other": "skipped"}

    repository.write("lib/NOTES", "not part of the output\n").commit()
    states = {p.name: p.state for p in daemon.build(repository).packages}
    assert states == {"lib": "success", "app": "skipped", "other": "skipped"}  # early cutoff

    forced = daemon.build(repository, force=True)
    assert forced.stats.success == 3


def test_a_failure_blocks_what_depends_on_it_and_nothing_else(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("bad", phases={"build": "echo oh no; exit 7"})
    repository.package("needs-bad", depends=["bad"])
    repository.package("needs-that", depends=["needs-bad"])
    repository.package("good", phases={"stage": STAGE.format("good")}).commit()

    number = daemon.start(repository)
    view = daemon.wait(number)

    assert view.state == "failed"
    assert {p.name: p.state for p in view.packages} == {
        "bad": "failed",
        "needs-bad": "blocked",
        "needs-that": "blocked",
        "good": "success",
    }
    record = daemon.record(named(view, "bad").build_id)
    assert (record.reason, record.exit_status) == ("phase_failed", 7)
    assert record.artifact is None
    assert "bad" in str(named(view, "needs-that").message)
    log = daemon.log_of(view, "bad").splitlines()
    assert "oh no" in log
    assert "phase build failed with exit status 7" in log[-1]

    shown = daemon.buildctl("wait", number)
    assert shown.returncode == 1
    assert "oh no" in shown.stdout + shown.stderr  # the end of the log, where the reason is
    again = daemon.build(repository)
    assert named(again, "bad").state == "failed"  # a failure is never a result to skip by


def test_fail_fast_cancels_the_rest(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("bad", phases={"build": "exit 1"})
    repository.packages([f"slow{i}" for i in range(6)], phases={"build": "sleep 60"}).commit()

    view = daemon.build(repository, keep_going=False)

    assert view.state == "failed"
    assert view.stats.failed == 1
    assert view.stats.cancelled == 6
    assert "fail-fast" in str(named(view, "slow5").message)


def test_one_package_is_cancelled_and_the_others_go_on(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("stuck", phases={"build": "echo here; sleep 600"})
    repository.package("after", depends=["stuck"])
    repository.package("free", phases={"build": "true"}).commit()
    number = daemon.start(repository)
    daemon.until_running(number, 1, saying="here")

    done = daemon.buildctl("cancel", number, "stuck")

    assert done.returncode == 0
    view = daemon.wait(number)
    assert {p.name: p.state for p in view.packages} == {"stuck": "cancelled", "after": "blocked", "free": "success"}
    assert daemon.buildctl("cancel", number, "stuck").returncode == 4
    assert daemon.buildctl("cancel", "99999").returncode == 3


def test_a_package_without_its_tools_is_ignored_and_so_are_its_dependents(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("exotic", tools=["sh", "no-such-compiler"])
    repository.package("off", ignore="not on this machine")
    repository.package("user", depends=["exotic"])
    repository.package("plain", tools=["sh"]).commit()

    view = daemon.build(repository)

    assert {p.name: p.state for p in view.packages} == {
        "exotic": "ignored",
        "off": "ignored",
        "user": "ignored",
        "plain": "success",
    }
    assert "exotic" in str(named(view, "user").message)
    assert "no-such-compiler" in str(named(view, "exotic").message)
    assert named(view, "off").message == "not on this machine"
    assert view.state == "completed"


def test_a_package_that_is_not_default_is_built_when_it_is_named_or_needed(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("extra", default=False)
    repository.package("needed", default=False)
    repository.package("usual", depends=["needed"]).commit()

    assert {p.name for p in daemon.build(repository).packages} == {"usual", "needed"}
    assert [p.name for p in daemon.build(f"{repository}//extra").packages] == ["extra"]


def test_two_dependencies_with_one_path_fail_the_build_and_both_are_named(
    boot: Callable[..., Daemon], backend: str, repository: RecipeRepository
) -> None:
    daemon = boot(backend=backend)
    stage = 'mkdir -p "$DESTDIR$PREFIX/bin" && echo {0} > "$DESTDIR$PREFIX/bin/tool"'
    repository.package("alpha", phases={"stage": stage.format("alpha")})
    repository.package("beta", phases={"stage": stage.format("beta")})
    repository.package("both", depends=["alpha", "beta"], phases={"build": "true"}).commit()

    view = daemon.build(repository)

    assert view.state == "failed"
    message = str(named(view, "both").message)
    assert "alpha" in message
    assert "beta" in message
    assert "bin/tool" in message
    assert message in daemon.log_of(view, "both")


def test_two_runs_of_different_repositories_share_the_workers(daemon: Daemon, tmp_path: Path) -> None:
    numbers = []
    for name in ("one", "two"):
        repository = RecipeRepository(tmp_path / name)
        repository.packages([f"{name}{i}" for i in range(8)], phases={"build": "sleep 0.05"}).commit()
        numbers.append(daemon.start(repository))

    assert [daemon.wait(number).stats.success for number in numbers] == [8, 8]
    status = daemon.status()
    assert status["workers"] == {"busy": 0, "total": 4}
    assert status["builds"]["running"] == status["builds"]["queued"] == 0


def test_start_wait_json_prints_the_run_as_documented(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("thing", version="1.2", phases={"build": "echo hello"}).commit()

    done = daemon.buildctl("start", repository, "--wait", "--json")

    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert {"id", "number", "state", "targets", "requested_by", "created_at", "started_at", "completed_at"} < run.keys()
    assert set(run["stats"]) == {
        *("total", "success", "failed", "skipped", "blocked", "ignored", "cancelled", "queued", "running")
    }
    (package,) = run["packages"]
    expected = {"name", "version", "state", "reason", "phase", "duration_s", "build_id", "artifact", "log_bytes"}
    assert expected <= package.keys()
    shown = json.loads(daemon.buildctl("show", package["build_id"], "--json").stdout)
    assert {"id", "run", "package", "version", "state", "reason", "exit_status", "phases", "resources", "key"} < set(
        shown
    )
    assert shown["log_bytes"] == package["log_bytes"] == len(daemon.build_log(shown["id"]).encode())
    assert set(shown["resources"]) == set(Resources.__struct_fields__)


def test_a_log_is_complete_followed_live_and_readable_from_any_offset(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    text = "for i in $(seq 2000); do echo line $i of a log; done; " + daemon.at_gate("log")
    repository.package("loud", phases={"build": text + "; echo the end"}).commit()
    number = daemon.start(repository)
    (package,) = daemon.until_running(number, 1, saying="line 2000 of a log")

    before = daemon.call("build.log", {"build": package.build_id, "offset": 0})
    assert before["finished"] is False
    tail = daemon.call("build.log", {"build": package.build_id, "offset": -20})
    assert tail["text"].endswith("line 2000 of a log\n")
    daemon.open_gate("log")
    more = daemon.call("build.log", {"build": package.build_id, "offset": before["next_offset"], "timeout": 20})
    assert "the end" in more["text"]

    daemon.wait(number)
    lines = daemon.build_log(package.build_id).splitlines()
    assert [line for line in lines if line.startswith("line ")] == [f"line {i} of a log" for i in range(1, 2001)]
    printed = daemon.buildctl("logs", package.build_id)
    assert printed.stdout.splitlines() == lines


def test_output_with_broken_encoding_and_control_characters_harms_nobody(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("odd", phases={"build": r"printf 'a\377b\033[2Jc\000d\n'; exit 3"}).commit()
    view = daemon.build(repository)
    assert "a\ufffdb" in daemon.log_of(view, "odd")
    done = daemon.buildctl("start", repository, "--wait", "--force")
    assert done.returncode == 1
    assert "\x1b[2J" not in done.stdout + done.stderr


def test_unknown_ids_are_not_found_and_ambiguous_ones_are_refused(daemon: Daemon) -> None:
    for method, params in (
        ("run.status", {"run": "123456"}),
        ("run.status", {"run": "no such run"}),
        ("build.show", {"build": "ffffffff"}),
        ("build.log", {"build": "'; drop table builds; --"}),
        ("object.show", {"id": "zzz"}),
        ("artifact.show", {"artifact": "nothing@1"}),
    ):
        with pytest.raises(RpcError) as caught:
            daemon.call(method, params)
        assert caught.value.code == 3, method
        assert caught.value.hint
