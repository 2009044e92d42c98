"""What goes when there is to be less: chosen purely, and counted on the disk as it is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, strategies as st

from buildd.config import CacheConfig
from buildd.store.artifacts import ArtifactStore
from buildd.store.collect import (
    Choice,
    Entry,
    Kind,
    Limits,
    Space,
    attainable,
    choose,
    limits_of,
    short_of_space,
)
from buildd.store.pins import Pin
from buildd.store.usage import Surveyor

NOW = 1000.0
ROOMY = Space(free_bytes=10**12, total_bytes=10**12, free_inodes=10**9, total_inodes=10**9)
KINDS: tuple[Kind, ...] = ("artifact", "release", "damaged")


def entry(id: str, size: int = 10, used: float = NOW, **more: object) -> Entry:
    return msgspec.convert({"id": id, "bytes": size, "inodes": 2, "last_used": used, **more}, Entry)


def ids(choice: Choice) -> list[str]:
    return [victim.entry.id for victim in choice.victims]


# --- examples -------------------------------------------------------------------------------------------------


def test_without_limits_nothing_goes() -> None:
    choice = choose([entry("a", used=0.0), entry("d", kind="damaged")], Limits(), ROOMY, now=NOW)
    assert choice == Choice(victims=(), unmet=())


def test_what_was_used_least_recently_goes_until_the_size_is_kept() -> None:
    entries = [entry("new", used=9.0), entry("old", used=1.0), entry("middle", used=5.0)]
    choice = choose(entries, Limits(max_bytes=25), ROOMY, now=NOW)
    assert [(v.entry.id, v.reason) for v in choice.victims] == [("old", "size")]
    assert ids(choose(entries, Limits(max_bytes=30), ROOMY, now=NOW)) == []
    assert ids(choose(entries, Limits(max_bytes=1), ROOMY, now=NOW)) == ["old", "middle", "new"]


def test_what_is_too_old_goes_whatever_room_there_is() -> None:
    entries = [entry("old", used=NOW - 101), entry("just not", used=NOW - 100), entry("new")]
    choice = choose(entries, Limits(max_age=100), ROOMY, now=NOW)
    assert [(v.entry.id, v.reason) for v in choice.victims] == [("old", "age")]


def test_free_space_and_free_inodes_are_made() -> None:
    entries = [entry("a", used=1.0), entry("b", used=2.0), entry("c", used=3.0)]
    tight = Space(free_bytes=5, total_bytes=1000, free_inodes=5, total_inodes=1000)
    choice = choose(entries, Limits(min_free_bytes=15), tight, now=NOW)
    assert [(v.entry.id, v.reason) for v in choice.victims] == [("a", "free_space")]
    choice = choose(entries, Limits(min_free_inodes=9), tight, now=NOW)
    assert [(v.entry.id, v.reason) for v in choice.victims] == [("a", "free_inodes"), ("b", "free_inodes")]


def test_a_limit_that_cannot_be_met_is_named_with_what_was_reached() -> None:
    entries = [entry("pinned", 50, pinned=True), entry("used", 30, in_use=True), entry("free", 20)]
    tight = Space(free_bytes=0, total_bytes=1000, free_inodes=0, total_inodes=1000)
    choice = choose(entries, Limits(max_bytes=60, min_free_bytes=500, min_free_inodes=3), tight, now=NOW)
    assert ids(choice) == ["free"]
    assert [(u.limit, u.wanted, u.reached) for u in choice.unmet] == [
        ("max_bytes", 60, 80),
        ("min_free_bytes", 500, 20),
        ("min_free_inodes", 3, 2),
    ]


def test_damaged_artifacts_go_before_all_others() -> None:
    entries = [entry("old", used=1.0), entry("x.1", kind="damaged")]
    assert ids(choose(entries, Limits(max_bytes=10), ROOMY, now=NOW)) == ["x.1"]


def test_a_release_goes_with_an_artifact_that_it_shares_files_with() -> None:
    entries = [
        entry("a", 100, used=1.0, releases=("7", "8")),
        entry("b", 100, used=2.0, releases=("8",)),
        entry("7", 1, used=5.0, kind="release"),
        entry("8", 1, used=6.0, kind="release"),
        entry("9", 1, used=7.0, kind="release"),
    ]
    assert ids(choose(entries, Limits(max_bytes=150), ROOMY, now=NOW)) == ["7", "8", "a"]
    assert ids(choose(entries, Limits(max_bytes=1), ROOMY, now=NOW)) == ["7", "8", "a", "b"]


def test_an_artifact_and_a_release_may_have_the_same_name() -> None:
    entries = [entry("7", used=1.0), entry("7", used=2.0, kind="release")]
    choice = choose(entries, Limits(max_age=1), ROOMY, now=NOW)
    assert [(v.entry.kind, v.entry.id) for v in choice.victims] == [("artifact", "7"), ("release", "7")]


def test_slack_outdoes_a_limit_that_is_not_kept_and_no_other() -> None:
    entries = [entry(f"{n:03}", 1, used=float(n)) for n in range(100)]
    assert len(ids(choose(entries, Limits(max_bytes=80), ROOMY, now=NOW, slack=0.1))) == 28
    assert ids(choose(entries, Limits(max_bytes=100), ROOMY, now=NOW, slack=0.1)) == []
    tight = Space(free_bytes=40, total_bytes=1000, free_inodes=50, total_inodes=1000)
    assert len(ids(choose(entries, Limits(min_free_bytes=50), tight, now=NOW, slack=0.1))) == 15
    assert ids(choose(entries, Limits(min_free_inodes=50), tight, now=NOW, slack=0.1)) == []


def test_a_small_file_system_is_not_emptied_for_its_free_space() -> None:
    small = Space(free_bytes=3, total_bytes=200, free_inodes=3, total_inodes=100)
    limits = attainable(Limits(max_bytes=5, max_age=6, min_free_bytes=1 << 30, min_free_inodes=10_000), small)
    assert limits == Limits(max_bytes=5, max_age=6, min_free_bytes=20, min_free_inodes=10)
    assert short_of_space(limits, small)
    uncounted = Space(free_bytes=20, total_bytes=200)
    assert attainable(Limits(min_free_inodes=10_000), uncounted).min_free_inodes == 0
    assert not short_of_space(attainable(limits, uncounted), uncounted)
    assert attainable(limits, ROOMY).min_free_bytes == limits.min_free_bytes


def test_the_configuration_has_the_limits() -> None:
    config = CacheConfig()
    assert limits_of(config).max_bytes == limits_of(config).max_age == 0, "nothing goes while there is room"
    assert limits_of(config).min_free_bytes == 1 << 30


# --- properties -----------------------------------------------------------------------------------------------

small = st.integers(0, 60)
all_limits = st.builds(Limits, max_bytes=small, max_age=small.map(float), min_free_bytes=small, min_free_inodes=small)
spaces = st.builds(Space, free_bytes=small, total_bytes=st.just(1000), free_inodes=small, total_inodes=st.just(1000))


@st.composite
def all_entries(draw: st.DrawFn) -> list[Entry]:
    releases = draw(st.lists(st.integers(1, 5).map(str), unique=True, max_size=5))
    found = [
        Entry(id=id, kind="release", bytes=draw(small), inodes=draw(small), last_used=float(draw(small)))
        for id in releases
    ]
    for n in range(draw(st.integers(0, 12))):
        found.append(
            Entry(
                id=f"o{n}",
                kind=draw(st.sampled_from(("artifact", "artifact", "artifact", "damaged"))),
                bytes=draw(small),
                inodes=draw(small),
                last_used=float(draw(small)),
                pinned=draw(st.integers(0, 4)) == 0,
                in_use=draw(st.integers(0, 4)) == 0,
                releases=tuple(draw(st.lists(st.sampled_from(releases), unique=True)) if releases else ()),
            )
        )
    return draw(st.permutations(found))


def reached(entries: list[Entry], gone: list[Entry], space: Space) -> tuple[int, int, int]:
    """Bytes that remain, free bytes and free inodes when these have gone."""
    return (
        sum(e.bytes for e in entries) - sum(e.bytes for e in gone),
        space.free_bytes + sum(e.bytes for e in gone),
        space.free_inodes + sum(e.inodes for e in gone),
    )


def violated(limits: Limits, state: tuple[int, int, int]) -> set[str]:
    remaining, free, inodes = state
    checks = {
        "max_bytes": bool(limits.max_bytes) and remaining > limits.max_bytes,
        "min_free_bytes": free < limits.min_free_bytes,
        "min_free_inodes": inodes < limits.min_free_inodes,
    }
    return {name for name, broken in checks.items() if broken}


@given(all_entries(), all_limits, spaces, st.sampled_from((0.0, 0.05, 0.5)))
def test_what_is_pinned_or_in_use_never_goes_and_nothing_goes_twice(
    entries: list[Entry], limits: Limits, space: Space, slack: float
) -> None:
    victims = [v.entry for v in choose(entries, limits, space, now=60.0, slack=slack).victims]
    assert not any(v.pinned or v.in_use for v in victims)
    assert len({(v.kind, v.id) for v in victims}) == len(victims)
    assert all(v in entries for v in victims)


@given(all_entries(), all_limits, spaces, st.sampled_from((0.0, 0.05, 0.5)))
def test_the_limits_hold_afterwards_or_are_named_and_nothing_more_could_go(
    entries: list[Entry], limits: Limits, space: Space, slack: float
) -> None:
    choice = choose(entries, limits, space, now=60.0, slack=slack)
    gone = [v.entry for v in choice.victims]
    broken = violated(limits, reached(entries, gone, space))
    assert {u.limit for u in choice.unmet} == broken
    free = [e for e in entries if not (e.pinned or e.in_use)]
    if broken:
        assert len(gone) == len(free)
    if limits.max_age:
        assert all(e in gone for e in free if e.last_used < 60.0 - limits.max_age)


@given(all_entries(), all_limits, spaces)
def test_nothing_goes_that_no_limit_asks_for(entries: list[Entry], limits: Limits, space: Space) -> None:
    victims = choose(entries, limits, space, now=60.0).victims
    carried = {release for v in victims for release in v.entry.releases}
    gone: list[Entry] = []
    for victim in victims:
        alone = victim.entry.kind != "release" or victim.entry.id not in carried
        if victim.reason == "age":
            assert victim.entry.last_used < 60.0 - limits.max_age or not alone
        elif alone and not victim.entry.releases:
            assert violated(limits, reached(entries, gone, space)), f"{victim.entry.id} could have stayed"
        gone.append(victim.entry)


@given(all_entries(), all_limits, spaces)
def test_of_two_artifacts_the_one_that_was_used_less_recently_goes_first(
    entries: list[Entry], limits: Limits, space: Space
) -> None:
    gone = {v.entry.id for v in choose(entries, limits, space, now=60.0).victims}
    free = [e for e in entries if e.kind == "artifact" and not (e.pinned or e.in_use)]
    for one in free:
        for other in free:
            if one.last_used < other.last_used and other.id in gone:
                assert one.id in gone


@given(st.data(), all_entries(), all_limits, spaces)
def test_the_order_of_the_entries_does_not_matter(
    data: st.DataObject, entries: list[Entry], limits: Limits, space: Space
) -> None:
    shuffled = data.draw(st.permutations(entries))
    assert choose(shuffled, limits, space, now=60.0) == choose(entries, limits, space, now=60.0)


@given(all_entries(), all_limits, spaces)
def test_a_release_never_outlives_an_artifact_that_it_shares_files_with(
    entries: list[Entry], limits: Limits, space: Space
) -> None:
    victims = [v.entry for v in choose(entries, limits, space, now=60.0).victims]
    there = {e.id for e in entries if e.kind == "release"}
    gone = {v.id for v in victims if v.kind == "release"}
    assert all(there & set(v.releases) <= gone for v in victims)


# --- the disk as it is ----------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def add(store: ArtifactStore, name: str, size: int) -> str:
    staged = store.root.parent / f"dest-{name}"
    staged.mkdir()
    (staged / name).write_bytes(os.urandom(size))
    return store.add(staged, created_at=1.0, mtime=1, check=lambda: None).output_id


def disk_usage(*paths: Path) -> tuple[int, int]:
    """Bytes and inodes, as du counts them."""
    inodes: dict[int, int] = {}
    for root in paths:
        for path in (root, *root.rglob("*")):
            status = path.lstat()
            inodes[status.st_ino] = status.st_blocks * 512
    return sum(inodes.values()), len(inodes)


def artifacts_of(store: ArtifactStore) -> list[Path]:
    return [path for path in store.root.glob("??/*") if path.is_dir()]


def test_artifacts_are_counted_as_the_disk_counts_them(store: ArtifactStore, tmp_path: Path) -> None:
    outputs = [add(store, f"f{n}", 1000 * n) for n in range(5)]
    store.packed(outputs[0], "f0-1.tar.zst").write_bytes(b"x" * 50_000)
    surveyor = Surveyor(store, tmp_path / "releases")
    entries = surveyor.survey()
    assert {e.id for e in entries} == set(outputs)
    assert (sum(e.bytes for e in entries), sum(e.inodes for e in entries)) == disk_usage(*artifacts_of(store))
    assert surveyor.survey() == entries


def test_a_survey_sees_uses_pins_receipts_and_packed_forms_that_came_since(
    store: ArtifactStore, tmp_path: Path
) -> None:
    output = add(store, "f", 1000)
    surveyor = Surveyor(store, tmp_path / "releases")
    (before,) = surveyor.survey()
    os.utime(store.directory(output) / "manifest.json", (5, 5))
    (used,) = surveyor.survey()
    assert (used.last_used, used.bytes, used.pinned) == (5.0, before.bytes, False)
    store.pin(output, Pin(by="ann", at=1.0))
    (pinned,) = surveyor.survey()
    assert pinned.pinned
    store.unpin(output)
    assert surveyor.survey() == [used]
    store.packed(output, "f-1.tar.zst").write_bytes(b"x" * 50_000)
    (store.directory(output) / "builds" / "b.json").write_text("{}")
    (grown,) = surveyor.survey()
    assert (grown.bytes, grown.inodes) == disk_usage(store.directory(output))
    shutil.rmtree(store.directory(output))
    assert surveyor.survey() == []


def test_bytes_that_a_release_shares_with_artifacts_are_counted_once_and_go_together(
    store: ArtifactStore, tmp_path: Path
) -> None:
    surveyor, releases = Surveyor(store, tmp_path / "releases"), tmp_path / "releases"
    outputs = [add(store, f"f{n}", 1000) for n in range(3)]
    assert len(surveyor.survey()) == 3
    for output in outputs:
        store.packed(output, "p.tar.zst").write_bytes(os.urandom(20_000))
    gone = tmp_path / "packed form of an artifact that is gone"
    gone.write_bytes(os.urandom(30_000))
    for number, members in ((1, outputs[:2]), (2, outputs[1:])):
        release = releases / str(number)
        release.mkdir(parents=True)
        for output in members:
            os.link(store.packed(output, "p.tar.zst"), release / f"{output[:8]}.tar.zst")
        os.link(gone, release / "gone.tar.zst")
        (release / "SHA256SUMS").write_text("sums")
        os.utime(release, (number, number))
    gone.unlink()
    (releases / ".3.tmp").mkdir()

    entries = {e.id: e for e in surveyor.survey()}

    total = disk_usage(*artifacts_of(store), releases / "1", releases / "2")
    assert (sum(e.bytes for e in entries.values()), sum(e.inodes for e in entries.values())) == total
    assert [set(entries[output].releases) for output in outputs] == [{"1"}, {"1", "2"}, {"2"}]
    assert entries["2"].bytes > entries["1"].bytes + 20_000, "what nobody else has is counted with the newest release"
    victim = entries[outputs[0]]
    store.holds.withdraw(outputs[0])
    assert surveyor.remove(entries["1"])
    assert surveyor.remove(victim)
    after = disk_usage(*artifacts_of(store), releases / "2")
    assert total[0] - after[0] == victim.bytes + entries["1"].bytes, "what is counted as freed is free"
    assert not surveyor.remove(victim)
    assert not surveyor.remove(entries["1"])


def test_damaged_artifacts_are_counted_and_can_go(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, "f", 10_000)
    path = store.tree(output) / "f"
    path.chmod(0o644)
    path.write_text("x")
    place = store.set_aside(output)
    assert place is not None
    surveyor = Surveyor(store, tmp_path / "releases")
    (found,) = surveyor.survey()
    assert (found.kind, found.id) == ("damaged", place.name)
    assert (found.bytes, found.inodes) == disk_usage(place)
    assert surveyor.remove(found)
    assert not place.exists()


def test_a_directory_that_is_no_artifact_any_more_is_counted_and_can_go(store: ArtifactStore, tmp_path: Path) -> None:
    output = add(store, "f", 10_000)
    (store.directory(output) / "manifest.json").unlink()
    surveyor = Surveyor(store, tmp_path / "releases")
    (found,) = surveyor.survey()
    assert found.id == output
    store.holds.withdraw(output)
    assert surveyor.remove(found)
    assert not store.directory(output).exists()


def test_what_an_interrupted_collection_left_of_releases_is_removed(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "releases" / ".4.gone.tmp" / "deep").mkdir(parents=True)
    (tmp_path / "releases" / "5").mkdir()
    Surveyor(store, tmp_path / "releases").remove_temporaries()
    assert os.listdir(tmp_path / "releases") == ["5"]


def test_the_space_is_that_of_the_artifacts_file_system(store: ArtifactStore, tmp_path: Path) -> None:
    space = Surveyor(store, tmp_path / "releases").space()
    found = os.statvfs(tmp_path)
    assert space.total_bytes == found.f_blocks * found.f_frsize
    assert 0 < space.free_bytes <= space.total_bytes
