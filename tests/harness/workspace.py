"""Repositories whose packages are compiled by a compiler of four lines: what changes an output, and what does not.

A package has one file `src`. Lines that begin with `#` are comments and leave no trace; a line that begins with
`error` fails the build; everything else goes into the output, with the outputs of the direct dependencies below it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from harness.repository import RecipeRepository

_COMPILE = """\
if grep '^error' src; then exit 1; fi
grep -v '^#' src > "$BUILDDIR/out" || true
"""
_INSTALL = 'mkdir -p "$DESTDIR$PREFIX/share" && cp "$BUILDDIR/out" "$DESTDIR$PREFIX/share/{0}"'


class Workspace(RecipeRepository):
    def __init__(self, path: Path, *, mark: str, plain: bool = False) -> None:
        """`mark` goes into every source: equal packages of equal marks are the same to a daemon, others never."""
        super().__init__(path, plain=plain)
        self.mark = mark

    def compiled(
        self,
        name: str,
        *depends: str,
        code: str = "1",
        first: str = "",
        version: str = "1.0",
        links: bool = True,
        **keys: Any,
    ) -> Self:
        """A package that needs others; `first` is shell text that goes before the compilation.

        Unless it `links` them, their outputs do not go into its own.
        """
        link = "".join(f'cat "$PREFIX/share/{other}" >> "$BUILDDIR/out"\n' for other in depends if links)
        self.package(
            name,
            version=version,
            depends=list(depends),
            phases={"build": f"{first}\n{_COMPILE}{link}", "stage": _INSTALL.format(name)},
            **keys,
        )
        return self.edit(name, code)

    def edit(self, name: str, code: str, *, comment: str = "") -> Self:
        """Give a package another source, without committing it."""
        self.write(f"{name}/src", f"# {comment}\n{name} {self.mark}\n{code}\n")
        return self

    def output(self, *sources: str) -> str:
        """What a package's file in the output holds when it is made of these, each as `NAME=CODE`."""
        pairs = (source.split("=", 1) for source in sources)
        return "".join(f"{name} {self.mark}\n{code}\n" for name, code in pairs)
