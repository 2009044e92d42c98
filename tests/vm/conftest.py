"""Fixtures of the tests in a virtual machine; see `vm`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vm.guest import Guest
from vm.image import Unavailable


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "logs(*patterns): errors in the daemon's log that the test expects")


def switched_off() -> Guest:
    try:
        return Guest()
    except Unavailable as error:
        pytest.exit(f"make vm-test: {error}", returncode=1)


@pytest.fixture(scope="session")
def shared_vm() -> Iterator[Guest]:
    with switched_off() as machine:
        yield machine.boot()


@pytest.fixture
def vm(shared_vm: Guest, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """The machine of all tests, with an active daemon. The test fails for what is left of builds, and for errors that
    the daemon logged, except those that match `@pytest.mark.logs("regular expression", …)`.
    """
    shared_vm.refresh()
    yield shared_vm
    marker = request.node.get_closest_marker("logs")
    assert shared_vm.leftovers() == ""
    assert shared_vm.faults(*(marker.args if marker else ())) == []


@pytest.fixture
def own_vm() -> Iterator[Guest]:
    """A machine for this test alone, booted."""
    with switched_off() as machine:
        yield machine.boot()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    machines = [value for name, value in getattr(item, "funcargs", {}).items() if name in ("vm", "own_vm")]
    if report.failed and machines and machines[0].is_on:
        report.sections.append(("the daemon's log", "\n".join(machines[0].logged(form="short")[-80:])))
    return report
