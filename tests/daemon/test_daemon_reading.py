"""Reading code through a real daemon, with the client that people use."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import Daemon, GitServer, RecipeRepository, rpc

from buildd import protocol


@pytest.fixture
def cloned(daemon: Daemon, git_server: GitServer, repository: RecipeRepository) -> str:
    """The URL of a clone with a bit of everything."""
    repository.write("README.md", "# Work\n\nA workspace.\n")
    repository.write("docs/guide.rst", "Guide\n=====\n")
    repository.write("src/main.c", "".join(f"line {n}\n" for n in range(1, 101)))
    repository.write("src/esc.txt", "a\x1b[31mb\n")
    repository.write("src/long.txt", "ä€" * 300_000 + "\nend\n")
    repository.write("src/blob.bin", b"\0\1\2")
    repository.write("src/latin.txt", b"caf\xe9\n")
    (repository.path / "link").symlink_to("src/main.c")
    repository.commit()
    url = git_server.url(repository)
    done = daemon.buildctl("repo", "clone", url, "--wait")
    assert done.returncode == 0, done.stderr
    return url


def test_a_clone_is_read_at_any_revision(daemon: Daemon, cloned: str, repository: RecipeRepository) -> None:
    first = repository.commit("nothing")
    repository.write("new.txt", "new\n").commit()
    tree = json.loads(daemon.buildctl("repo", "tree", cloned, "src", "--json").stdout)
    assert [e["path"] for e in tree["entries"]] == [
        *("src/blob.bin", "src/esc.txt", "src/latin.txt", "src/long.txt", "src/main.c"),
    ]
    assert daemon.buildctl("repo", "cat", cloned, "new.txt").returncode == 3  # not fetched yet
    assert daemon.buildctl("repo", "refresh", cloned).returncode == 0
    assert daemon.buildctl("repo", "cat", cloned, "new.txt").stdout == "new\n"
    missing = daemon.buildctl("repo", "cat", f"{cloned}@{first[:10]}", "new.txt")
    assert missing.returncode == 3
    assert "no 'new.txt' in commit" in missing.stderr
    assert daemon.buildctl("repo", "tree", f"{cloned}@main").returncode == 0
    wrong = daemon.buildctl("repo", "tree", f"{cloned}@mian")
    assert wrong.returncode == 3
    assert "Did you mean main?" in wrong.stderr


def test_trees_and_documents_are_listed_for_people(daemon: Daemon, cloned: str) -> None:
    shown = daemon.buildctl("repo", "tree", cloned, "--depth", "1").stdout.splitlines()
    assert "8 files, 2 directories" in shown[0]
    assert ".txt 3" in shown[1]
    assert [line.split()[-1] for line in shown[2:]] == ["NAME", "docs/", "src/", "README.md", "link@"]
    cut = daemon.buildctl("repo", "tree", cloned, "--limit", "2")
    assert "there is more" in cut.stderr
    docs = daemon.buildctl("repo", "docs", cloned).stdout.splitlines()
    assert [line.split()[0] for line in docs] == ["PATH", "README.md", "docs/guide.rst"]
    assert docs[1].endswith("Work")
    assert docs[2].endswith("Guide")


def test_a_file_is_printed_to_the_byte_however_many_answers_that_takes(daemon: Daemon, cloned: str) -> None:
    def cat(*arguments: str) -> subprocess.CompletedProcess[str]:
        return daemon.buildctl("repo", "cat", cloned, *arguments)

    assert cat("src/long.txt").stdout == "ä€" * 300_000 + "\nend\n"
    assert cat("src/main.c", "--lines", "3:4").stdout == "line 3\nline 4\n"
    assert cat("src/main.c", "--lines", "100").stdout == cat("src/main.c", "--lines", "100:").stdout == "line 100\n"
    assert cat("src/main.c", "--lines", ":1").stdout == "line 1\n"
    assert cat("src/latin.txt").stdout == "caf\ufffd\n"
    assert cat("src/esc.txt").stdout == "a\x1b[31mb\n"  # no terminal: as it is
    whole = json.loads(cat("src/long.txt", "--json").stdout)
    assert (len(whole["text"]), whole["truncated"], whole["last_line"]) == (600_005, False, 2)
    binary = cat("src/blob.bin")
    assert (binary.returncode, binary.stdout) == (1, "")
    assert "binary file of 3 B" in binary.stderr
    link = cat("link")
    assert link.returncode == 2
    assert "is a link to 'src/main.c'" in link.stderr
    assert cat("src/main.c", "--lines", "x").returncode == 2


def test_a_local_repository_is_read_in_place(daemon: Daemon, repository: RecipeRepository, tmp_path: Path) -> None:
    repository.write("file", "text\n").commit()
    shown = daemon.buildctl("repo", "cat", ".", "file", cwd=repository.path)
    assert (shown.stdout, shown.stderr) == ("text\n", "")
    assert daemon.buildctl("repo", "cat", f"file://{repository.path}@main", "file").stdout == "text\n"
    plain = tmp_path / "plain"
    plain.mkdir()
    refused = daemon.buildctl("repo", "tree", plain)
    assert refused.returncode == 3
    assert f"file://{plain}" not in {r["url"] for r in daemon.call("repo.list")["repositories"]}


def test_what_is_not_cloned_is_not_read(daemon: Daemon) -> None:
    with pytest.raises(rpc.RpcError, match="is not known"):
        daemon.call("repo.tree", {"repo": "git://127.0.0.1:1/none"})


def test_a_hundred_thousand_files_are_counted_in_a_bounded_answer(boot: Callable[..., Daemon], tmp_path: Path) -> None:
    path = tmp_path / "many.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", path], check=True)
    stream = ["blob\nmark :1\ndata 2\nx\n", "commit refs/heads/main\ncommitter A <a@example.org> 1 +0000\ndata 1\nx"]
    stream += [f"M 100644 :1 d{i % 300:03}/{'n' * 150}{i}.md" for i in range(100_000)]
    subprocess.run(["git", "-C", path, "fast-import", "--quiet"], input="\n".join(stream).encode(), check=True)
    daemon = boot()
    answer = rpc.call(daemon.socket, "repo.tree", {"repo": str(path), "limit": 100_000})
    assert (answer["files"], answer["truncated"]) == (100_000, True)
    assert len(json.dumps(answer)) < protocol.MAX_MESSAGE_BYTES
    documents = daemon.call("repo.docs", {"repo": str(path), "limit": 100_000})
    assert documents["total"] == 100_000
    assert len(json.dumps(documents)) < protocol.MAX_MESSAGE_BYTES
