"""Maps as they are published: what is in them, from what they are made again, and that it is always the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import msgspec
import psutil
import pytest
from repomap_maps import ARGV, Repository, ask, git

from buildd.repomap.wire import Built, Failure, FilesRequest, TagsRequest, TextRequest

SOURCES = {
    f"src/module_{number}.py": f"class Thing{number}:\n    def run(self): return make_thing_{number + 1}()\n\n\n"
    f"def make_thing_{number}(): return Thing{number}()\n"
    for number in range(12)
} | {"main.go": "package main\nfunc main() { helperFunction() }\nfunc helperFunction() {}\n", "README.md": "# x\n"}


def test_ten_runs_with_different_hash_seeds_make_the_same_bytes(repository: Repository) -> None:
    repository.commit(SOURCES)
    made = []
    for seed in range(10):
        if seed % 3 == 0:
            repository.cache = repository.home / f"cache-{seed}" / "blobs.db"
        made.append(repository.map(environ={"PYTHONHASHSEED": str(seed)}, processes=1 + seed % 3).content())
    assert set(made[0]) == {"map.txt", "tags.jsonl", "tags", "left_out.jsonl", "index"}
    assert all(content == made[0] for content in made)


def test_an_unchanged_file_is_parsed_once_whatever_branch_or_repository_it_is_in(tmp_path: Path) -> None:
    first = Repository(tmp_path, "first")
    first.commit(SOURCES)
    assert first.map().built.parsed == len(SOURCES)
    assert first.map().built.parsed == 0
    git("checkout", "-q", "-b", "topic", cwd=first.path)
    changed = first.commit({"src/module_3.py": "def other(): pass\n", "src/moved.py": SOURCES["src/module_5.py"]})
    assert first.map(changed).built.parsed == 1
    second = Repository(tmp_path, "second", cache=first.cache)
    second.commit({"elsewhere/" + path: content for path, content in SOURCES.items()})
    assert second.map().built.parsed == 0
    assert second.map().built.mapped == len(SOURCES)


def test_maps_from_the_cache_and_from_parsers_are_equal(repository: Repository) -> None:
    first = repository.commit(SOURCES)
    fresh = repository.map(first).content()
    repository.map(repository.commit({"src/module_3.py": "def other(): pass\n"}))
    assert repository.map(first).content() == fresh


def test_what_is_left_out_is_listed_with_its_reason(repository: Repository) -> None:
    repository.write(
        {
            "good.py": "def fine(): pass\n",
            "latin.py": "# \xe9t\xe9\ndef latin_one(): pass\n".encode("latin-1"),
            "image.png": b"\x89PNG\0\0\0",
            "big.py": "x = 1\n" * 100_000,
            "packed.js": "var a=1;" * 2000,
            "lfs.bin": "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n",
            "empty.py": "",
        }
    )
    (repository.path / "link.py").symlink_to("good.py")
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},module", cwd=repository.path)
    git("add", "-A", ":!module", cwd=repository.path)
    git("commit", "-q", "-m", "x", cwd=repository.path)
    made = repository.map(max_file_bytes=100_000)
    expected = {
        "image.png": "binary",
        "big.py": "too_large",
        "packed.js": "minified",
        "lfs.bin": "lfs",
        "link.py": "link",
        "module": "submodule",
    }
    assert made.left_out() == expected
    assert made.built.left_out == dict.fromkeys(expected.values(), 1)
    assert made.built.mapped == made.built.files - len(expected) == 3
    assert {tag.name for tag in made.tags().tags} == {"fine", "latin_one"}
    assert made.files().total == 3
    assert repository.map(max_file_bytes=1 << 20).left_out() == {
        path: reason for path, reason in expected.items() if path != "big.py"
    }
    assert repository.map(max_file_bytes=100_000).content() == made.content()


def test_the_ctags_file_is_read_by_vim(repository: Repository) -> None:
    vim = shutil.which("vim") or shutil.which("vim.tiny")
    repository.commit(SOURCES | {"deep.py": 'class A:\n    def method_in_it(self, x="\\t"): pass\n'})
    made = repository.map()
    lines = (made.directory / "tags").read_bytes().splitlines()
    assert lines == sorted(lines)
    line = next(line for line in lines if line.startswith(b"method_in_it"))
    assert line == b'method_in_it\tdeep.py\t2;"\tmethod\tline:2\tclass:A\tend:2\tsignature:(self, x="\\\\t")'
    if vim is None:
        pytest.skip("there is no vim")
    script = repository.home / "ask.vim"
    script.write_text(
        f"set tags={made.directory}/tags\nredir! > {repository.home}/answer\n"
        'silent! echo map(taglist("^make_thing_3$"), "v:val.name . v:val.cmd . v:val.kind")\nredir END\nqa!\n'
    )
    subprocess.run([vim, "-u", "NONE", "-es", "-S", str(script)], cwd=repository.path, timeout=30, check=False)
    answer = (repository.home / "answer").read_text()
    assert "make_thing_3" in answer


def test_readtags_finds_definitions(repository: Repository) -> None:
    readtags = shutil.which("readtags")
    if readtags is None:
        pytest.skip("there is no readtags (package universal-ctags)")
    repository.commit(SOURCES)
    tags = str(repository.map().directory / "tags")
    found = subprocess.run([readtags, "-t", tags, "-e", "run"], capture_output=True, timeout=30, check=True)
    lines = found.stdout.decode().splitlines()
    assert len(lines) == 12
    assert all("class:Thing" in line and "\tkind:method" in line for line in lines)
    by_prefix = subprocess.run([readtags, "-t", tags, "-p", "make_"], capture_output=True, timeout=30, check=True)
    assert len(by_prefix.stdout.splitlines()) == 12


def test_questions_about_definitions(repository: Repository) -> None:
    repository.commit(SOURCES)
    made = repository.map()
    assert made.tags(name="make_thing_*").total == 12
    assert [tag.path for tag in made.tags(name="make_thing_3").tags] == ["src/module_3.py"]
    assert made.tags(path="src", kind="class").total == 12
    assert made.tags(path="./src/").total == 36
    assert made.tags(path="src/module_1?.py").total == 6
    assert made.tags(path="main.go", kind="function").total == 2
    assert made.tags(kind="nonsense").tags == ()
    everything = made.tags(limit=1000)
    assert everything.total == len(everything.tags) == made.built.definitions
    scores = [tag.score for tag in everything.tags]
    assert scores == sorted(scores, reverse=True)
    pages = [made.tags(limit=10, offset=offset).tags for offset in range(0, 50, 10)]
    assert tuple(tag for page in pages for tag in page) == everything.tags
    lines = made.lines("tags.jsonl")
    assert [(line["path"], line["line"]) for line in lines] == sorted((line["path"], line["line"]) for line in lines)
    assert {json.dumps(line) for line in lines} == {json.dumps(msgspec.to_builtins(tag)) for tag in everything.tags}


def test_questions_about_references(repository: Repository) -> None:
    repository.commit(
        SOURCES
        | {
            "use.py": '# make_thing_3 in a comment\ns = "make_thing_3"\nif True:\n    make_thing_3(  make_thing_3 )\n'
            "print(undefined_name)\n",
            "lang.go": "package x\nvar x = make_thing_3\n",
        }
    )
    made = repository.map()
    refs = made.refs("make_thing_3")
    assert [tag.path for tag in refs.definitions] == ["src/module_3.py"]
    assert {(ref.path, ref.line, ref.text) for ref in refs.refs} == {
        ("src/module_2.py", 2, "def run(self): return make_thing_3()"),
        ("src/module_3.py", 5, "def make_thing_3(): return Thing3()"),
        ("use.py", 4, "make_thing_3( make_thing_3 )"),
        ("lang.go", 2, "var x = make_thing_3"),
    }
    assert refs.total == 4
    assert made.refs("make_thing_3", limit=1, offset=2).refs == refs.refs[2:3]
    assert [(ref.path, ref.line) for ref in made.refs("undefined_name").refs] == [("use.py", 5)]
    assert made.refs("nobody_says_this").total == 0
    assert made.refs("").total == 0


def test_questions_about_files(repository: Repository) -> None:
    repository.commit(SOURCES)
    files = repository.map().files(limit=5)
    assert files.total == len(SOURCES)
    assert len(files.files) == 5
    assert [file.score for file in files.files] == sorted((file.score for file in files.files), reverse=True)
    everything = {file.path: file for file in repository.map().files(limit=100).files}
    main = everything["main.go"]
    assert (main.language, main.lines, main.bytes, main.definitions, main.role) == (
        "go",
        3,
        len(SOURCES["main.go"]),
        2,
        "source",
    )
    assert everything["README.md"].role == "documentation"


def test_an_empty_commit_has_a_map(repository: Repository) -> None:
    repository.commit()
    made = repository.map()
    assert made.built.files == made.built.definitions == 0
    assert made.text(100).text == ""
    assert made.text(100, focus=("a",), mention=("b",)).unknown == ("b", "a")
    assert made.tags().total == made.refs("x").total == made.files().total == 0


def test_names_that_are_not_utf_8_are_shown_with_their_bytes(repository: Repository) -> None:
    name = os.fsencode(repository.path) + b"/caf\xe9.py"
    with open(name, "w") as file:
        file.write("def in_it(): pass\n")
    repository.commit()
    made = repository.map()
    assert [tag.path for tag in made.tags().tags] == ["caf\\udce9.py"]
    assert "in_it" in made.text(100).text
    assert made.refs("in_it").total == 1


def test_nothing_from_a_repository_leaves_its_line_or_reaches_a_terminal_as_control(repository: Repository) -> None:
    repository.commit({"a\nb.py": "def fine(x='\x1b[31m'): pass\nclass \x07Odd: pass\n"})
    made = repository.map()
    text = made.text(100).text
    assert text.startswith("a\\nb.py\n")
    assert "fine" in text
    assert text.replace("\n", "").isprintable()
    assert [tag.path for tag in made.tags(name="fine").tags] == ["a\nb.py"]


def test_stages_are_reported_in_order(repository: Repository) -> None:
    repository.commit(SOURCES)
    progress = repository.map().progress
    stages = [
        stage for at, one in enumerate(progress) for stage in [one.stage] if not at or progress[at - 1].stage != stage
    ]
    assert stages == ["listing", "parsing", "ranking", "writing"]
    assert all(one.done <= one.total <= len(SOURCES) for one in progress)


@pytest.mark.parametrize("name", ["index", "tags.jsonl"])
@pytest.mark.parametrize("damage", ["gone", "cut", "garbled"])
def test_a_damaged_map_is_reported_as_such(repository: Repository, name: str, damage: str) -> None:
    repository.commit(SOURCES)
    made = repository.map()
    target = made.directory / name
    content = target.read_bytes()
    if damage == "gone":
        target.unlink()
    else:
        target.write_bytes(content[: len(content) // 3] if damage == "cut" else bytes(len(content)))
    for request in (
        TextRequest(source=made.source, tokens=4096),
        TagsRequest(source=made.source, limit=1000),
        TextRequest(source=made.source, tokens=4096, focus=("main.go",)),
    ):
        assert made.failure(request).kind == "damaged"
    if name == "index":
        assert made.failure(FilesRequest(source=made.source)).kind == "damaged"


def test_what_cannot_be_mapped_is_the_fault_of_the_question(repository: Repository, tmp_path: Path) -> None:
    repository.commit(SOURCES)
    (failure,) = [reply for reply in ask(repository.request(tmp_path, "0" * 40)) if isinstance(reply, Failure)]
    assert failure.kind == "not_found"
    request = repository.request(tmp_path, repository=str(tmp_path / "nothing"))
    (failure,) = [reply for reply in ask(request) if isinstance(reply, Failure)]
    assert failure.kind == "not_found"
    assert "nothing" in failure.message


def test_a_damaged_cache_is_begun_anew(repository: Repository) -> None:
    repository.commit(SOURCES)
    fresh = repository.map().content()
    content = repository.cache.read_bytes()
    for damaged in (b"no database at all" * 1000, content[:4096] + bytes(len(content) - 4096), content[:5000], b""):
        for suffix in ("-wal", "-shm"):
            Path(f"{repository.cache}{suffix}").unlink(missing_ok=True)
        repository.cache.write_bytes(damaged)
        made = repository.map()
        assert made.built.parsed == len(SOURCES)
        assert made.content() == fresh
        assert repository.map().built.parsed == 0


def test_a_cache_holds_what_it_may_and_forgets_what_was_not_used_for_long(repository: Repository) -> None:
    files = {f"a{number}.py": f"def function_{number}(): pass\n" * 200 for number in range(60)}
    repository.commit(files)
    repository.map()
    limit = repository.cache.stat().st_size // 3
    with sqlite3.connect(repository.cache) as connection:
        connection.execute("UPDATE blobs SET used = used - 10 WHERE rowid % 2")
    connection.close()
    repository.commit({"new.py": "def newest(): pass\n"})
    repository.map(max_cache_bytes=limit)
    assert repository.cache.stat().st_size <= limit
    made = repository.map(max_cache_bytes=limit)
    assert 0 < made.built.parsed < len(files)


def test_several_maps_may_be_made_at_once_with_one_cache(repository: Repository, tmp_path: Path) -> None:
    repository.commit({f"a{number}.py": f"def function_{number}(): pass\n" for number in range(200)})
    running = []
    for number in range(4):
        output = tmp_path / f"at-once-{number}"
        output.mkdir()
        process = subprocess.Popen(ARGV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(repository.request(output)))
        process.stdin.close()
        running.append((process, output))
    contents = []
    for process, output in running:
        assert process.stdout is not None
        assert msgspec.json.decode(process.stdout.read().splitlines()[-1], type=Built | Failure) is not None
        process.stdout.close()
        assert process.wait(60) == 0
        contents.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert all(content == contents[0] and len(content) == 5 for content in contents)


def test_the_processes_end_with_the_one_that_started_them(repository: Repository, tmp_path: Path) -> None:
    slow = "x = [" + "(" * 200_000 + "\n"
    repository.commit({f"a{number}.js": slow + str(number) for number in range(200)})
    output = tmp_path / "out"
    output.mkdir()
    script = (
        "import os, subprocess, sys\n"
        "request = sys.stdin.buffer.read().replace(b'\"PARENT\"', str(os.getpid()).encode())\n"
        "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdin.write(request); child.stdin.close()\n"
        "print(child.pid, flush=True)\n"
        "for line in child.stdout: print(line.decode(), end='', flush=True)\n"
    )
    request = msgspec.json.decode(msgspec.json.encode(repository.request(output)))
    request["parent_pid"] = "PARENT"
    parent = subprocess.Popen([ARGV[0], "-c", script, *ARGV], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(json.dumps(request).encode())
    parent.stdin.close()
    worker = psutil.Process(int(parent.stdout.readline()))
    while b'"parsing"' not in parent.stdout.readline():
        pass
    deadline = time.monotonic() + 20
    while not (children := worker.children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs([worker, *children], timeout=10)
    assert alive == []
