"""`why` names the very thing that a build is, or was, made for."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import Daemon, GitServer, RecipeRepository, RpcError, named
from harness.repository import git
from harness.web import serving

from buildd.protocol import Cause, PackageVerdict, WhyResult

PERSONALITY = Path("/usr/bin/linux32")
STAGE = 'mkdir -p "$DESTDIR$PREFIX" && cp {0} "$DESTDIR$PREFIX/{1}"'


def ask(daemon: Daemon, package: object, **params: Any) -> WhyResult:
    return msgspec.convert(daemon.call("package.why", {"package": str(package), **params}), WhyResult)


def built(daemon: Daemon, package: object, **params: Any) -> tuple[Cause, ...]:
    """The causes for which a package would be built."""
    verdict = ask(daemon, package, **params).verdict
    assert verdict.state == "build", verdict
    assert verdict.causes
    return verdict.causes


def only(daemon: Daemon, package: object, **params: Any) -> Cause:
    causes = built(daemon, package, **params)
    assert len(causes) == 1, causes
    return causes[0]


@pytest.fixture
def daemon(boot: Callable[..., Daemon]) -> Daemon:
    """One for each test: what another test has built would be an answer."""
    return boot()


@pytest.fixture
def tool(repository: RecipeRepository) -> RecipeRepository:
    """A repository with a package `tool` of three files; its recipe is not among them."""
    files = {"main.c": "int main;\n", "src/run.sh": "echo\n", "doc/old": "manual\n"}
    repository.package("tool", version="1.0", files=files, phases={"build": "true"})
    repository.commit()
    return repository


@pytest.fixture
def once(daemon: Daemon, tool: RecipeRepository) -> RecipeRepository:
    """The same, built."""
    assert daemon.build(tool).stats.success == 1
    return tool


def blob(repository: RecipeRepository, path: str, revision: str = "HEAD") -> str:
    return git("rev-parse", f"{revision}:{path}", cwd=repository.path)


# --- the causes -------------------------------------------------------------------------------------------


def test_what_was_never_built_says_so(daemon: Daemon, tool: RecipeRepository) -> None:
    assert only(daemon, f"{tool}//tool").kind == "never_built"
    with pytest.raises(RpcError) as caught:
        daemon.call("package.why", {"package": "nobody-built-this"})
    assert caught.value.code == 3
    assert caught.value.hint


def test_what_is_up_to_date_names_the_build_that_answers_it(daemon: Daemon, once: RecipeRepository) -> None:
    (build,) = daemon.call("build.list", {"package": "tool", "limit": 1})["builds"]
    for package in (f"{once}//tool", "tool", "tool@1.0"):
        verdict = ask(daemon, package).verdict
        assert (verdict.state, verdict.build, verdict.causes) == ("up_to_date", build["id"], ())
        assert (verdict.key, verdict.output_id) == (build["key"], build["output_id"])
        assert verdict.built_at == build["started_at"]


def test_a_changed_file_is_named_with_its_old_and_new_blob(daemon: Daemon, once: RecipeRepository) -> None:
    old = blob(once, "tool/main.c")
    once.write("tool/main.c", "int main();\n").commit()
    cause = only(daemon, "tool")
    assert cause.kind == "source"
    (file,) = cause.files
    assert (file.path, file.change, file.old_blob, file.new_blob) == (
        "main.c",
        "modified",
        old,
        blob(once, "tool/main.c"),
    )


def test_a_changed_mode_is_named(daemon: Daemon, once: RecipeRepository) -> None:
    (once.path / "tool/src/run.sh").chmod(0o755)
    once.commit()
    (file,) = only(daemon, "tool").files
    assert (file.path, file.change, file.old_mode, file.new_mode) == ("src/run.sh", "mode", "100644", "100755")


def test_a_renamed_file_is_named_with_both_names(daemon: Daemon, once: RecipeRepository) -> None:
    (once.path / "tool/src/run.sh").rename(once.path / "tool/start.sh")
    once.commit()
    (file,) = only(daemon, "tool").files
    assert (file.path, file.old_path, file.change) == ("start.sh", "src/run.sh", "renamed")


def test_a_removed_file_is_named(daemon: Daemon, once: RecipeRepository) -> None:
    (once.path / "tool/doc/old").unlink()
    once.commit()
    (file,) = only(daemon, "tool").files
    assert (file.path, file.change, file.new_blob) == ("doc/old", "removed", None)


def test_a_changed_command_is_named_by_its_phase(daemon: Daemon, once: RecipeRepository) -> None:
    once.package("tool", version="1.0", phases={"build": "true -v", "check": "make check"}).commit()
    build, check = built(daemon, "tool")
    assert (build.kind, build.what, build.old, build.new) == ("recipe", "build", "true", "true -v")
    assert (check.kind, check.what, check.old, check.new) == ("recipe", "check", None, "make check")


def test_a_new_version_is_named(daemon: Daemon, once: RecipeRepository) -> None:
    once.package("tool", version="1.1", phases={"build": "true"}).commit()
    result = ask(daemon, "tool@1.0")
    (cause,) = result.verdict.causes
    assert (cause.kind, cause.old, cause.new) == ("version", "1.0", "1.1")
    assert "has tool 1.1 now, not 1.0" in result.notes[-1]


def test_a_changed_hash_of_a_fetched_file_is_named(daemon: Daemon, repository: RecipeRepository) -> None:
    old, new = b"old\n", b"new\n"
    with serving(old) as server:
        source = {"url": server.url("data.txt", 200), "sha256": hashlib.sha256(old).hexdigest(), "extract": False}
        repository.package("tool", version="1", source=[source]).commit()
        view = daemon.build(repository)
    assert view.stats.success == 1, view
    source["sha256"] = hashlib.sha256(new).hexdigest()
    repository.package("tool", version="1", source=[source]).commit()
    cause = only(daemon, "tool")
    assert (cause.kind, cause.what) == ("fetched", "data.txt")
    assert (cause.old, cause.new) == (hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest())


def test_the_part_of_the_environment_is_named(daemon: Daemon, tool: RecipeRepository) -> None:
    assert daemon.build(tool).stats.success == 1
    daemon.settings["sandbox.path"] = json.dumps(["/opt/tools/bin"])
    daemon.restart()
    cause = only(daemon, "tool")
    assert (cause.kind, cause.what, cause.old, cause.new) == ("environment", "path", "", "/opt/tools/bin")


@pytest.mark.skipif(not PERSONALITY.exists(), reason="linux32 of util-linux is not installed")
def test_another_architecture_is_named(daemon: Daemon, once: RecipeRepository) -> None:
    before = os.uname().machine
    daemon.terminate()
    daemon.boot(str(PERSONALITY))  # the same machine, as one that calls itself i686
    cause = only(daemon, "tool")
    assert (cause.kind, cause.old) == ("architecture", before)
    assert cause.new != before


def test_a_dependency_whose_output_changed_is_named_with_what_changed_it(
    daemon: Daemon, repository: RecipeRepository
) -> None:
    repository.package("base", files={"data": "1\n"}, phases={"stage": STAGE.format("data", "base")})
    repository.package("user", depends=["base"], phases={"build": "true"}).commit()
    assert daemon.build(repository).stats.success == 2
    old = named(daemon.run(int(daemon.call("run.status", {"run": "latest"})["number"])), "base")
    repository.write("base/data", "2\n").commit()

    before = ask(daemon, "user")  # nothing is built yet
    (cause,) = before.verdict.causes
    assert (cause.kind, cause.what, cause.new) == ("dependency", "base", None)
    assert before.verdict.key is None
    assert str(old.artifact).endswith(str(cause.old))
    (needed,) = before.needed
    assert (needed.package, needed.state) == ("base", "build")
    assert [file.path for file in needed.causes[0].files] == ["data"]

    daemon.build(f"{repository}//base")
    after = ask(daemon, "user")  # only the dependency is
    (cause,) = after.verdict.causes
    assert (cause.kind, cause.what) == ("dependency", "base")
    assert cause.old is not None
    assert cause.new not in (None, cause.old)
    (behind,) = after.needed
    assert (behind.package, behind.state) == ("base", "up_to_date")
    assert [(file.path, file.change) for file in behind.causes[0].files] == [("data", "modified")]

    view = daemon.build(repository)
    assert named(view, "user").state == "success"
    past = ask(daemon, "user", run=str(view.number))
    assert [(c.kind, c.what) for c in past.verdict.causes] == [("dependency", "base")]
    assert [v.package for v in past.needed] == ["base"]


def test_the_chain_of_what_is_to_be_built_leads_to_the_root(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("one", files={"data": "1\n"}, phases={"stage": STAGE.format("data", "one")})
    repository.package("two", depends=["one"], phases={"stage": STAGE.format("README", "two")})
    repository.package("three", depends=["two"]).commit()
    assert daemon.build(repository).stats.success == 3
    repository.write("one/data", "2\n").commit()

    result = ask(daemon, "three")

    assert [(v.package, v.state) for v in result.needed] == [("one", "build"), ("two", "build")]
    done = daemon.buildctl("why", "three")
    assert done.returncode == 0
    paragraphs = [text.splitlines() for text in done.stdout.split("\n\n")]
    assert [lines[0].split()[0] for lines in paragraphs] == ["three", "two", "one"]
    assert "would be built if the output of two or one is not what it was for build" in paragraphs[0][0]
    assert "would be built if the output of one is not what it was for build" in paragraphs[1][0]
    assert paragraphs[2][1].split()[:2] == ["modified", "data"]

    view = daemon.build(repository)
    assert view.stats.success == 3
    past = ask(daemon, "three", run="latest")
    assert [(c.kind, c.what) for c in past.verdict.causes] == [("dependency", "one")]
    assert "indirect" in past.verdict.causes[0].message


def test_an_output_that_stays_the_same_builds_nothing_above_it(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("base", files={"data": "1\n"}, phases={"stage": STAGE.format("data", "base")})
    repository.package("user", depends=["base"]).commit()
    assert daemon.build(repository).stats.success == 2
    repository.write("base/comment", "not part of the output\n").commit()
    assert ask(daemon, "user").verdict.state == "build"  # nobody can know yet

    view = daemon.build(repository)

    assert {p.name: p.state for p in view.packages} == {"base": "success", "user": "skipped"}
    assert ask(daemon, "user").verdict.state == "up_to_date"
    assert ask(daemon, "user", run="latest").verdict.state == "up_to_date"


# --- where and when ---------------------------------------------------------------------------------------


def test_uncommitted_changes_count_with_worktree_only(daemon: Daemon, once: RecipeRepository) -> None:
    once.write("tool/main.c", "int changed;\n")
    once.write("tool/untracked", "new\n")
    assert ask(daemon, f"{once}//tool").verdict.state == "up_to_date"
    cause = only(daemon, f"{once}//tool", worktree=True)
    assert [(file.path, file.change) for file in cause.files] == [("main.c", "modified"), ("untracked", "added")]
    done = daemon.buildctl("why", ".//tool", "--worktree", cwd=once.path)
    assert done.returncode == 0
    assert "  modified  main.c" in done.stdout

    daemon.build(once, worktree=True)
    asked = ask(daemon, "tool")  # as it was built last
    assert asked.verdict.state == "up_to_date"
    assert "work tree" in asked.notes[0]


def test_a_name_means_the_revision_that_was_built_last(daemon: Daemon, tool: RecipeRepository) -> None:
    git("branch", "stable", cwd=tool.path)
    tool.write("tool/main.c", "int later;\n").commit()
    daemon.build(f"{tool}@stable")
    result = ask(daemon, "tool")
    assert result.verdict.state == "up_to_date"
    assert "@stable" in result.notes[0]
    assert [file.path for file in only(daemon, f"{tool}//tool").files] == ["main.c"]


def test_of_several_repositories_the_last_one_counts_and_is_named(
    daemon: Daemon, once: RecipeRepository, tmp_path: Path
) -> None:
    other = RecipeRepository(tmp_path / "other").package("tool", version="1.0", files={"extra": "1"})
    other.commit()
    daemon.build(other)
    result = ask(daemon, "tool")
    assert result.verdict.repository == str(other)
    assert "2 repositories" in result.notes[0]
    assert str(other) in result.notes[0]
    assert ask(daemon, f"{once}//tool").verdict.state == "up_to_date"


def test_a_clone_is_asked_about_by_its_name(
    daemon: Daemon, git_server: GitServer, tmp_path: Path, tool: RecipeRepository
) -> None:
    url = git_server.url(tool)
    assert daemon.build(url).stats.total == 1
    old = blob(tool, "tool/main.c")
    tool.write("tool/main.c", "int later;\n").commit()
    assert ask(daemon, f"{url}//tool").verdict.state == "up_to_date"  # the clone is as it was
    cause = only(daemon, f"{url}//tool", refresh=True)
    assert [file.old_blob for file in cause.files] == [old]


def test_each_strategy_has_its_own_answer(daemon: Daemon, once: RecipeRepository) -> None:
    assert only(daemon, "tool", strategy="none").kind == "strategy"
    cause = only(daemon, "tool", strategy="conservative")
    assert (cause.kind, cause.what) == ("environment", "installed packages")


def test_a_result_whose_artifact_is_gone_says_so(daemon: Daemon, tool: RecipeRepository) -> None:
    view = daemon.build(tool)
    artifact = Path(str(named(view, "tool").artifact))
    os.rename(artifact, tool.path.parent / "taken-away")
    cause = only(daemon, "tool")
    assert (cause.kind, cause.old) == ("artifact", artifact.name)


def test_a_failed_build_is_no_success_to_compare_with(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("broken", phases={"build": "exit 3"}).commit()
    build = named(daemon.build(repository), "broken").build_id
    cause = only(daemon, "broken")
    assert (cause.kind, cause.what) == ("never_built", build)
    assert "phase_failed" in cause.message


def test_an_ignored_package_and_what_needs_it_say_why(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("exotic", tools=["no-such-compiler"])
    repository.package("user", depends=["exotic"]).commit()
    verdict = ask(daemon, f"{repository}//exotic").verdict
    assert verdict.state == "ignored"
    assert "no-such-compiler" in verdict.causes[0].message
    assert ask(daemon, f"{repository}//user").verdict.state == "ignored"


# --- what a run did ---------------------------------------------------------------------------------------


def test_a_run_is_explained_after_the_fact(daemon: Daemon, once: RecipeRepository) -> None:
    skipped = daemon.build(once).number
    forced = daemon.build(once, force=True).number
    once.write("tool/main.c", "int later;\n").commit()
    changed = daemon.build(once).number
    once.write("tool/main.c", "int even_later;\n").commit()

    assert ask(daemon, "tool", run=str(skipped)).verdict.state == "up_to_date"
    assert [c.kind for c in ask(daemon, "tool", run=str(forced)).verdict.causes] == ["forced"]
    past = ask(daemon, "tool", run=str(changed))
    assert [file.path for file in past.verdict.causes[0].files] == ["main.c"]
    assert past.verdict.causes[0].files[0].new_blob == blob(once, "tool/main.c", "HEAD~1")
    assert f"run {changed} built it" in past.notes[0]
    text = daemon.buildctl("why", "tool", "--run", changed).stdout
    assert text.startswith("tool 1.0 was built: its source changed since build ")
    for package, run in (("other", changed), ("tool@2", changed), ("tool", 99999)):
        assert daemon.buildctl("why", package, "--run", run).returncode == 3


def test_what_a_run_did_not_build_says_what_became_of_it(daemon: Daemon, repository: RecipeRepository) -> None:
    repository.package("bad", phases={"build": "exit 1"})
    repository.package("after", depends=["bad"]).commit()
    number = daemon.build(repository).number
    assert [c.kind for c in ask(daemon, "bad", run=str(number)).verdict.causes] == ["never_built"]
    with pytest.raises(RpcError) as caught:
        ask(daemon, "after", run=str(number))
    assert caught.value.code == 3
    assert "blocked" in str(caught.value)


# --- plans and the database -------------------------------------------------------------------------------


def test_a_plan_tells_of_each_package_whether_and_why(daemon: Daemon, once: RecipeRepository) -> None:
    once.package("new", depends=["tool"]).commit()
    result = daemon.call("run.plan", {"targets": [str(once)], "why": True})
    verdicts = {p["name"]: msgspec.convert(p["verdict"], PackageVerdict) for p in result["packages"]}
    assert (verdicts["tool"].state, verdicts["new"].state) == ("up_to_date", "build")
    assert [c.kind for c in verdicts["new"].causes] == ["never_built"]
    text = daemon.buildctl("plan", once, "--why").stdout
    assert "  tool 1.0  (up to date)\n" in text
    assert "(build: it was never built)" in text
    assert all(p["verdict"] is None for p in daemon.call("run.plan", {"targets": [str(once)]})["packages"])


def test_the_database_answers_about_what_was_built(daemon: Daemon, tool: RecipeRepository) -> None:
    tool.package("bad", phases={"build": "exit 1"}).commit()
    daemon.build(tool)
    daemon.build(tool)

    (entry,) = json.loads(daemon.buildctl("db", "latest", "--json").stdout)["entries"]
    assert (entry["package"], entry["version"], entry["repository"]) == ("tool", "1.0", str(tool))
    assert entry["tree"] == git("rev-parse", "HEAD:tool", cwd=tool.path)
    (print_,) = json.loads(daemon.buildctl("db", "fingerprint", "tool", "--json").stdout)["fingerprints"]
    assert (print_["tree"], print_["files"]) == (entry["tree"], 4)
    assert print_["crc"] == entry["crc"] == crc_of(tool, "tool")
    failures = json.loads(daemon.buildctl("db", "failures", "--json").stdout)["builds"]
    assert [(b["package"], b["reason"]) for b in failures] == [("bad", "phase_failed")] * 2
    stats = json.loads(daemon.buildctl("db", "stats", "--json").stdout)
    assert (stats["hits"], stats["misses"], stats["hit_rate"]) == (1, 3, 0.25)
    assert (stats["runs"], stats["builds"]) == ({"failed": 2}, {"failed": 2, "success": 1})
    check = daemon.buildctl("db", "verify")
    assert (check.returncode, check.stdout) == (0, "✓ the database is sound: 3 builds on record\n")
    assert daemon.buildctl("db", "fingerprint", "bad").returncode == 3


def crc_of(repository: RecipeRepository, directory: str) -> int:
    """The documented CRC-32 of a directory, from what git says of it."""
    listing = git("ls-tree", "-r", f"HEAD:{directory}", cwd=repository.path)
    crc = 0
    for line in listing.splitlines():
        mode, _, rest = line.split(" ", 2)
        id, path = rest.split("\t")
        crc = zlib.crc32(f"{mode} {id} {path}\0".encode(), crc)
    return crc


def test_after_a_reset_nothing_is_known_as_built(daemon: Daemon, tool: RecipeRepository) -> None:
    tool.package("slow", phases={"build": f"echo here; {daemon.at_gate()}"}).commit()
    daemon.build(f"{tool}//tool")
    assert ask(daemon, "tool").verdict.state == "up_to_date"
    number = daemon.start(f"{tool}//slow")
    daemon.until_running(number, 1, saying="here")
    refused = daemon.buildctl("db", "reset-db", "--yes")
    assert refused.returncode == 4
    assert "active" in refused.stderr
    check = json.loads(daemon.buildctl("db", "verify", "--json").stdout)
    assert (check["ok"], check["stale_builds"]) == (True, 0)
    daemon.open_gate()
    daemon.wait(number)

    daemon.expect(r"is being made \(asked for\)")
    done = daemon.buildctl("db", "reset-db", "--yes")

    assert done.returncode == 0
    assert "artifacts" in done.stdout
    assert daemon.call("run.list", {})["runs"] == []
    assert daemon.buildctl("why", "tool").returncode == 3
    assert only(daemon, f"{tool}//tool").kind == "never_built"
    again = daemon.build(f"{tool}//tool")
    assert again.stats.success == 1
    assert ask(daemon, "tool").verdict.state == "up_to_date"
