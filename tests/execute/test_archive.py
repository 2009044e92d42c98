"""Archives: what is extracted, and everything in them that is not."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from buildd.errors import BuildFailure
from buildd.execute.archive import Extracted, ExtractLimits, copy_file, extract, source_directory

MTIME = 315_532_800

Member = tuple[str, bytes | str | None, dict[str, object]]
"""Name, content (None: a directory), attributes of the TarInfo."""


def tar(*members: Member, format: int = tarfile.PAX_FORMAT, end: bool = True) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(mode="w", fileobj=buffer, format=format) as archive:
        for name, content, attributes in members:
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            data = content.encode() if isinstance(content, str) else content
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data or b""))
        size = archive.offset
    return buffer.getvalue() if end else buffer.getvalue()[:size]


def file(name: str, content: bytes | str = "x", **attributes: object) -> Member:
    return name, content, attributes


def directory(name: str) -> Member:
    return name, None, {}


def link(name: str, target: str) -> Member:
    return name, b"", {"type": tarfile.SYMTYPE, "linkname": target}


def hard(name: str, target: str) -> Member:
    return name, b"", {"type": tarfile.LNKTYPE, "linkname": target}


Unpack = Callable[..., Extracted]


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    path = tmp_path / "src"
    path.mkdir()
    return path


@pytest.fixture
def unpack(tmp_path: Path, dest: Path) -> Iterator[Unpack]:
    def call(data: bytes, filename: str = "a.tar", strip: int | None = 0, **limits: int) -> Extracted:
        archive = tmp_path / "distfile"
        archive.write_bytes(data)
        return extract(archive, dest, filename=filename, strip=strip, limits=ExtractLimits(**limits), mtime=MTIME)

    outside = tmp_path / "outside"
    outside.mkdir()
    yield call
    assert [path.name for path in dest.iterdir() if path.name.startswith(".extract")] == []
    assert list(outside.iterdir()) == []


def listing(root: Path) -> dict[str, str]:
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = "-> " + os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(root))] = path.read_text()
    return found


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.tar": bytes,
    "a.tar.gz": gzip.compress,
    "a.tar.bz2": bz2.compress,
    "a.tar.xz": lzma.compress,
    "a.tar.lzma-ish.xz": lambda data: lzma.compress(data[:600]) + lzma.compress(data[600:]) + b"\0" * 8,
    "a.tar.zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


@pytest.mark.parametrize("filename", PACKED)
def test_a_tar_is_extracted_without_the_directory_all_members_share(filename: str, unpack: Unpack, dest: Path) -> None:
    data = tar(
        directory("./p-1.0/"),
        file("./p-1.0/configure", "#!", mode=0o6775),
        file("./p-1.0/lib/é", "long" * 100_000, mode=0o600),
        link("./p-1.0/lib/l", "../configure"),
        hard("./p-1.0/h", "./p-1.0/configure"),
    )
    done = unpack(PACKED[filename](data), filename, None)
    assert listing(dest) == {
        "configure": "#!",
        "h": "#!",
        "lib/l": "-> ../configure",
        "lib/é": "long" * 100_000,
    }
    assert done == Extracted(members=5, bytes=400_002)
    modes = {str(p.relative_to(dest)): stat.S_IMODE(p.lstat().st_mode) for p in dest.rglob("*")}
    assert modes == {"configure": 0o755, "h": 0o755, "lib": 0o755, "lib/l": 0o777, "lib/é": 0o644}
    assert (dest / "h").samefile(dest / "configure")
    assert {path.lstat().st_mtime for path in [dest, *dest.rglob("*")]} == {MTIME}


def test_a_zip_is_extracted_with_its_modes_and_links(unpack: Unpack, dest: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("p")
        run = zipfile.ZipInfo("p/run")
        run.external_attr = (stat.S_IFREG | 0o4755) << 16
        archive.writestr(run, "#!")
        target = zipfile.ZipInfo("p/l")
        target.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(target, "run")
        archive.writestr("p/d/plain", "x" * 100_000)
    unpack(buffer.getvalue(), "a.zip", None)
    assert listing(dest) == {"run": "#!", "l": "-> run", "d/plain": "x" * 100_000}
    assert stat.S_IMODE((dest / "run").stat().st_mode) == 0o755
    assert {path.lstat().st_mtime for path in [dest, *dest.rglob("*")]} == {MTIME}


def test_several_top_entries_are_all_kept(unpack: Unpack, dest: Path) -> None:
    unpack(tar(file("a/b"), file("c")), strip=None)
    assert listing(dest) == {"a/b": "x", "c": "x"}


def test_a_single_file_is_no_directory_to_drop(unpack: Unpack, dest: Path) -> None:
    unpack(tar(file("only")), strip=None)
    assert listing(dest) == {"only": "x"}


def test_strip_counts_components_and_leaves_shorter_names_out(unpack: Unpack, dest: Path) -> None:
    unpack(tar(file("top"), file("a/b/c", "1"), file("a/d", "2"), link("a/b/l", "../d")), strip=1)
    assert listing(dest) == {"b/c": "1", "d": "2", "b/l": "-> ../d"}


def test_stripping_everything_is_an_error(unpack: Unpack) -> None:
    with pytest.raises(BuildFailure, match="nothing is left of it after dropping 3"):
        unpack(tar(file("a/b")), strip=3)


@pytest.mark.parametrize(
    ("filename", "data"), [("fix.patch.gz", gzip.compress(b"--- a", mtime=0)), ("x.jar", None), ("x", b"")]
)
def test_what_is_no_archive_is_copied_under_its_own_name(
    filename: str, data: bytes | None, unpack: Unpack, dest: Path
) -> None:
    if data is None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("META-INF/MANIFEST.MF", "x")
        data = buffer.getvalue()
    unpack(data, filename, None)
    assert [path.name for path in dest.iterdir()] == [filename]
    assert (dest / filename).read_bytes() == data
    assert (dest / filename).stat().st_mtime == MTIME


def test_an_archive_can_be_copied_as_it_is(tmp_path: Path, dest: Path) -> None:
    archive = tmp_path / "distfile"
    archive.write_bytes(tar(file("a")))
    copy_file(archive, dest, filename="a.tar", limits=ExtractLimits(), mtime=MTIME)
    assert (dest / "a.tar").read_bytes() == archive.read_bytes()


def test_a_name_that_promises_an_archive_which_is_not_there_is_an_error(unpack: Unpack) -> None:
    with pytest.raises(BuildFailure, match=r"a\.tar\.gz is not the archive that its name promises"):
        unpack(b"<html>", "a.tar.gz")


HOSTILE: dict[str, tuple[list[Member], str]] = {
    "absolute": ([file("/etc/x")], "'/etc/x': the path is absolute"),
    "dotdot": ([file("a/../../outside/x")], "holds '..'"),
    "link out": ([link("a", "../outside")], "the link 'a' leads out of the archive, to '../outside'"),
    "absolute link": ([link("a", "/etc")], "'a': the link leads to the absolute path '/etc'"),
    "link out by a link": ([link("d", "."), link("x", "d/../../outside")], "the link 'x' leads out"),
    "link below, then out": ([file("p/q/f"), link("p/q/l", "../../../outside")], "'p/q/l' leads out"),
    "write through a link": ([link("d", "."), file("d/x")], "'d/x': 'd' is a file or a link"),
    "write through a file": ([file("d"), file("d/x")], "'d' is a file or a link"),
    "directory over a link": ([link("d", "."), directory("d")], "'d' is a file or a link"),
    "file over a link": ([link("d", "e"), file("d")], "'d': there are two members of that name"),
    "duplicate": ([file("a"), file("./a")], "'./a': there are two members of that name"),
    "hard link out": ([hard("a", "../outside")], "holds '..'"),
    "hard link to absolute": ([hard("a", "/etc/passwd")], "the path is absolute"),
    "hard link to a link": ([link("l", "x"), hard("a", "l")], "'l', which is no file that came before it"),
    "hard link to nothing": ([hard("a", "b/c")], "there is no 'b' in the archive before it"),
    "fifo": ([("f", b"", {"type": tarfile.FIFOTYPE})], "'f': it is a fifo"),
    "device": ([("f", b"", {"type": tarfile.CHRTYPE})], "'f': it is a character device"),
    "unknown type": ([("f", b"", {"type": b"Z"})], "of the unknown type"),
    "newline": ([file("a\nb")], r"'a\x0ab': the name holds a control character"),
    "link target with a newline": ([link("a", "b\nc")], "holds a control character"),
    "too deep": ([file("d/" * 100 + "f")], "more than 100 levels deep"),
    "too long": ([file("d" * 200 + "/" + "e" * 2000)], "longer than 2048 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tar_is_refused_and_leaves_nothing(name: str, unpack: Unpack, dest: Path) -> None:
    members, message = HOSTILE[name]
    with pytest.raises(BuildFailure) as caught:
        unpack(tar(*members), "evil.tar")
    assert caught.value.reason == "phase_failed"
    assert caught.value.message.startswith("evil.tar cannot be extracted: ")
    assert message in caught.value.message
    assert list(dest.iterdir()) == []


def test_a_link_that_only_leads_out_once_the_shared_directory_is_dropped_is_refused(unpack: Unpack) -> None:
    data = tar(file("p/f"), link("p/l", "../p/f"))
    unpack(data, strip=0)
    with pytest.raises(BuildFailure, match="leads out"):
        unpack(data, strip=None)


@pytest.mark.parametrize("name", ["../x", "/x", "a\0b", "a\nb"])
def test_a_hostile_name_in_a_zip_is_refused(name: str, unpack: Unpack, dest: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("N" * len(name), "x")
    with pytest.raises(BuildFailure, match=r"a\.zip cannot be extracted: "):
        unpack(buffer.getvalue().replace(b"N" * len(name), name.encode()), "a.zip")
    assert list(dest.iterdir()) == []


def test_a_device_and_a_link_out_of_a_zip_are_refused(unpack: Unpack) -> None:
    for mode, content, message in [
        (stat.S_IFCHR, "", "it is a device"),
        (stat.S_IFLNK, "../outside", "leads out"),
        (stat.S_IFLNK, "x" * 5000, "the target of the link is too long"),
    ]:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            info = zipfile.ZipInfo("l")
            info.external_attr = (mode | 0o777) << 16
            archive.writestr(info, content)
        with pytest.raises(BuildFailure, match=message):
            unpack(buffer.getvalue(), "a.zip")


def test_an_encrypted_zip_and_one_by_an_odd_method_are_refused(unpack: Unpack) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("f", "x")
    with pytest.raises(BuildFailure, match="'f': it is compressed by method 14"):
        unpack(buffer.getvalue(), "a.zip")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("f", "x")
    data = bytearray(buffer.getvalue())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BuildFailure, match="'f': it is encrypted"):
        unpack(bytes(data), "a.zip")


def test_a_damaged_member_of_a_zip_is_named(unpack: Unpack) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("broken", "content")
    with pytest.raises(BuildFailure, match="'broken' in it is damaged: Bad CRC-32"):
        unpack(buffer.getvalue().replace(b"content", b"contend"), "a.zip")


def test_bombs_stop_at_the_limits_that_are_counted_while_extracting(unpack: Unpack, dest: Path) -> None:
    zeros = tar(file("zeros", b"\0" * 5_000_000))
    with pytest.raises(BuildFailure, match="the decompressed archive is larger than 1000000 bytes"):
        unpack(gzip.compress(zeros), "a.tar.gz", max_bytes=1_000_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"\0" * 5_000_000)
    with pytest.raises(BuildFailure, match="'zeros': the files are larger than 1000000 bytes together"):
        unpack(buffer.getvalue(), "a.zip", max_bytes=1_000_000)
    with pytest.raises(BuildFailure, match="more than 10 members"):
        unpack(tar(*(file(f"f{i}") for i in range(11))), max_members=10)
    assert list(dest.iterdir()) == []


def test_a_sparse_file_cannot_grow_beyond_the_limit(unpack: Unpack) -> None:
    sparse = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1"}
    with pytest.raises(BuildFailure, match="larger than 1000000 bytes together"):
        unpack(tar(file("hole", "", pax_headers=sparse)), max_bytes=1_000_000)


def test_headers_that_would_fill_the_memory_are_refused(unpack: Unpack) -> None:
    huge = tar(file("f", pax_headers={"comment": "x" * 100_000}))
    with pytest.raises(BuildFailure, match="a header is too large"):
        unpack(huge)
    digits = tar(file("f", pax_headers={"comment": "1" * 60_000}))
    with pytest.raises(BuildFailure, match="a number of more than 64 digits"):
        unpack(digits)


def test_a_chain_of_headers_without_a_member_is_refused(unpack: Unpack) -> None:
    header = tar(file("f", pax_headers={"comment": "x"}))[:1024]
    with pytest.raises(BuildFailure, match=r"damaged at its start|a header is too large"):
        unpack(header * 2000 + tar(file("g")))


@pytest.mark.parametrize("filename", ["a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.tar.zst"])
def test_a_truncated_archive_is_an_error_wherever_it_breaks_off(filename: str, unpack: Unpack, dest: Path) -> None:
    whole = PACKED[filename](tar(file("a", os.urandom(3000)), file("b", os.urandom(300)), end=False) + bytes(1024))
    for size in range(1, len(whole) - (1024 if filename == "a.tar" else 0), 97):
        with pytest.raises(BuildFailure):
            unpack(whole[:size], filename)
        assert list(dest.iterdir()) == []


@pytest.mark.parametrize("filename", ["a.tar.gz", "a.tar.bz2", "a.tar.xz"])
def test_a_flipped_bit_in_a_compressed_archive_is_an_error(filename: str, unpack: Unpack) -> None:
    whole = bytearray(PACKED[filename](tar(file("a", random.Random(1).randbytes(1_500_000)))))
    whole[len(whole) * 4 // 5] ^= 4  # in the second block of bz2, far from the first header
    with pytest.raises(BuildFailure, match=r"damaged|breaks off"):
        unpack(bytes(whole), filename)


def test_a_damaged_header_between_members_is_not_taken_for_the_end(unpack: Unpack) -> None:
    data = bytearray(tar(file("a"), file("b")))
    data[1024 + 148] ^= 1  # in the checksum of the second header
    with pytest.raises(BuildFailure, match="damaged or breaks off after 'a'"):
        unpack(bytes(data))


def test_a_collision_with_the_packages_own_file_is_named_and_moves_nothing(unpack: Unpack, dest: Path) -> None:
    (dest / "lib").mkdir()
    (dest / "lib/own").write_text("own")
    with pytest.raises(BuildFailure, match="'lib/own' is in the source and in the package's directory"):
        unpack(tar(file("a"), file("lib/new"), file("lib/own")))
    assert listing(dest) == {"lib/own": "own"}
    unpack(tar(file("a"), file("lib/new")))
    assert listing(dest) == {"lib/own": "own", "lib/new": "x", "a": "x"}
    assert (dest / "lib").stat().st_mtime == MTIME


def test_a_link_of_the_package_is_not_written_through(unpack: Unpack, dest: Path) -> None:
    (dest / "d").symlink_to("../outside")
    with pytest.raises(BuildFailure, match="'d' is in the source and in the package's directory"):
        unpack(tar(file("d/x")))


def test_a_cancel_within_a_member_leaves_nothing(tmp_path: Path, dest: Path) -> None:
    class Cancelled(BaseException):
        pass

    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise Cancelled

    archive = tmp_path / "a.tar"
    archive.write_bytes(tar(file("big", b"x" * 3_000_000)))
    with pytest.raises(Cancelled):
        extract(archive, dest, filename="a.tar", strip=None, limits=ExtractLimits(), mtime=MTIME, check=check)
    assert list(dest.iterdir()) == []


def test_the_directory_of_a_source_is_made_inside_the_package_only(tmp_path: Path) -> None:
    (tmp_path / "l").symlink_to("/tmp")
    (tmp_path / "f").touch()
    assert source_directory(tmp_path, "a/./b") == tmp_path / "a/b"
    assert (tmp_path / "a/b").is_dir()
    assert source_directory(tmp_path, ".") == tmp_path
    for into, message in [("../x", "leads out"), ("/x", "leads out"), ("l/x", "l is not"), ("f", "f is not")]:
        with pytest.raises(BuildFailure, match=message):
            source_directory(tmp_path, into)


names = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "c\n", "é", "\udce9", "d" * 300]), min_size=1, max_size=5
).map("/".join)


@settings(max_examples=60, deadline=None)
@given(
    members=st.lists(
        st.one_of(
            st.builds(file, names),
            st.builds(directory, names),
            st.builds(link, names, names),
            st.builds(hard, names, names),
        ),
        max_size=6,
    ),
    strip=st.sampled_from([None, 0, 1]),
)
def test_whatever_the_names_nothing_leads_out(
    members: list[Member], strip: int | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("random")
    (base / "src/inner").mkdir(parents=True)
    (base / "distfile").write_bytes(tar(*members, format=tarfile.GNU_FORMAT))
    try:
        extract(
            base / "distfile",
            base / "src/inner",
            filename="a.tar",
            strip=strip,
            limits=ExtractLimits(),
            mtime=MTIME,
        )
    except BuildFailure:
        assert list((base / "src/inner").iterdir()) == []
    assert sorted(path.name for path in base.iterdir()) == ["distfile", "src"]
    assert [path.name for path in (base / "src").iterdir()] == ["inner"]
    for path in (base / "src/inner").rglob("*"):
        if path.is_symlink():
            try:
                resolved = path.resolve()
            except RuntimeError:  # a loop leads nowhere
                continue
            assert resolved.is_relative_to((base / "src/inner").resolve())


def test_a_stream_that_asks_for_too_much_memory_is_refused(unpack: Unpack) -> None:
    greedy = zstandard.ZstdCompressionParameters(window_log=30, compression_level=1, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=greedy).compressobj()
    data = compressor.compress(tar(file("a"))) + compressor.flush()
    with pytest.raises(BuildFailure, match="requires too much memory"):
        unpack(data, "a.tar.zst")
