"""The text of a map: never over its budget, well used, in the order of ranks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings, strategies as st
from repomap_maps import Repository

from buildd.repomap.outline import Line, estimate, outline

words = st.text("abcxyz_ (),:é→", min_size=1, max_size=60)


def recount(text: str) -> int:
    """Four bytes or one word to a token, whichever gives more; written once more, not taken from there."""
    return max((len(text.encode()) + 3) // 4, len(re.findall(r"[^\W]+", text)))


@st.composite
def maps(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, Line]]]:
    paths = draw(st.lists(st.text("abc/é", min_size=1, max_size=30), min_size=1, max_size=5))
    definitions: list[tuple[int, Line]] = []
    for _ in range(draw(st.integers(0, 40))):
        file = draw(st.integers(0, len(paths) - 1))
        inside = [line for other, line in definitions if other == file]
        outer = draw(st.sampled_from([None, *inside]))
        line = draw(st.integers(outer.line if outer else 1, 400))
        signature = draw(words) * draw(st.sampled_from([1, 1, 1, 30]))
        depth, above = (outer.depth + 1, outer.number) if outer else (0, -1)
        definitions.append((file, Line(len(definitions), line, above, depth, signature)))
    return paths, definitions


@given(maps(), st.integers(0, 600), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_a_text_never_costs_more_than_its_budget(
    made: tuple[list[str], list[tuple[int, Line]]], budget: int, random: object
) -> None:
    paths, definitions = made
    order = list(range(len(definitions)))
    random.shuffle(order)  # type: ignore[attr-defined]
    text = outline(
        order,
        budget,
        line_of=lambda number: definitions[number][1],
        file_of=lambda number: definitions[number][0],
        path_of=paths.__getitem__,
        best_first=sorted,
        rest=lambda: range(len(paths)),
    )
    assert recount(text.text) == text.tokens == estimate(text.text) <= budget
    assert text.text.count("\n") >= text.definitions + text.files


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("large"))
    files = {}
    for number in range(60):
        methods = "".join(
            f"    def method_{number}_{at}(self, argument: int) -> str:\n        return other_{at}()\n"
            for at in range(20)
        )
        files[f"package/module_{number}.py"] = f"class Thing{number}(Base):\n{methods}\ndef other_{number}(): pass\n"
    repository.commit(files)
    return repository


def test_a_budget_is_used_well(large: Repository) -> None:
    made = large.map()
    for tokens in (1, 2, 5, 16, 64, 256, 1024, 4096, 16384):
        text = made.text(tokens)
        assert recount(text.text) == text.tokens <= tokens
        assert text.tokens >= 0.9 * tokens or tokens < 64
    everything = made.text(65536)
    assert everything.definitions == made.built.definitions
    assert everything.files == made.built.files
    assert made.text(0).text == ""


def test_definitions_stand_under_what_encloses_them_with_their_lines(repository: Repository) -> None:
    repository.commit(
        {
            "a.py": "class Outer:\n    x = 1\n    class Inner:\n        def called_by_others(self): pass\n",
            "b.py": "import a\ncalled_by_others()\n",
            "c.txt": "called_by_others\n",
        }
    )
    text = repository.map().text(1000).text
    assert text.startswith("a.py\n   1 class Outer\n⋮\n   3   class Inner\n   4     def called_by_others(self)\n")
    assert text.splitlines()[-2:] == ["b.py", "c.txt"] or text.splitlines()[-2:] == ["c.txt", "b.py"]


def test_the_published_text_is_that_of_the_configured_budget(large: Repository) -> None:
    made = large.map(tokens=300)
    assert (made.directory / "map.txt").read_text() == made.text(300).text


def test_a_signature_without_end_is_shortened(repository: Repository) -> None:
    arguments = ",\n".join(f"argument_number_{at}" for at in range(2000))
    repository.commit({"a.py": f"def f({arguments}): pass\n"})
    (line,) = [line for line in repository.map().text(1000).text.splitlines() if "def f(" in line]
    assert len(line) < 200
    assert line.endswith("…")
