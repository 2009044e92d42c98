"""Ranking again, from the numbers in the index, for readers who said what they work on or have in mind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from buildd.repomap import graph as graphs, ranking
from buildd.repomap.graph import Graph
from buildd.repomap.index import MapIndex
from buildd.repomap.qualified import spellings
from buildd.repomap.records import word_hash

_Number = TypeVar("_Number", bound=np.generic)

_MENTIONED = 10.0
_FOCUS_NAMING = 20.0
_FOCUS_TELEPORT = 0.8
"""Of all rank that nobody passes on: it begins in the files in focus, the rest as without any."""
_PATH_MENTIONED = 10.0


class Reranked(NamedTuple):
    order: Sequence[int]
    file_score: Sequence[float]
    unknown: tuple[str, ...]


def rerank(index: MapIndex, focus: Sequence[str], mention: Sequence[str]) -> Reranked:
    graph = _graph(index)
    role = _array(index, "role", np.uint8)
    file = _array(index, "definition_file", np.uint32)
    teleport = _array(index, "teleport", np.float64).copy()
    unknown: list[str] = []

    name_factor = np.ones(len(graph.name_hash))
    for word in mention:
        named = np.flatnonzero(np.isin(graph.name_hash, _hashes(word)))
        name_factor[named] = _MENTIONED
        paths = [number for number, path in enumerate(index.paths) if _mentions(path, word)]
        teleport[paths] *= _PATH_MENTIONED
        if not len(named) and not paths:
            unknown.append(word)

    naming = np.ones(index.meta.files)
    focused: set[int] = set()
    numbers = {path: number for number, path in enumerate(index.paths)}
    for path in focus:
        wanted = path.removeprefix("./").rstrip("/")
        found = (
            [numbers[wanted]] if wanted in numbers else [n for p, n in numbers.items() if p.startswith(wanted + "/")]
        )
        focused.update(found)
        if not found:
            unknown.append(path)
    chosen = sorted(focused)
    if chosen:
        teleport = (1 - _FOCUS_TELEPORT) * ranking.normalised(teleport)
        teleport[chosen] += _FOCUS_TELEPORT / len(chosen)
        naming[chosen] = _FOCUS_NAMING
    scores = graphs.score(
        graph,
        file,
        _array(index, "definition_owner", np.int32),
        _array(index, "definition_telling", np.float64),
        role,
        teleport,
        name_factor,
        naming,
    )
    factor = name_factor[_array(index, "definition_name", np.uint32)]
    by_definition = scores.definitions * factor
    order = np.lexsort((np.arange(len(by_definition)), -by_definition))
    by_file = np.bincount(file, scores.alone * factor, index.meta.files) if len(file) else scores.files
    return Reranked(order.tolist(), by_file.tolist(), tuple(unknown))


def files_naming(index: MapIndex, name: str) -> list[int]:
    """Files that may name it, those first that lean on it most: by how often they do, weighed by their own rank."""
    hashes = _hashes(name)
    counts = np.zeros(index.meta.files)
    name_hash = _array(index, "name_hash", np.uint64)
    names = np.flatnonzero(np.isin(name_hash, hashes))
    if len(names):
        nodes = np.flatnonzero(np.isin(_array(index, "node_name", np.uint32), names))
        edges = np.flatnonzero(np.isin(_array(index, "edge_node", np.uint32), nodes))
        file = _array(index, "edge_file", np.uint32)[edges]
        counts += np.bincount(file, _array(index, "edge_count", np.uint16)[edges], index.meta.files)
        named = np.isin(_array(index, "definition_name", np.uint32), names)
        defining = _array(index, "definition_file", np.uint32)[named]
        counts[defining] = np.maximum(counts[defining], 1.0)  # no edge leads to what is local
    others = np.isin(_array(index, "other_words", np.uint32), (hashes & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    ends = np.cumsum(_array(index, "other_count", np.uint32))
    elsewhere = np.searchsorted(ends, np.flatnonzero(others), side="right")
    counts[elsewhere] = np.maximum(counts[elsewhere], 1.0)
    weight = np.sqrt(counts) * (_array(index, "file_score", np.float64) + 1e-9)
    order = np.lexsort((np.arange(len(weight)), -weight))
    return [number for number in order.tolist() if counts[number] > 0]


def _hashes(name: str) -> NDArray[np.uint64]:
    """Of all that a name may be in a text."""
    return np.array([word_hash(word) for word in spellings(name.encode("utf-8", "replace"))], np.uint64)


def _mentions(path: str, word: str) -> bool:
    """Whether the word is the path, some of its last parts, or one of its parts with or without suffix."""
    wanted = word.strip("/").lower()
    path = path.lower()
    if "/" in wanted:
        return path == wanted or path.endswith("/" + wanted) or path.startswith(wanted + "/") or f"/{wanted}/" in path
    parts = path.split("/")
    return wanted in parts or parts[-1].partition(".")[0] == wanted


def _graph(index: MapIndex) -> Graph:
    return Graph(
        files=index.meta.files,
        name_hash=_array(index, "name_hash", np.uint64),
        node_name=_array(index, "node_name", np.uint32),
        node_any=_array(index, "node_any", np.bool_),
        node_weight=_array(index, "node_weight", np.float64),
        pair_node=_array(index, "pair_node", np.uint32),
        pair_file=_array(index, "pair_file", np.uint32),
        pair_weight=_array(index, "pair_weight", np.float64),
        edge_file=_array(index, "edge_file", np.uint32),
        edge_node=_array(index, "edge_node", np.uint32),
        edge_count=_array(index, "edge_count", np.uint16),
        edge_own=_array(index, "edge_own", np.bool_),
        own_pair=_array(index, "own_pair", np.int32),
        any_pair=_array(index, "any_pair", np.int32),
        base=_array(index, "base", np.float64),
    )


def _array(index: MapIndex, name: str, kind: type[_Number]) -> NDArray[_Number]:
    return np.frombuffer(index.sections[name], kind)
