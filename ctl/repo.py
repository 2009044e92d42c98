"""`buildctl repo`: the clones that the daemon keeps."""

from __future__ import annotations

import argparse
import sys
from functools import partial

from buildd import protocol
from buildd.protocol import Repository
from ctl import reading
from ctl.actions import Actions, action_parsers, run_action
from ctl.client import QUICK_S, Client
from ctl.failure import FAILED, INTERRUPTED, OK, CtlError
from ctl.follow import newest_event
from ctl.output import note, say, say_json, say_lines
from ctl.target import absolute
from ctl.text import moment, printable, size, table
from ctl.verbs import Verb, connection_options

POLL_S = 1.0
"""How often the progress of a clone is shown at least."""
ENDINGS = ("clone_completed", "clone_failed", "clone_cancelled")


def _params(args: argparse.Namespace) -> protocol.RepoParams:
    return protocol.RepoParams(repo=absolute(args.repo))


def _clone(args: argparse.Namespace, client: Client) -> int:
    params = protocol.CloneParams(repo=absolute(args.repo), again=args.again)
    after = newest_event(client)
    answer = client.call("repo.clone", params, protocol.CloneResult)
    if not args.wait:
        if args.json:
            say_json(answer)
        else:
            say(f"{answer.status}: {printable(answer.message)} ({printable(answer.path)})")
        return FAILED if answer.status == "failed" else OK
    try:
        repository = _await_clone(client, _params(args), after, quiet=args.json)
    except KeyboardInterrupt:
        note(f"\nbuildctl: interrupted; the clone goes on. Stop it: buildctl repo cancel {printable(args.repo)}")
        return INTERRUPTED
    if args.json:
        say_json(repository)
    else:
        say_lines(repository_lines(repository))
    return OK if repository.clone_status.status == "cloned" else FAILED


def _await_clone(client: Client, params: protocol.RepoParams, after: int, *, quiet: bool) -> Repository:
    """Show a clone's progress until it has ended."""
    shown = ""
    while True:
        repository = client.call("repo.status", params, Repository)
        if repository.clone_status.status in ("cloned", "failed", "not_started"):
            if shown and sys.stderr.isatty():
                note("")
            return repository
        line = "" if quiet else _progress_line(client, repository.url)
        if line and line != shown:
            shown = line
            if sys.stderr.isatty():
                sys.stderr.write(f"\r\x1b[K{line}")
                sys.stderr.flush()
            else:
                note(line)
        poll = protocol.PollParams(after=after, timeout=POLL_S, kinds=ENDINGS)
        after = client.call("events.poll", poll, protocol.PollResult, timeout=POLL_S + QUICK_S).next


def clone_and_wait(client: Client, repo: str) -> None:
    """Have a repository cloned. Raises CtlError when it cannot be."""
    after = newest_event(client)
    client.call("repo.clone", protocol.CloneParams(repo=repo, again=True), protocol.CloneResult)
    found = _await_clone(client, protocol.RepoParams(repo=repo), after, quiet=False)
    if found.clone_status.status != "cloned":
        raise CtlError(f"{found.url} cannot be cloned: {found.clone_status.error}")


def _progress_line(client: Client, url: str) -> str:
    status = client.call("daemon.status", None, protocol.DaemonStatus)
    for clone in status.clones:
        if clone.url == url:
            progress = clone.progress
            return (
                f"{clone.operation} {clone.percent:.0f} %  {progress.received_objects} of "
                f"{progress.total_objects} objects  {size(progress.received_bytes)}"
            )
    return ""


def _status(args: argparse.Namespace, client: Client) -> int:
    if args.json:
        say_json(client.raw("repo.status", _params(args)))
    else:
        say_lines(repository_lines(client.call("repo.status", _params(args), Repository)))
    return OK


def _refresh(args: argparse.Namespace, client: Client) -> int:
    params = protocol.RefreshParams(repo=absolute(args.repo), if_changed=args.if_changed)
    if args.json:
        say_json(client.raw("repo.refresh", params, timeout=None))
        return OK
    done = client.call("repo.refresh", params, protocol.RefreshResult, timeout=None)
    say_lines([*repository_lines(done), f"  changed      {'yes' if done.changed else 'no'}"])
    return OK


def repository_lines(repository: Repository) -> list[str]:
    """A repository for reading."""
    status = repository.clone_status
    lines = [
        f"{repository.name} {status.status}",
        f"  url          {repository.url}",
        f"  path         {repository.path}",
        f"  size         {size(repository.bytes)}",
        f"  last access  {moment(repository.last_access)}",
        f"  fetched      {moment(repository.fetched_at)}",
    ]
    if status.error:
        lines.append(f"  error        {status.error}")
    if repository.repo_map_status is not None:
        made = repository.repo_map_status
        lines.append(f"  map          {made.status} of {made.commit[:12]}{f': {made.error}' if made.error else ''}")
    return [printable(line) for line in lines]


def _list(args: argparse.Namespace, client: Client) -> int:
    if args.json:
        say_json(client.raw("repo.list"))
        return OK
    found = client.call("repo.list", None, protocol.RepoList).repositories
    rows = [
        (r.name, r.clone_status.status, size(r.bytes), moment(r.last_access), moment(r.fetched_at), r.url)
        for r in found
    ]
    say_lines(table(("NAME", "STATUS", "SIZE", "LAST ACCESS", "FETCHED", "URL"), rows, right=(2,)))
    return OK


def _branches(args: argparse.Namespace, client: Client) -> int:
    if args.json:
        say_json(client.raw("repo.branches", _params(args)))
        return OK
    found = client.call("repo.branches", _params(args), protocol.BranchList).branches
    say_lines(f"{'*' if b.head else ' '} {b.commit[:12]}  {printable(b.name)}" for b in found)
    return OK


def _delete(args: argparse.Namespace, client: Client) -> int:
    return _act(client, "repo.delete", _params(args), timeout=None)


def _cancel(args: argparse.Namespace, client: Client) -> int:
    return _act(client, "repo.cancel", _params(args), timeout=QUICK_S)


def _act(client: Client, method: str, params: protocol.RepoParams, *, timeout: float | None) -> int:
    say(printable(client.call(method, params, protocol.Ok, timeout=timeout).message) or "done")
    return OK


def _files(args: argparse.Namespace, client: Client) -> int:
    from ctl.map import print_files

    return print_files(args, client)


_ACTIONS: Actions = {
    "clone": (_clone, "start a clone"),
    "status": (_status, "one repository"),
    "list": (_list, "all known repositories"),
    "refresh": (_refresh, "fetch now; answers when it is done"),
    "branches": (_branches, "branches of a clone and their commits"),
    "cancel": (_cancel, "stop a clone or fetch that is under way"),
    "delete": (_delete, "remove a clone and its record"),
    **reading.ACTIONS,
    "files": (_files, "the most significant files; has a map made if need be"),
}


def _arguments(parser: argparse.ArgumentParser) -> None:
    for name, action in action_parsers(parser, _ACTIONS):
        if name in reading.ACTIONS:
            reading.arguments(name, action)
        elif name == "files":
            action.add_argument("repo", metavar="REPO[@REV]", help="URL, path or known name; a branch, tag or commit")
            action.add_argument("--limit", "-n", type=int, default=50, metavar="N", help="at most N (default 50)")
        elif name != "list":
            action.add_argument("repo", metavar="REPO", help="URL, path or known name")
        if name == "clone":
            action.add_argument("--again", action="store_true", help="try once more when the last clone failed")
            action.add_argument("--wait", "-w", action="store_true", help="show progress until it is done")
        if name == "refresh":
            action.add_argument(
                "--if-changed", action="store_true", help="fetch only when a branch or tag on the server differs"
            )
        if name not in ("cancel", "delete"):
            action.add_argument("--json", action="store_true", help="print the answer as one object")
        connection_options(action, nested=True)


VERBS = {
    "repo": Verb(
        partial(run_action, _ACTIONS),
        _arguments,
        "  buildctl repo clone https://example.org/things.git --wait\n"
        "  buildctl repo list\n  buildctl repo branches things\n"
        "  buildctl repo refresh things --if-changed\n  buildctl repo tree things@v1.2 src --depth 2\n"
        "  buildctl repo cat things README.md --lines 1:20\n  buildctl repo delete things",
    )
}
