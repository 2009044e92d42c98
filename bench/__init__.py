"""Benchmarks of buildd: `python -m bench [NAME…] [--quick]`.

Each module here with a `run` measures one promise. What can be compared is compared with a peer that runs in the
same minutes on the same machine, in turns with the daemon, since ratios travel between machines and absolute
numbers do not.
"""
