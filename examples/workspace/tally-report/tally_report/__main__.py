"""tally-report [FILE]: a Markdown table of the words in FILE or standard input, counted by tally."""

from __future__ import annotations

import subprocess
import sys

from tally_report import parse, render


def main() -> int:
    if len(sys.argv) > 2:
        print("usage: tally-report [FILE]", file=sys.stderr)
        return 2
    try:
        counted = subprocess.run(["tally", "-n", "10", *sys.argv[1:]], stdout=subprocess.PIPE, text=True, check=True)
    except FileNotFoundError:
        print("tally-report: the program tally is not on the PATH", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    sys.stdout.write(render(parse(counted.stdout.splitlines())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
