"""Endurance: does anything leak, and does the daemon answer while a hundred builds run?

`make soak`, or `python -m soak` with `tests` in PYTHONPATH, runs all of it for some minutes, says what it found, and
leaves the samples as a table and as a picture. `test_soak.py` is the same in small, for `make test`.
"""
