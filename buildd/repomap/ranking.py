"""Which files and definitions the rest of a repository leans on.

PageRank over files: a file passes its rank to the files that define what it names. The edges are never made. Each goes
through an identifier: a file shares its rank among the identifiers that it names, by weight, and an identifier passes
on what it got to the files that define it. Two sparse products take the place of one with a matrix that is hundreds of
times as large, and the result is the same.

Everything here is deterministic to the last bit: sums are made in the order of the arrays (`bincount`), never by
routines that sum in an order of the processor's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

DAMPING = 0.85
IDLE = 15.0
"""So that a file that names hardly anything does not pass all that it has to that: in weights of edges."""
_TOLERANCE = 1e-7
_MAX_ROUNDS = 300


class Links(NamedTuple):
    """Who names what, and who defines it; files and nodes (identifiers of a family of languages) are numbers from 0."""

    files: int
    nodes: int
    edge_file: Ints
    edge_node: Ints
    pair_node: Ints
    pair_file: Ints
    """A node and a file that defines it; no pair twice."""


class Ranks(NamedTuple):
    files: Floats
    """Sums up to 1."""
    pairs: Floats
    """What each pair passed on: this part of the rank of its file comes through its identifier."""


def rank(
    links: Links,
    edge_weight: Floats,
    pair_weight: Floats,
    teleport: Floats,
    *,
    idle: float = IDLE,
    tolerance: float = _TOLERANCE,
) -> Ranks:
    """PageRank. `teleport` says where rank comes from that nobody passes on; it sums up to 1.

    A node shares among its pairs by `pair_weight`, a file among its edges by `edge_weight`; all are positive. `idle` is
    the weight of one further edge of each file, which leads to all files by `teleport`.
    """
    share = pair_weight / np.bincount(links.pair_node, pair_weight, links.nodes)[links.pair_node]
    out = np.bincount(links.edge_file, edge_weight, links.files) + idle
    edge_share = edge_weight / out[links.edge_file]
    loses = np.divide(idle, out, out=np.ones(links.files), where=out > 0)
    ranks = teleport
    passed = np.zeros(len(links.pair_node))
    for _ in range(_MAX_ROUNDS):
        at_nodes = np.bincount(links.edge_node, edge_share * ranks[links.edge_file], links.nodes)
        passed = DAMPING * at_nodes[links.pair_node] * share
        lost = _sum(ranks * loses)
        new = np.bincount(links.pair_file, passed, links.files) + (DAMPING * lost + 1 - DAMPING) * teleport
        change = _sum(np.abs(new - ranks))
        ranks = new
        if change < tolerance:
            break
    return Ranks(ranks, passed)


def normalised(weights: Floats) -> Floats:
    total = _sum(weights)
    return weights / total if total > 0 else np.full(len(weights), 1 / max(1, len(weights)))


def _sum(values: Floats) -> float:
    return float(np.bincount(np.zeros(len(values), np.intp), values, 1)[0])
