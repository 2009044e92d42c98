"""The man pages and the README say what the code has: nothing is missing, and nothing is there that is not.

What a page documents is told by its mdoc: keys, parameters and fields are items `.It Va`, methods and objects
are subsections `.Ss`, kinds of events and phases are items `.It Ic`, states and reasons are items `.It Cm`, and
codes are items that begin with a number.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

import buildd.__main__
import ctl.failure
from buildd import config, errors, model, protocol
from buildd.control import socket as control_socket
from buildd.execute.build import SOURCE_DATE_EPOCH, _Builder
from buildd.planner import states
from buildd.recipes import native, presets
from ctl import verbs
from ctl.failure import CtlError
from ctl.mcp.tools import TOOLS

ROOT = Path(__file__).parent.parent
MAN = ROOT / "man"
PAGES = sorted(path.name for path in MAN.glob("*.[1-9]"))


# --- reading mdoc -----------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (MAN / name).read_text()


def sections(text: str, macro: str) -> dict[str, str]:
    """Title to text of every section (`Sh`) or subsection (`Ss`, which a `Sh` ends as well)."""
    parts = re.split(rf"^\.{macro} +(.+)\n", text, flags=re.MULTILINE)
    bodies = (
        parts[2::2] if macro == "Sh" else [re.split(r"^\.Sh ", body, flags=re.MULTILINE)[0] for body in parts[2::2]]
    )
    return dict(zip(parts[1::2], bodies, strict=True))


def items(text: str, macro: str) -> list[str]:
    """The words that items of this macro begin with."""
    return re.findall(rf"^\.It {macro} (\S+)", text, flags=re.MULTILINE)


def item_texts(text: str, macro: str) -> dict[str, str]:
    """Word to text of every item of this macro, up to the next item or the end of the list."""
    parts = re.split(rf"^\.It {macro} (\S+).*\n", text, flags=re.MULTILINE)
    bodies = [re.split(r"^\.(?:It|El)\b", body, flags=re.MULTILINE)[0] for body in parts[2::2]]
    return dict(zip(parts[1::2], bodies, strict=True))


def numbered_items(text: str) -> list[tuple[int, str]]:
    """Number and the word after it (or nothing) of every item that begins with a number."""
    found = re.findall(r"^\.It (-?\d+)(?: (\w+))?$", text, flags=re.MULTILINE)
    return [(int(number), word) for number, word in found]


def long_options(text: str) -> set[str]:
    return {f"--{name}" for name in re.findall(r"\bFl -([a-z][a-z-]*)", text)}


def displays(text: str) -> list[str]:
    """What stands in literal displays, as a reader sees it."""
    found = re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed$", text, flags=re.MULTILINE | re.DOTALL)
    return [display.replace("\\e", "\\").replace("\\&", "") for display in found]


def same(documented: Iterable[str], real: Iterable[str]) -> None:
    """Fails naming what is missing, what does not exist, and what is there twice."""
    documented, real = list(documented), set(real)
    assert {"missing": real - set(documented), "unknown": set(documented) - real} == {
        "missing": set(),
        "unknown": set(),
    }
    assert len(documented) == len(set(documented)), "documented twice"


# --- buildd.conf(5) ---------------------------------------------------------------------------------------

CONF = sections(sections(page("buildd.conf.5"), "Sh")["KEYS"], "Ss")


def test_every_section_of_the_configuration_is_documented() -> None:
    same((title.strip("[]") for title in CONF), config.SECTIONS)


@pytest.mark.parametrize("section", config.SECTIONS)
def test_every_key_of_the_configuration_is_documented(section: str) -> None:
    same(items(CONF[f"[{section}]"], "Va"), config.SECTIONS[section].__struct_fields__)


@pytest.mark.parametrize(
    ("section", "key"), [(s, f.name) for s, m in config.SECTIONS.items() for f in msgspec.structs.fields(m)]
)
def test_defaults_of_the_configuration_are_documented_as_they_are(section: str, key: str) -> None:
    text = item_texts(CONF[f"[{section}]"], "Va")[key]
    field = next(f for f in msgspec.structs.fields(config.SECTIONS[section]) if f.name == key)
    default = re.search(r"^Default:\s+(.*?)\.?$", text, flags=re.MULTILINE)
    assert default is not None, "no default is documented"
    if field.default is msgspec.NODEFAULT or (section, key) in {
        ("workers", "max_concurrent_builds"),
        ("workers", "jobs"),
        ("limits", "memory"),
    }:
        return  # depends on the machine
    said = default[1]
    if isinstance(field.default, tuple):
        assert field.default == (() if said == "empty" else tuple(said.split(", ")))
    elif isinstance(field.default, (str, dict)) or field.default_factory is not msgspec.NODEFAULT:
        assert said == (field.default or "empty" if isinstance(field.default, str) else "empty")
    else:
        assert config._text_value(section, key, said, "the page") == field.default


@pytest.mark.parametrize(
    ("section", "key"), [(s, f.name) for s, m in config.SECTIONS.items() for f in msgspec.structs.fields(m)]
)
def test_allowed_values_of_the_configuration_are_documented(section: str, key: str) -> None:
    kind = next(f.type for f in msgspec.structs.fields(config.SECTIONS[section]) if f.name == key)
    text = item_texts(CONF[f"[{section}]"], "Va")[key]
    for value in get_args(kind) if get_origin(kind) is Literal else ():
        assert re.search(rf"\b{value}\b", text), f"{value} is not documented"


@pytest.mark.parametrize("number", range(len(displays(page("buildd.conf.5")))))
def test_examples_of_the_configuration_are_accepted(number: int, tmp_path: Path) -> None:
    file = tmp_path / "buildd.conf"
    file.write_text(displays(page("buildd.conf.5"))[number])
    config.load(files=[file], environ={})


def test_what_a_reload_changes_is_documented() -> None:
    from buildd import app

    text = sections(page("buildd.conf.5"), "Ss")["Reloading"]
    assert set(re.findall(r"\w+", " ".join(re.findall(r"^\.Em (.*)$", text, flags=re.MULTILINE)))) == {
        *app._RELOADABLE,
        "daemon",
    }
    assert set(re.findall(r"\w+", " ".join(re.findall(r"^\.Va (.*)$", text, flags=re.MULTILINE)))) == set(
        app._RELOADABLE_DAEMON
    )


# --- buildd-protocol(7) -----------------------------------------------------------------------------------

PROTOCOL = sections(page("buildd-protocol.7"), "Sh")
DOCUMENTED_METHODS = sections(PROTOCOL["METHODS"], "Ss")
OBJECTS = sections(PROTOCOL["OBJECTS"], "Ss")


def struct_in(kind: Any) -> tuple[Any, str]:
    """The struct that a field holds and how its fields are reached (`.` or `[].`); None for other fields."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, "."
    for part in get_args(kind):
        found, how = struct_in(part)
        if found is not None:
            return found, "[]." if get_origin(kind) is tuple else how
    return None, ""


def fields_of(kind: Any) -> Iterator[str]:
    """The documented names of an object's fields: those of objects without a section of their own are spelled out."""
    for field in msgspec.structs.fields(kind):
        inner, how = struct_in(field.type)
        if inner is None or inner.__name__ in OBJECTS:
            yield field.encode_name
        else:
            yield from (f"{field.encode_name}{how}{name}" for name in fields_of(inner))


def all_structs() -> dict[str, Any]:
    return {
        name: kind
        for module in (model, protocol)
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    }


def test_every_method_is_documented() -> None:
    same(DOCUMENTED_METHODS, protocol.METHODS)


@pytest.mark.parametrize("name", protocol.METHODS)
def test_every_method_is_documented_with_its_right_parameters_and_answer(name: str) -> None:
    method = protocol.METHODS[name]
    text = DOCUMENTED_METHODS[name]
    assert text.startswith(f"Right: {method.right}.\n")
    _, parameters, answer = re.split(r"^\.Em (?:Parameters|Answer)\b", text, flags=re.MULTILINE)
    same(items(parameters, "Va"), method.params.__struct_fields__)
    if method.result.__name__ in OBJECTS:
        assert f".Sx {method.result.__name__}" in answer
        same(items(answer, "Va"), ())
    else:
        same(items(answer, "Va"), fields_of(method.result))


@pytest.mark.parametrize("name", protocol.METHODS)
def test_defaults_of_parameters_are_documented_as_they_are(name: str) -> None:
    text = DOCUMENTED_METHODS[name]
    for field in msgspec.structs.fields(protocol.METHODS[name].params):
        line = re.search(rf"^\.It Va {field.name} Pq (.*)$", text, flags=re.MULTILINE)
        assert line is not None
        said = line[1].partition("default ")[2]
        if field.required:
            assert not said
        else:
            values = {"": None, "true": True, "false": False, "null": None, "empty": () if field.default == () else ""}
            assert said
            assert (values[said] if said in values else float(said)) == field.default


@pytest.mark.parametrize("name", OBJECTS)
def test_every_object_is_documented_with_its_fields(name: str) -> None:
    same(items(OBJECTS[name], "Va"), fields_of(all_structs()[name]))


def test_limits_of_the_protocol_are_documented() -> None:
    limits = sections(PROTOCOL["CONNECTING"], "Ss")["Limits"]
    for number in (
        protocol.MAX_MESSAGE_BYTES,
        protocol.MAX_POLL_S,
        control_socket.MAX_PER_PEER,
        control_socket.MAX_IN_FLIGHT,
        control_socket._SEND_QUEUE,
    ):
        assert re.search(rf"\b{number:.0f}\b", limits), f"{number} is not documented"
    assert re.search(rf"\b{protocol.MAX_CHUNK_BYTES}\b", DOCUMENTED_METHODS["build.log"])
    assert re.search(rf"\b{protocol.MAX_CHUNK_BYTES}\b", DOCUMENTED_METHODS["artifact.read"])
    assert re.search(rf"\b{protocol.MAX_EVENTS}\b", DOCUMENTED_METHODS["events.poll"])
    assert f"version {protocol.VERSION} of the protocol" in page("buildd-protocol.7")


def test_every_error_code_is_documented() -> None:
    classes = {
        (kind.code, name)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.BuilddError)
    }
    codes = {(value, name) for name, value in vars(protocol).items() if isinstance(value, int) and value < 0}
    documented = numbered_items(PROTOCOL["ERROR CODES"])
    same(map(str, documented), map(str, classes | codes))


def test_every_failure_reason_is_documented() -> None:
    same(items(PROTOCOL["FAILURE REASONS"], "Cm"), errors.FAILURE_REASONS)


def test_every_state_is_documented() -> None:
    by_title = sections(PROTOCOL["STATES"], "Ss")
    runs = [kind for kind in vars(states).values() if isinstance(kind, type) and issubclass(kind, states._State)]
    same(
        items(by_title["States of a run"], "Cm"),
        (str(kind.__struct_config__.tag) for kind in runs if kind is not states._State),
    )
    same(items(by_title["States of a package"], "Cm"), get_args(model.PackageState))
    build = item_texts(OBJECTS["BuildRecord"], "Va")["state"]
    same(re.findall(r"^\.Ql (\w+)", build, flags=re.MULTILINE), get_args(model.BuildState))


def test_every_kind_of_event_is_documented() -> None:
    same(items(PROTOCOL["EVENTS"], "Ic"), set(emitted_kinds()))


def test_json_in_the_protocol_page_is_json_with_the_fields_of_the_objects() -> None:
    checked = 0
    for display in displays(PROTOCOL["EXAMPLES"]):
        text, decoder = display.strip(), json.JSONDecoder()
        while text.startswith("{"):
            found, end = decoder.raw_decode(text)
            text = text[end:].strip()
            for name in ("Event", "RunView", "BuildRecord", "LogChunk", "StartResult"):
                if set(found) == set(all_structs()[name].__struct_fields__):
                    checked += 1
                    break
            else:
                pytest.fail(f"an object that does not exist: {sorted(found)}")
    assert checked >= 5


# --- the kinds of events, from the code -------------------------------------------------------------------


def emitted_kinds() -> Iterator[str]:
    """What is passed to `emit` anywhere in the daemon. Fails for a call whose kinds cannot be told."""
    modules = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "buildd").rglob("*.py"))}
    calls = [node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.Call)]
    for path, tree in modules.items():
        for function, call in emit_calls(tree, None):
            kind = call.args[0] if call.args else None
            found = list(constants(kind, function, calls))
            if not found and not (isinstance(function, ast.Lambda) and isinstance(kind, ast.Name)):
                pytest.fail(f"{path}:{call.lineno}: which kinds of events are emitted here?")
            yield from found


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def emit_calls(node: ast.AST, function: Function | None) -> Iterator[tuple[Function | None, ast.Call]]:
    """Every call of something named `emit`, with the function it stands in."""
    for child in ast.iter_child_nodes(node):
        inner = child if isinstance(child, Function) else function
        if isinstance(child, ast.Call) and called(child) == "emit":
            yield function, child
        yield from emit_calls(child, inner)


def called(call: ast.Call) -> str:
    """Name of the function or method, without leading underscores."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    return str(name).lstrip("_")


def constants(kind: ast.AST | None, function: Function | None, calls: list[ast.Call]) -> Iterator[str]:
    """The strings that an expression can be: a constant, or made of a parameter or a local variable."""
    if isinstance(kind, ast.Constant) and isinstance(kind.value, str):
        yield kind.value
    elif isinstance(kind, ast.IfExp):
        yield from constants(kind.body, function, calls)
        yield from constants(kind.orelse, function, calls)
    elif isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
        yield from constants(kind.value, function, calls)
    elif isinstance(kind, ast.Dict):
        for value in kind.values:
            yield from constants(value, function, calls)
    elif isinstance(kind, ast.JoinedStr):
        prefix, variable = kind.values
        assert isinstance(prefix, ast.Constant)
        assert isinstance(variable, ast.FormattedValue)
        for value in constants(variable.value, function, calls):
            yield prefix.value + value
    elif isinstance(kind, ast.Name) and isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == [kind.id]:
                yield from constants(node.value, function, calls)
        names = [argument.arg for argument in function.args.args if argument.arg != "self"]
        if kind.id in names:
            for call in calls:
                if called(call) == function.name.lstrip("_") and len(call.args) > names.index(kind.id):
                    yield from constants(call.args[names.index(kind.id)], None, calls)


# --- buildd-recipe(5) -------------------------------------------------------------------------------------

RECIPE = sections(page("buildd-recipe.5"), "Sh")


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("PACKAGE KEYS", native._PackageTable),
        ("SOURCE KEYS", native._SourceTable),
        ("LIMIT KEYS", native._LimitsTable),
    ],
)
def test_every_key_of_a_recipe_is_documented(section: str, table: type[msgspec.Struct]) -> None:
    same(items(RECIPE[section], "Va"), table.__struct_fields__)


def test_every_phase_is_documented_in_order() -> None:
    assert items(RECIPE["PHASES"], "Ic") == list(model.PHASES)


def test_every_preset_is_documented_with_its_commands() -> None:
    documented = sections(RECIPE["PRESETS"], "Ss")
    same(documented, presets.PRESETS)
    for name, phases in presets.PRESETS.items():
        lines = [f"{phase}:" for phase in phases] + [line for text in phases.values() for line in text.splitlines()]
        shown = "".join(displays(documented[name])).splitlines()
        assert sorted(line.strip() for line in shown) == sorted(line.strip() for line in lines)


def test_every_variable_of_a_phase_is_documented() -> None:
    from buildd.execute.proctree import COOKIE

    set_by_builder = re.findall(r'"([A-Z_]+)": ', inspect.getsource(_Builder._environment))
    environment = sections(RECIPE["PHASES"], "Ss")["Environment"]
    documented = [
        name
        for line in re.findall(r"^\.It Ev (.*)$", environment, re.MULTILINE)
        for name in re.findall(r"[A-Z_]{2,}", line)
    ]
    same(documented, {*set_by_builder, COOKIE})
    assert str(SOURCE_DATE_EPOCH) in environment


def test_formats_and_sizes_of_recipes_are_documented() -> None:
    formats = item_texts(RECIPE["PACKAGE KEYS"], "Va")["formats"]
    assert re.findall(r"^\.Ql (\w+)", formats, flags=re.MULTILINE) == list(native.FORMATS)
    assert f"at most {native.MAX_PHASE_BYTES} bytes" in page("buildd-recipe.5")
    assert f"{native.MAX_RECIPE_BYTES >> 20} MiB" in RECIPE["LIMITS"]


class AnyTree:
    """A revision with one recipe at its top, in which every directory exists."""

    def __init__(self, recipe: str) -> None:
        self.recipe = recipe

    def files_named(self, name: str) -> Iterable[tuple[str, str]]:
        return [(name, "0" * 40)]

    def read(self, blob: str, limit: int) -> bytes:
        return self.recipe.encode()

    def subtree(self, path: str) -> str:
        return "0" * 40


def recipes_shown() -> list[str]:
    readme = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [text for text in (*displays(page("buildd-recipe.5")), *readme) if "[package." in text]


@pytest.mark.parametrize("recipe", recipes_shown())
def test_recipes_that_are_shown_are_accepted(recipe: str) -> None:
    found = native.discover(AnyTree(recipe), native.Origin(repository="/r", store="/r/.git"))
    assert {package.name for package in found["buildd.toml"]} == set(tomllib.loads(recipe)["package"])


# --- buildctl(1) and buildd(8) ----------------------------------------------------------------------------

VERBS = sections(sections(page("buildctl.1"), "Sh")["VERBS"], "Ss")


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers_of(child)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = {option for p in parsers_of(parser) for action in p._actions for option in action.option_strings}
    return {option for option in found if option.startswith("--")}


def verb_parser(name: str) -> argparse.ArgumentParser:
    module = importlib.import_module(verbs.MODULES[name][0])
    parser = argparse.ArgumentParser(prog=name)
    module.VERBS[name].arguments(parser)
    return parser


def test_every_verb_is_documented() -> None:
    same(VERBS, verbs.MODULES)


@pytest.mark.parametrize("name", verbs.MODULES)
def test_every_option_and_action_of_a_verb_is_documented(name: str) -> None:
    parser = verb_parser(name)
    common = argparse.ArgumentParser()
    verbs.connection_options(common)
    shared = options_of(common)
    if importlib.import_module(verbs.MODULES[name][0]).VERBS[name].own_timeout:
        shared.discard("--timeout")
    same(long_options(VERBS[name]), options_of(parser) - shared)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            same(items(VERBS[name], "Ic"), action.choices)


@pytest.mark.parametrize("name", verbs.MODULES)
def test_every_short_option_of_a_verb_is_documented(name: str) -> None:
    actions = [action for parser in parsers_of(verb_parser(name)) for action in parser._actions]
    short = {option for action in actions for option in action.option_strings if len(option) == 2} - {"-h"}
    same({f"-{letter}" for letter in re.findall(r"\bFl ([a-z])\b", VERBS[name])}, short)


def test_every_tool_for_ai_clients_is_documented_with_its_arguments() -> None:
    tools = {tool.name: tool for tool in TOOLS}
    documented = item_texts(VERBS["mcp"], "Ic")
    same(documented, tools)
    for line in re.findall(r"^\.It Ic (.*)$", VERBS["mcp"], re.MULTILINE):
        name, *arguments = re.findall(r"\w+", re.sub(r"\b(?:Ar|Op)\b", "", line))
        same(arguments, tools[name].arguments.__struct_fields__)


def test_options_of_all_verbs_are_documented() -> None:
    common = argparse.ArgumentParser()
    verbs.connection_options(common)
    same(items(sections(page("buildctl.1"), "Ss")["Options of all verbs"], "Fl"), ["-socket", "-timeout", "h"])
    assert options_of(common) == {"--socket", "--timeout", "--help"}


def commands_shown() -> list[str]:
    """What follows `buildctl` wherever a command is shown: in the README, the pages and the help of the verbs."""
    texts = [(ROOT / "README.md").read_text()]
    for name in PAGES:
        texts += [*displays(page(name)), *re.findall(r"^\.Dl (.*)$", page(name).replace("\\&", ""), re.MULTILINE)]
    texts += [importlib.import_module(module).VERBS[name].examples for name, (module, _) in verbs.MODULES.items()]
    return [
        command.strip()
        for text in texts
        for command in re.findall(r"(?:^ *|\$ |\$\(|&& )buildctl ([^\n#&|>)]*)", text, flags=re.MULTILINE)
    ]


@pytest.mark.parametrize("command", dict.fromkeys(commands_shown()))
def test_commands_that_are_shown_are_understood(command: str) -> None:
    try:
        verbs.parse(shlex.split(command))
    except (SystemExit, CtlError) as error:
        pytest.fail(f"buildctl {command}: {error}")


def test_every_exit_code_of_the_client_is_documented() -> None:
    codes = {value for name, value in vars(ctl.failure).items() if name.isupper() and isinstance(value, int)}
    documented = numbered_items(sections(page("buildctl.1"), "Sh")["EXIT STATUS"])
    same((str(number) for number, _ in documented), map(str, codes))


def test_every_option_of_the_daemon_is_documented() -> None:
    description = sections(page("buildd.8"), "Sh")["DESCRIPTION"]
    documented = {
        f"-{name}"
        for line in re.findall(r"^\.It Fl (.*)$", description, re.MULTILINE)
        for name in re.findall(r"(-[a-z][a-z-]*)", line)
    }
    same(documented, options_of(buildd.__main__._parser()))


def test_every_exit_code_of_the_daemon_is_documented() -> None:
    documented = numbered_items(sections(page("buildd.8"), "Sh")["EXIT STATUS"])
    real = {0, buildd.__main__.EXIT_CANNOT_START, errors.InvalidInput.code, buildd.__main__.EXIT_OUT_OF_TIME}
    same((str(number) for number, _ in documented), map(str, real))


def test_every_systemd_file_is_documented() -> None:
    directory = ROOT / "systemd"
    files = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    same(items(sections(page("buildd.8"), "Sh")["UNDER SYSTEMD"], "Pa"), files)


# --- all pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_has_nothing_to_complain_about(name: str) -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    ran = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(MAN / name)], capture_output=True, text=True)
    assert (ran.stdout + ran.stderr, ran.returncode) == ("", 0)


@pytest.mark.parametrize("name", PAGES)
def test_references_between_pages_lead_somewhere(name: str) -> None:
    text = page(name)
    titles = {*sections(text, "Sh"), *sections(text, "Ss")}
    for reference in re.findall(r"\bSx (.+?)(?: [.,;:)]+)*$", text, flags=re.MULTILINE):
        if "in\n.Xr buildd" not in text.partition(f".Sx {reference}")[2][:40]:
            assert reference in titles, f"there is no section {reference}"
    for other, number in re.findall(r"\.Xr (build[a-z.-]+) (\d)", text):
        assert f"{other}.{number}" in PAGES


def test_the_readme_points_to_things_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), f"{target} does not exist"
    for target in re.findall(r"\bmake ([a-z]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name in PAGES:
        assert f"(man/{name})" in text, f"{name} is not linked"


def test_the_changelog_has_a_section_for_what_comes_next() -> None:
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()
