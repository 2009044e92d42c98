"""Shell completion, asked the way the shells ask: with the words of a command line."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.verbs import MODULES, connection_options

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "ctl/completion"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment where `buildctl` is this checkout's and no daemon can be found."""
    program = tmp_path / "bin" / "buildctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ctl "$@"\n')
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "BUILDD_SOCKET": str(tmp_path / "nobody.sock"),
        "LC_ALL": "C.UTF-8",
    }


def bash(line: str, environ: dict[str, str]) -> tuple[set[str], str]:
    script = f"""
source {shlex.quote(str(SCRIPTS / "buildctl.bash"))}
COMP_WORDS=({line}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_buildctl
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    ran = subprocess.run(["bash", "-c", script], env=environ, capture_output=True, text=True, timeout=60)
    return set(ran.stdout.split()), ran.stderr


def fish(line: str, environ: dict[str, str]) -> tuple[set[str], str]:
    script = f"source {shlex.quote(str(SCRIPTS / 'buildctl.fish'))}; complete -C {shlex.quote(line)}"
    ran = subprocess.run(["fish", "-N", "-c", script], env=environ, capture_output=True, text=True, timeout=60)
    return {line.split("\t")[0] for line in ran.stdout.splitlines()}, ran.stderr


SHELLS = [
    pytest.param(bash, id="bash"),
    pytest.param(fish, id="fish", marks=pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")),
]


def ask(shell: object, words: str, last: str, environ: dict[str, str]) -> set[str]:
    if shell is bash:
        answer, complaints = bash(f"{words} {last or chr(39) * 2}", environ)
    else:
        answer, complaints = fish(f"{words} {last}", environ)
    assert complaints == ""
    return answer


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The words that a command line begins with, and the parser that reads the rest, of every verb and action."""
    for name, (module, _) in MODULES.items():
        verb = importlib.import_module(module).VERBS[name]
        parser = argparse.ArgumentParser(prog=name)
        verb.arguments(parser)
        connection_options(parser, own_timeout=verb.own_timeout)
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{name} {word}", child) for word, child in action.choices.items())


OPTIONS = {
    words: {option for action in parser._actions for option in action.option_strings} for words, parser in parsers()
}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_is_offered(shell: object, environ: dict[str, str]) -> None:
    assert ask(shell, "buildctl", "", environ) >= MODULES.keys()


@pytest.mark.parametrize("shell", SHELLS)
def test_options_are_those_of_the_verb_and_of_its_action(shell: object, environ: dict[str, str]) -> None:
    offered = ask(shell, "buildctl start", "--f", environ)
    assert offered == {"--fail-fast", "--force", "--force-package", "--fetch-only"}
    assert {"--output", "--extract"} <= ask(shell, "buildctl artifacts get", "--", environ)
    assert "--slowest" in ask(shell, "buildctl db stats", "--", environ)


@pytest.mark.parametrize("words", OPTIONS)
def test_all_options_are_offered(words: str, environ: dict[str, str]) -> None:
    meant = "map get" if words == "map" else words  # the action that need not be named
    assert ask(bash, f"buildctl {words}", "-", environ) == OPTIONS[meant]


@pytest.mark.parametrize("name", ["buildctl.bash", "buildctl.zsh", "buildctl.fish"])
def test_the_scripts_know_which_options_take_a_value(name: str) -> None:
    valued = {o for _, parser in parsers() for a in parser._actions if a.nargs != 0 for o in a.option_strings}
    known = re.search(r"(-[a-z-]+ ){8,}-[a-z-]+", (SCRIPTS / name).read_text())
    assert known is not None
    assert set(known[0].split()) == valued


@pytest.mark.parametrize("shell", SHELLS)
def test_values_are_offered_where_they_are_known(shell: object, environ: dict[str, str]) -> None:
    for verb in ("start", "plan", "why"):
        assert ask(shell, f"buildctl {verb} --strategy", "", environ) == {"none", "conservative", "aggressive"}
    assert ask(shell, "buildctl verify --worktree", "", environ) == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_actions_and_methods_are_offered_in_their_place(shell: object, environ: dict[str, str]) -> None:
    assert {"clone", "list", "delete"} <= ask(shell, "buildctl repo", "", environ)
    assert {"verify", "pin", "unpin"} <= ask(shell, "buildctl artifacts", "", environ)
    assert {"history", "latest", "verify", "reset-db"} <= ask(shell, "buildctl db", "", environ)
    assert "run.start" in ask(shell, "buildctl call", "run.", environ)


@pytest.mark.parametrize("shell", SHELLS)
def test_without_a_daemon_nothing_is_offered_for_names_and_nothing_is_said(
    shell: object, environ: dict[str, str]
) -> None:
    assert ask(shell, "buildctl history", "", environ) == set()
    assert ask(shell, "buildctl cancel", "", environ) == {"latest"}


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_reads_verbs_and_options_from_the_help(environ: dict[str, str]) -> None:
    script = f"""
compdef() {{ }}
source {shlex.quote(str(SCRIPTS / "buildctl.zsh"))}
_buildctl_words; _buildctl_words db; _buildctl_options start; _buildctl_options gc
"""
    ran = subprocess.run(["zsh", "-f", "-c", script], env=environ, capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    offered = {line.split(":")[0] for line in ran.stdout.splitlines()}
    assert offered >= MODULES.keys() | OPTIONS["start"] | OPTIONS["gc"] | {"reset-db"}
    assert all(line.partition(":")[2] for line in ran.stdout.splitlines()), "a description is missing"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_buildctl_prints_the_script(shell: str, environ: dict[str, str]) -> None:
    ran = subprocess.run(["buildctl", "completion", shell], env=environ, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == (SCRIPTS / f"buildctl.{shell}").read_text()
