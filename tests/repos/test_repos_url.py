"""What is a repository URL, and what is not."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given, strategies as st

from buildd.errors import InvalidInput
from buildd.repos.url import SCHEMES, parse_url


@pytest.mark.parametrize(
    ("text", "normalized", "fetch", "scheme", "name"),
    [
        ("https://Example.org/a/jq.git", "https://example.org/a/jq.git", None, "https", "jq"),
        ("HTTPS://example.org:443//a/jq.git//", "https://example.org/a/jq.git", None, "https", "jq"),
        ("https://example.org:8443/jq", "https://example.org:8443/jq", None, "https", "jq"),
        ("git://example.org:9418/x", "git://example.org/x", None, "git", "x"),
        ("ssh://git@example.org:22/a/b", "ssh://git@example.org/a/b", None, "ssh", "b"),
        ("git@Example.org:a/b.git", "git@example.org:a/b.git", None, "ssh", "b"),
        ("git@example.org:/srv/b.git", "ssh://git@example.org/srv/b.git", None, "ssh", "b"),
        ("example.org:b", "example.org:b", None, "ssh", "b"),
        ("https://[::1]:8080/x", "https://[::1]:8080/x", None, "https", "x"),
        ("/srv//git/../x.git/", "file:///srv/x.git", "/srv/x.git", "file", "x"),
        ("file:///srv/a%20b", "file:///srv/a b", "/srv/a b", "file", "a b"),
        ("file://localhost/srv/x/.git", "file:///srv/x/.git", "/srv/x/.git", "file", "x"),
    ],
)
def test_each_form_has_one_identity(text: str, normalized: str, fetch: str | None, scheme: str, name: str) -> None:
    url = parse_url(text, SCHEMES)
    assert (url.normalized, url.fetch_url, url.scheme, url.name) == (normalized, fetch or normalized, scheme, name)
    assert parse_url(url.normalized, SCHEMES).directory == url.directory


@pytest.mark.parametrize(
    "text",
    [
        "",
        " https://example.org/x",
        "https://example.org/x\n",
        "https://example.org/x\0y",
        "https://example.org/\x1b[31m",
        "https://example.org/\u202egit",
        "https://example.org/%0aHost:x",
        "https://example.org/" + "x" * 2100,
        "-oProxyCommand=true",
        "--upload-pack=true",
        "ext::sh -c true",
        "fd::17",
        "::",
        "ftp://example.org/x",
        "javascript://x/y",
        "https://",
        "https:///x",
        "https://example.org",
        "https://example.org/",
        "https://-example.org/x",
        "https://exa mple.org/x",
        "https://example.org:0/x",
        "https://example.org:99999/x",
        "https://example.org:8o/x",
        "https://example.org/a/../b",
        "https://example.org/a/%2e%2e/b",
        "https://example.org/x?token=1",
        "https://example.org/x#y",
        "ssh://-oProxyCommand=x/y",
        "ssh://-l@example.org/y",
        "-l@example.org:y",
        "git@-example.org:y",
        "git@example.org:-y",
        "git://user@example.org/x",
        "file://example.org/x",
        "file://x",
        "relative/path",
        "./x",
        "name",
        "\ud800://x/y",
        "C:\\x\ny",
    ],
)
def test_what_is_not_a_repository_url_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_url(text, SCHEMES)


@pytest.mark.parametrize("text", ["http://example.org/x", "git@example.org:x", "/srv/x", "git://example.org/x"])
def test_a_scheme_that_is_not_allowed_is_refused_and_the_allowed_ones_are_named(text: str) -> None:
    with pytest.raises(InvalidInput, match="https") as caught:
        parse_url(text, ["https"])
    assert "https" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cret-token@example.org/x",
        "https://s3cret-token@example.org/x",
        "https://user:s3cret-token%2f@example.org:8443/x",
    ],
)
def test_credentials_are_split_off(text: str) -> None:
    url = parse_url(text, SCHEMES)
    assert url.credentials is not None
    assert "s3cret-token" in url.credentials.password + url.credentials.username
    assert "s3cret" not in repr(url) + str(url) + url.normalized + url.fetch_url + url.directory + url.host
    assert url.directory == parse_url(re.sub("//.*@", "//", text), SCHEMES).directory


@pytest.mark.parametrize(
    "text",
    [
        "https://user:s3cret@example.org/x?y",
        "https://user:s3cret/x@example.org/x?",
        "https://user:s3cret@exa mple/x",
        "https://user:s3cret@/x",
        "ftp://user:s3cret@example.org/x",
        "ssh://user:s3cret@example.org/x",
        "git://user:s3cret@example.org/x",
        "user:s3cret@example.org:x",
        "user:s3cret@example.org/x",
        "s3cret@exa mple.org/x",
        "https://user:s3cret%0a@example.org/x",
    ],
)
def test_a_refused_url_does_not_show_its_credentials(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_url(text, SCHEMES)
    assert "s3cret" not in caught.value.message + caught.value.hint + repr(caught.value)


def test_ssh_home_and_absolute_paths_stay_apart() -> None:
    names = {parse_url(t, SCHEMES).directory for t in ("h:x", "h:/x", "ssh://h/x", "u@h:x", "https://h/x")}
    assert len(names) == 4  # h:/x is ssh://h/x


@given(st.text(max_size=60) | st.from_regex(r"(https|ssh|git|file)://[^\n]{0,40}"))
def test_any_text_is_refused_or_gives_a_safe_directory(text: str) -> None:
    try:
        url = parse_url(text, SCHEMES)
    except InvalidInput:
        return
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*-[0-9a-f]{12}\.git", url.directory)
    assert len(url.directory) < 100
    assert not url.fetch_url.startswith("-")
    again = parse_url(url.normalized, SCHEMES) if url.scheme != "file" else url
    assert again.normalized == url.normalized
    assert msgspec.json.decode(msgspec.json.encode(url), type=type(url)) == url
