"""The map of a work tree by aider's RepoMap. `python aider_map.py DIRECTORY TOKENS`: runs in aider's own environment.

Prints a JSON object with the seconds of the map alone, the most memory and the length of the map. Tokens are counted as
ours are: a quarter of the characters.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from aider.repomap import RepoMap


class Model:
    def token_count(self, text):
        return len(text) // 4


class Quiet:
    def read_text(self, path, silent=False):
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def tool_output(self, *words, **options):
        pass

    tool_warning = tool_error = tool_output


directory, tokens = sys.argv[1], int(sys.argv[2])
listed = subprocess.run(["git", "ls-files", "-z"], cwd=directory, capture_output=True, check=True).stdout
files = [str(Path(directory, name)) for name in listed.decode(errors="surrogateescape").split("\0") if name]
began = time.perf_counter()
found = RepoMap(
    map_tokens=tokens, root=directory, main_model=Model(), io=Quiet(), max_context_window=None, map_mul_no_files=1
).get_repo_map([], files)
took = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": took, "peak_bytes": peak, "characters": len(found or "")}))
