"""Each verb that asks once: what it sends, what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from ctl_peer import Background, Ctl, Peer, package

from buildd import protocol as p
from buildd.model import BuildRecord, CloneProgress, PhaseRecord
from ctl.verbs import MODULES


@pytest.mark.parametrize("verb", MODULES)
def test_every_verb_explains_itself_with_examples(ctl: Ctl, verb: str) -> None:
    done = ctl(verb, "--help")
    assert done.returncode == 0
    assert f"  buildctl {verb}" in done.stdout.partition("examples:")[2]


def test_the_overview_names_every_verb_and_needs_no_daemon(ctl: Ctl) -> None:
    done = ctl("--help")
    assert done.returncode == 0
    assert all(f"\n  {verb} " in done.stdout for verb in MODULES)
    assert ctl("help", "start").stdout == ctl("start", "--help").stdout


def test_status_reads_well_and_as_json(peer: Peer, ctl: Ctl) -> None:
    progress = CloneProgress(received_objects=5, total_objects=10, indexed_objects=0, received_bytes=2048)
    peer.clones = (p.ActiveClone(url="git://h/x", operation="clone", started_at=1.0, progress=progress, percent=50.0),)
    text = ctl("status").stdout
    assert text.startswith("buildd 9.9 running, pid ")
    assert "up 1h 01m" in text
    assert "2 running, 7 queued; since the start 40 succeeded, 3 failed" in text
    assert "2 of 8 busy" in text
    assert "git://h/x: 50 %, 5 of 10 objects, 2.0 KiB" in text
    assert "no cgroup: memory is watched by sampling" in text
    status = msgspec.json.decode(ctl("status", "--json").stdout, type=p.DaemonStatus)
    assert status.workers == p.Workers(busy=2, total=8)


def test_status_of_a_daemon_of_another_version_is_read_as_far_as_it_goes(peer: Peer, ctl: Ctl) -> None:
    peer.raw_answers["daemon.status"] = b'{"jsonrpc":"2.0","id":1,"result":{"version":"99","runs":[],"clones":[3]}}'
    done = ctl("status")
    assert done.returncode == 0
    assert done.stdout.startswith("buildd 99 ?, pid 0")


def test_steering_verbs_print_what_the_daemon_says(peer: Peer, ctl: Ctl) -> None:
    assert ctl("drain").stdout == "draining\n"
    assert ctl("resume").stdout == "running again\n"
    assert ctl("reload").stdout == "configuration read\n"
    assert ctl("shutdown").stdout == "stops\n"
    assert ctl("shutdown", "--drain").stdout == "drains, then stops\n"


def test_a_daemon_that_stops_before_it_answers_has_done_as_told(peer: Peer, background: Background) -> None:
    peer.silent.add("daemon.shutdown")
    client = background("shutdown")
    peer.wait_for_call("daemon.shutdown")
    peer.stop()
    assert client.communicate(timeout=5)[0] == "stopped\n"
    assert client.returncode == 0


def test_start_sends_every_option_and_says_how_to_follow(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    options = ["--fail-fast", "--force", "--fetch-only", "--no-refresh", "--priority", "-3"]
    options += ["--force-package", "zlib", "--force-package", "tally", "--strategy", "none", "--max-retries", "0"]
    options += ["--worktree"]
    done = ctl("start", "work@main//zlib", "known", *options)
    assert done.returncode == 0
    assert done.stdout == "run 1 accepted (00000001-0000-4000-8000-000000000000)\n"
    assert done.stderr == "follow it: buildctl wait 1   cancel it: buildctl cancel 1\n"
    assert peer.calls("run.start") == [
        p.StartParams(
            targets=(f"{tmp_path}/work@main//zlib", "known"),
            keep_going=False,
            force=True,
            fetch_only=True,
            refresh=False,
            priority=-3,
            force_packages=("zlib", "tally"),
            strategy="none",
            max_retries=0,
            worktree=True,
        )
    ]


def test_start_without_options_takes_the_defaults_of_the_protocol(peer: Peer, ctl: Ctl) -> None:
    done = ctl("start", "known", "--json")
    id = "00000001-0000-4000-8000-000000000000"
    assert json.loads(done.stdout) == {"id": id, "number": 1, "event": 0, "run": None}
    assert done.stderr == ""
    assert ctl("start", "known", "-q").stdout == "2\n"
    assert peer.calls("run.start") == [p.StartParams(targets=("known",))] * 2


def test_cancel_names_a_run_or_a_package(peer: Peer, ctl: Ctl) -> None:
    peer.add_run(7)
    assert ctl("cancel", "7").stdout == "run 7 cancelled\n"
    assert ctl("cancel", "latest", "zlib").stdout == "zlib of run 7 cancelled\n"
    assert ctl("cancel", "8").returncode == 3
    peer.set_run(peer._run("7").id, state="completed")
    assert ctl("cancel", "7").returncode == 4


PLAN = p.PlanResult(
    packages=tuple(
        p.PlannedPackage(
            name=name, version="1", repository="r", path=name, tree="t", depends=depends, wave=wave, ignore=ignore
        )
        for name, depends, wave, ignore in (
            ("a", (), 1, ""),
            ('q"\x07', (), 1, "no cmake"),
            ("b", ("a", 'q"\x07'), 2, ""),
        )
    ),
    waves=2,
)


def test_a_plan_prints_waves(peer: Peer, ctl: Ctl) -> None:
    peer.plan = PLAN
    done = ctl("plan", "known")
    assert done.stdout.splitlines() == [
        "wave 1",
        "  a 1",
        '  q"\\x07 1  (ignored: no cmake)',
        "wave 2",
        '  b 1  <- a q"\\x07',
    ]
    assert done.stderr == "3 packages in 2 waves\n"
    assert ctl("plan", "known", "--waves").stdout == done.stdout


def test_a_plan_is_written_as_json_and_graphviz(peer: Peer, ctl: Ctl) -> None:
    peer.plan = PLAN
    assert msgspec.json.decode(ctl("plan", "known", "--json", "--no-refresh").stdout, type=p.PlanResult) == PLAN
    assert peer.calls("run.plan")[-1] == p.PlanParams(targets=("known",), refresh=False)
    lines = ctl("plan", "known", "--dot").stdout.splitlines()
    assert lines[0] == "digraph plan {"
    assert '  "b" -> "a";' in lines
    assert '  "b" -> "q\\"\\\\x07";' in lines
    assert '  "q\\"\\\\x07" [label="q\\"\\\\x07 1", style=dashed];' in lines
    assert lines[-1] == "}"


def test_list_shows_runs_newest_first_or_the_packages_of_a_target(peer: Peer, ctl: Ctl) -> None:
    peer.add_run(1, packages=(package("a", "success"),))
    peer.add_run(2, packages=(package("a", "failed"), package("b", "blocked")))
    lines = ctl("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["RUN", "2", "1"]
    assert "2 packages = 1 failed + 1 blocked" in lines[1]
    assert [run["number"] for run in json.loads(ctl("list", "--json", "-n", "1").stdout)["runs"]] == [2]
    peer.plan = PLAN
    packages = ctl("list", "known").stdout.splitlines()
    assert packages[1].split() == ["a", "1", "a", "1"]
    assert peer.calls("run.plan")[-1].refresh is False


BUILD = "3f2a91c0-0000-4000-8000-000000000000"


def test_show_prints_a_run_or_a_build_itself(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(5, state="failed", packages=(package("a", "failed"),), error="bad \x1b recipe", hint="mend it")
    phases = (PhaseRecord(name="build", started_at=1.7e9, duration_s=3.0, exit_status=-9),)
    peer.add_build(BUILD, run, "a", state="failed", reason="oom", message="killed", phases=phases)
    text = ctl("show", "5").stdout
    assert text.startswith("run 5 failed")
    assert "error      bad \\x1b recipe" in text
    assert "✗ a" in text
    assert msgspec.json.decode(ctl("show", "latest", "--json").stdout, type=p.RunView) == peer.runs[run]
    text = ctl("show", "3f2a").stdout
    assert "build of a 1.0 failed" in text
    assert "reason       oom" in text
    assert text.splitlines()[-1].split() == ["build", *text.splitlines()[-1].split()[1:3], "3.0s", "-9"]
    record = msgspec.json.decode(ctl("show", "3f2a", "--json").stdout, type=BuildRecord)
    assert record == peer.builds[BUILD]
    assert ctl("show", "nothing").returncode == 3


def test_history_lists_builds_of_a_package(peer: Peer, ctl: Ctl) -> None:
    run = peer.add_run(1)
    peer.add_build(BUILD, run, "a")
    peer.add_build("4" + BUILD[1:], run, "b", state="failed", reason="timeout")
    lines = ctl("history").stdout.splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:4] == ["3f2a91c0", "a", "1.0", "success"]
    assert "12s" in lines[1]
    found = json.loads(ctl("history", "b", "--limit", "7", "--json").stdout)["builds"]
    assert [build["package"] for build in found] == ["b"]
    assert peer.calls("build.list")[-1] == p.BuildListParams(package="b", limit=7)


def test_repositories_are_listed_shown_refreshed_and_deleted(peer: Peer, ctl: Ctl) -> None:
    done = ctl("repo", "clone", "git://h/things", "--again")
    assert peer.calls("repo.clone") == [p.CloneParams(repo="git://h/things", again=True)]
    assert done.stdout == "accepted: cloning in the background (/clones/x)\n"
    assert ctl("repo", "list").stdout.splitlines()[1].split()[:2] == ["things", "cloning"]
    assert "url          git://h/things" in ctl("repo", "status", "things").stdout
    assert json.loads(ctl("repo", "refresh", "things", "--json").stdout)["name"] == "things"
    assert ctl("repo", "refresh", "things").stdout.endswith("changed      yes\n")
    assert ctl("repo", "refresh", "things", "--if-changed").stdout.endswith("changed      no\n")
    assert ctl("repo", "branches", "things").stdout == f"* {'a' * 12}  main\n  {'b' * 12}  next\n"
    assert ctl("repo", "cancel", "things").stdout == "clone of things cancelled\n"
    assert ctl("repo", "delete", "things").stdout == "git://h/things deleted\n"
    assert ctl("repo", "status", "other").returncode == 3


@pytest.mark.parametrize(("status", "code"), [("cloned", 0), ("failed", 1)])
def test_a_clone_that_is_waited_for_shows_progress_and_its_end(
    peer: Peer, background: Background, status: str, code: int
) -> None:
    client = background("repo", "clone", "git://h/things", "--wait")
    peer.wait_for_call("daemon.status")
    peer.end_clone("git://h/things", status, "the host is gone" if code else None)
    data, words = client.communicate(timeout=20)
    assert client.returncode == code
    assert words == "clone 50 %  50 of 100 objects  4.0 KiB\n"
    assert data.startswith(f"things {status}\n")
    assert ("error        the host is gone" in data) == bool(code)


def test_call_sends_any_method_and_prints_the_answer(peer: Peer, ctl: Ctl) -> None:
    assert json.loads(ctl("call", "daemon.drain").stdout) == {"ok": True, "message": "draining"}
    assert json.loads(ctl("call", "run.list", '{"limit": 3}').stdout) == {"runs": []}
    assert json.loads(ctl("call", "events.poll", "-", input='{"after": 0, "timeout": 0.05}').stdout)["events"] == []
    assert ctl("call", "run.list", '{"limt": 3}').returncode == 2
    assert ctl("call", "no.such").returncode == 2
    for wrong in ("[1]", "{", "\udcff"):
        done = ctl("call", "run.list", wrong)
        assert done.returncode == 2
        assert "not a JSON object" in done.stderr


def test_the_schema_needs_no_daemon(ctl: Ctl) -> None:
    schema = json.loads(ctl("schema").stdout)
    assert set(schema["methods"]) == set(p.METHODS)
    assert set(json.loads(ctl("schema", "run.start").stdout)["methods"]) == {"run.start"}
    assert ctl("schema", "no.such").returncode == 2


def test_versions_of_both_sides_are_told(peer: Peer, ctl: Ctl, tmp_path: Path) -> None:
    lines = ctl("version").stdout.splitlines()
    assert lines[0].startswith("buildctl ")
    assert lines[1] == f"buildd 9.9 at {tmp_path}/s"
    assert ctl("--version").stdout.splitlines() == lines[:1]
    alone = ctl("version", "--json", "--socket", "nowhere")
    assert alone.returncode == 0
    assert json.loads(alone.stdout)["daemon"] is None
    assert "not reachable" in json.loads(alone.stdout)["problem"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_printed_as_they_are(ctl: Ctl, shell: str) -> None:
    source = Path(__file__).parents[2] / "ctl" / "completion" / f"buildctl.{shell}"
    assert ctl("completion", shell).stdout == source.read_text()


def test_a_shell_without_completion_is_wrong_usage(ctl: Ctl) -> None:
    assert ctl("completion", "tcsh").returncode == 2
