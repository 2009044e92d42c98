"""Default commands by build system; a recipe's own phases replace them one by one.

All build out of the source directory where the system can, install below `$DESTDIR` with prefix `$PREFIX`, and
take their parallelism from `$JOBS` or `$MAKEFLAGS`. Nothing here may use the network.
"""

from __future__ import annotations

PRESETS: dict[str, dict[str, str]] = {
    "autotools": {
        "configure": """\
[ -x ./configure ] || autoreconf -fi
cd "$BUILDDIR"
"$SRCDIR/configure" --prefix="$PREFIX"
""",
        "build": 'make -C "$BUILDDIR"\n',
        "check": 'make -C "$BUILDDIR" check\n',
        "stage": 'make -C "$BUILDDIR" install DESTDIR="$DESTDIR"\n',
    },
    "cmake": {
        "configure": """\
cmake -S "$SRCDIR" -B "$BUILDDIR" -DCMAKE_BUILD_TYPE=Release \\
  -DCMAKE_INSTALL_PREFIX="$PREFIX" -DCMAKE_INSTALL_LIBDIR=lib
""",
        "build": 'cmake --build "$BUILDDIR" --parallel "$JOBS"\n',
        "check": 'ctest --test-dir "$BUILDDIR" --output-on-failure\n',
        "stage": 'cmake --install "$BUILDDIR"\n',
    },
    "meson": {
        "configure": """\
meson setup "$BUILDDIR" "$SRCDIR" --prefix="$PREFIX" --libdir=lib --buildtype=release --wrap-mode=nodownload
""",
        "build": 'meson compile -C "$BUILDDIR" -j "$JOBS"\n',
        "check": 'meson test -C "$BUILDDIR" --no-rebuild --print-errorlogs\n',
        "stage": 'meson install -C "$BUILDDIR" --no-rebuild\n',
    },
    "make": {
        "build": 'make PREFIX="$PREFIX"\n',
        "check": """\
if make -q check PREFIX="$PREFIX" >/dev/null 2>&1 || [ $? -eq 1 ]; then make check PREFIX="$PREFIX"; fi
""",
        "stage": 'make install PREFIX="$PREFIX" DESTDIR="$DESTDIR"\n',
    },
    "python": {
        "build": """\
python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --no-index -w "$BUILDDIR" .
""",
        "stage": """\
python3 -m pip install --no-cache-dir --no-compile --no-deps --no-index --no-warn-script-location \\
  --break-system-packages --ignore-installed --root "$DESTDIR" --prefix "$PREFIX" "$BUILDDIR"/*.whl
""",
    },
    "none": {},
}
