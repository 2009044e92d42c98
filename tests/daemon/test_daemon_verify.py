"""`buildctl verify`: built again elsewhere and later, a package leaves the same behind, or the files that differ."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import BACKENDS, Daemon, RecipeRepository, booted, named

from buildd.protocol import RunView


@pytest.fixture(scope="module", params=BACKENDS)
def boxed(request: pytest.FixtureRequest) -> Iterator[Daemon]:
    with booted(backend=request.param) as daemon:
        yield daemon


def keep(command: str) -> dict[str, str]:
    return {"stage": f"mkdir -p $DESTDIR$PREFIX/share; {command} > $DESTDIR$PREFIX/share/out"}


def latest(daemon: Daemon) -> RunView:
    return daemon.run(daemon.call("run.list", {"limit": 1})["runs"][0]["number"])


def test_a_reproducible_package_is_said_to_be_so_and_stays_up_to_date(
    boxed: Daemon, repository: RecipeRepository
) -> None:
    repository.package("base", phases=keep("echo base"))
    repository.package("app", depends=["base"], phases={"stage": "mkdir -p $DESTDIR$PREFIX/lib"}).commit()
    assert boxed.build(repository).state == "completed"

    done = boxed.buildctl("verify", "base")

    assert done.returncode == 0, done.stderr
    assert "base 0 is reproducible" in done.stdout
    again = boxed.build(repository)
    assert again.stats.skipped == again.stats.total == 2


@pytest.mark.parametrize("command", ["pwd", "date +%N"])
def test_what_differs_is_named_and_the_first_output_stays_in_use(
    boxed: Daemon, repository: RecipeRepository, command: str
) -> None:
    repository.package("odd", phases=keep(command)).commit()
    first = named(boxed.build(repository), "odd")

    done = boxed.buildctl("verify", "odd")

    assert done.returncode == 1
    assert "odd 0 is not reproducible: 1 differ" in done.stdout
    assert "share/out (content" in done.stdout
    view = latest(boxed)
    record = boxed.record(named(view, "odd").build_id)
    assert (view.state, record.reason) == ("failed", "not_reproducible")
    assert record.output_id is not None
    again = named(boxed.build(repository), "odd")
    assert (again.state, again.artifact) == ("skipped", first.artifact)


def test_what_is_not_built_from_its_present_sources_has_nothing_to_be_compared_with(
    boxed: Daemon, repository: RecipeRepository
) -> None:
    repository.package("new", phases=keep("echo 1")).commit()
    done = boxed.buildctl("verify", f"{repository}//new")
    assert done.returncode == 1
    assert "nothing to compare with" in done.stdout
    assert latest(boxed).state == "failed"


def test_a_package_that_was_never_built_is_not_found(boxed: Daemon) -> None:
    assert boxed.buildctl("verify", "nothing").returncode == 3
