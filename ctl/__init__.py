"""buildctl, the thin client of buildd: argv in, JSON-RPC over one socket, text or JSON out.

Of buildd it imports `buildd.protocol` and nothing else, and that only in verbs that need it: `buildctl status`
must cost little more than the interpreter and one round trip.
"""
