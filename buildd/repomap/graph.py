"""From records to numbers: names, definitions, and the links that files are ranked by.

A *name* is an identifier that something defines; names are numbered by their hashes. A *node* is a name within a family
of languages, and leads to the files of that family that define it. What a file names and its own family does not
define leads to one further node of the name, which is for all families. Declarations count where there is no
definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from buildd.repomap import ranking, roles
from buildd.repomap.languages import FAMILIES, LANGUAGES
from buildd.repomap.ranking import Floats, Links
from buildd.repomap.records import KINDS, ONLY_SCOPES, TYPES, Record, word_hash

U8, U16, U32, U64, I32 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32

_SALTS = np.array([word_hash(f"family {name}".encode()) for name in FAMILIES], U64)
_ANY_SALT = U64(word_hash(b"any family"))
_DECLARES = np.array([kind == "prototype" for kind in KINDS])
_TELLING = np.array(
    [
        3.0
        if kind in TYPES
        else {
            "type": 2.0,
            "function": 1.5,
            "macro": 1.5,
            "module": 1.0,
            "prototype": 1.0,
            "variable": 0.7,
            "constant": 0.7,
            "property": 0.2,
        }.get(kind, 0.4)
        for kind in KINDS
    ]
)
"""How likely a name that occurs is meant for a definition of each kind: members are called as anything is called."""
_TELLING[[KINDS.index(kind) for kind in ONLY_SCOPES]] = 0.0
_OWNS = np.array([kind in (TYPES | {"type"}) - ONLY_SCOPES for kind in KINDS])
_BODIES = np.array([kind in ("function", "method", "constructor") for kind in KINDS])
_MODULES = np.array([kind in ("module", "namespace") for kind in KINDS])
_TEST_MODULES = np.array([word_hash(name) for name in (b"test", b"tests")], U64)
_IN_TEST_MODULE = 0.0025
"""Its root, by which scores go, is what files with tests weigh."""
_UNTOLD = 0.01
"""Instead of nothing, for definitions that nobody else can name."""
_MAX_DEPTH = 16
_WORDS_AT_ONCE = 1 << 19
_FEW_DEFINERS = 5
_ACROSS_FAMILIES = 0.2
_NAMING = np.array([1.0, 0.3, 0.1, 0.1, 0.3, 0.3, 0.2])
"""How much it counts, by the role of a file, that it names something."""
_MAIN_FACTOR = 8.0
_OWN = 0.25
"""How much it counts that a file names what it defines itself."""


class Definitions(NamedTuple):
    """All of a repository, in the order of paths and lines."""

    file: NDArray[np.uint32]
    kind: NDArray[np.uint8]
    outer: NDArray[np.int32]
    """Number of the definition that it is in, or -1."""
    owner: NDArray[np.int32]
    """Number of the type that it is a member of, or -1."""
    name: NDArray[np.uint32]
    telling: Floats
    """See `_TELLING`; 0 for what is local to a function."""


class Graph(NamedTuple):
    files: int
    name_hash: NDArray[np.uint64]
    """Ascending."""
    node_name: NDArray[np.uint32]
    node_any: NDArray[np.bool_]
    """Whether it is for all families."""
    node_weight: Floats
    """How telling its name is for the most telling of its definitions."""
    pair_node: NDArray[np.uint32]
    pair_file: NDArray[np.uint32]
    pair_weight: Floats
    """How telling the most telling definition is."""
    edge_file: NDArray[np.uint32]
    edge_node: NDArray[np.uint32]
    edge_count: NDArray[np.uint16]
    edge_own: NDArray[np.bool_]
    """Whether the file defines the name itself."""
    own_pair: NDArray[np.int32]
    any_pair: NDArray[np.int32]
    """Of each definition the pairs of its file with its two nodes, or -1."""
    base: Floats
    """What each definition gets of its file's teleport."""


def definitions_of(
    records: Sequence[Record | None], directories: Sequence[bytes]
) -> tuple[Definitions, NDArray[np.uint64], list[str]]:
    """And the hash of each name (by number) and the names themselves. `directories` are those of the files."""
    found = [(number, record) for number, record in enumerate(records) if record is not None and record.kinds]
    counts = np.array([len(record.kinds) for _, record in found], np.intp)
    starts = np.cumsum(counts) - counts
    places = np.frombuffer(b"".join(record.places for _, record in found), I32).reshape(-1, 3)
    hashes = np.frombuffer(b"".join(record.hashes for _, record in found), U64)
    name_hash, first, name = np.unique(hashes, return_index=True, return_inverse=True)
    all_names = [name for _, record in found for name in record.names]
    outer = places[:, 2].copy()
    inside = outer >= 0
    outer[inside] += np.repeat(starts, counts).astype(I32)[inside]
    kind = np.frombuffer(b"".join(record.kinds for _, record in found), U8)
    file = np.repeat(np.array([number for number, _ in found], U32), counts)
    owners = np.frombuffer(b"".join(record.owners for _, record in found), U64)
    return (
        Definitions(
            file=file,
            kind=kind,
            outer=outer,
            owner=_owners(outer, kind, hashes, owners, [directories[number] for number in file.tolist()]),
            name=name.astype(U32),
            telling=_telling(kind, outer, hashes),
        ),
        name_hash,
        [all_names[number] for number in first.tolist()],
    )


def _owners(
    outer: NDArray[np.int32],
    kind: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    owners: NDArray[np.uint64],
    directories: Sequence[bytes],
) -> NDArray[np.int32]:
    """The type that each stands in, or else the first of the directory that has the name of its owner."""
    owns = np.append(_OWNS[kind], False)
    owner = np.where(owns[outer], outer, -1).astype(I32)
    apart = np.flatnonzero(owners)
    types: dict[tuple[bytes, int], int] = {}
    for number in np.flatnonzero(_OWNS[kind] & np.isin(hashes, owners[apart])).tolist():
        types.setdefault((directories[number], int(hashes[number])), number)
    owner[apart] = [types.get((directories[number], int(owners[number])), -1) for number in apart.tolist()]
    owner[owner == np.arange(len(owner))] = -1  # a type that is called like the scope it is defined in
    return owner


def _telling(kind: NDArray[np.uint8], outer: NDArray[np.int32], hashes: NDArray[np.uint64]) -> Floats:
    # The last element stands for what is outside of everything, so that -1 leads to it.
    body = np.append(_BODIES[kind], False)
    test = np.append(_MODULES[kind] & np.isin(hashes, _TEST_MODULES), False)
    local, tested = np.zeros(len(body), np.bool_), np.zeros(len(body), np.bool_)
    outers = np.append(outer, -1)
    for _ in range(_MAX_DEPTH):
        local, tested = (body | local)[outers], (test | tested)[outers]
    telling: Floats = np.where(local[:-1], 0.0, _TELLING[kind]) * np.where(tested[:-1], _IN_TEST_MODULE, 1.0)
    return telling


def graph_of(
    records: Sequence[Record | None],
    definitions: Definitions,
    name_hash: NDArray[np.uint64],
    family: NDArray[np.uint8],
) -> tuple[Graph, NDArray[np.uint32], NDArray[np.uint32]]:
    """And what is named and nowhere defined: the lower half of each word's hash, and how many each file has."""
    files = len(records)
    weights = np.frombuffer(b"".join(record.weights for record in records if record is not None), U8)
    # Nodes. Both kinds are found by a hash: of a name mixed with its family's, or with that of all families.
    own_key = name_hash[definitions.name] ^ _SALTS[family[definitions.file]]
    any_key = name_hash[definitions.name] ^ _ANY_SALT
    declares, defines = _DECLARES[definitions.kind], definitions.telling > 0
    counts_own = defines & ~(declares & np.isin(own_key, own_key[defines & ~declares]))
    counts_any = defines & ~(declares & np.isin(any_key, any_key[defines & ~declares]))
    own_nodes, own_first, own_of = np.unique(own_key[counts_own], return_index=True, return_inverse=True)
    any_nodes, any_first, any_of = np.unique(any_key[counts_any], return_index=True, return_inverse=True)
    node_name = np.concatenate([definitions.name[counts_own][own_first], definitions.name[counts_any][any_first]])
    node_any = np.arange(len(node_name)) >= len(own_nodes)

    # Pairs, by node and file.
    code_own = own_of.astype(U64) * U64(files) + definitions.file[counts_own]
    code_any = (any_of.astype(U64) + U64(len(own_nodes))) * U64(files) + definitions.file[counts_any]
    codes, pair_of = np.unique(np.concatenate([code_own, code_any]), return_inverse=True)
    own_pair, any_pair = (np.full(len(definitions.file), -1, I32) for _ in range(2))
    own_pair[counts_own] = pair_of[: len(code_own)]
    any_pair[counts_any] = pair_of[len(code_own) :]

    pair_weight = np.zeros(len(codes))
    np.maximum.at(
        pair_weight, pair_of, np.concatenate([definitions.telling[counts_own], definitions.telling[counts_any]])
    )
    pair_node = (codes // U64(max(1, files))).astype(U32)
    name_weight = np.zeros(len(name_hash))
    np.maximum.at(name_weight, definitions.name, weights / 16)
    node_weight = np.zeros(len(node_name))
    np.maximum.at(node_weight, pair_node, pair_weight)

    # Which node a name is in each family, and which definitions a file has of its own.
    own_at = np.full((len(FAMILIES), len(name_hash)), -1, I32)
    own_at[family[definitions.file[counts_own]][own_first], definitions.name[counts_own][own_first]] = np.arange(
        len(own_nodes)
    )
    any_at = np.full(len(name_hash), -1, I32)
    any_at[definitions.name[counts_any][any_first]] = np.arange(len(any_nodes)) + len(own_nodes)
    defining = counts_own | counts_any
    own_names = np.unique(
        definitions.file[defining].astype(U64) * U64(len(name_hash)) + definitions.name[defining].astype(U64)
    )
    edges, others, other_count = _edges(records, family, name_hash, own_at, any_at, own_names)
    graph = Graph(
        files=files,
        name_hash=name_hash,
        node_name=node_name.astype(U32),
        node_any=node_any,
        node_weight=node_weight * name_weight[node_name],
        pair_node=pair_node,
        pair_file=(codes % U64(max(1, files))).astype(U32),
        pair_weight=pair_weight,
        edge_file=edges.file,
        edge_node=edges.node,
        edge_count=edges.times,
        edge_own=edges.own,
        own_pair=own_pair,
        any_pair=any_pair,
        base=_base(definitions, weights, name_hash, files),
    )
    return graph, others, other_count


class _Edges(NamedTuple):
    file: NDArray[np.uint32]
    node: NDArray[np.uint32]
    times: NDArray[np.uint16]
    own: NDArray[np.bool_]


def _edges(
    records: Sequence[Record | None],
    family: NDArray[np.uint8],
    name_hash: NDArray[np.uint64],
    own_at: NDArray[np.int32],
    any_at: NDArray[np.int32],
    own_names: NDArray[np.uint64],
) -> tuple[_Edges, NDArray[np.uint32], NDArray[np.uint32]]:
    """And what leads nowhere, as in `graph_of`; some files at a time, for all words take much room."""
    files = len(records)
    found: list[tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint16], NDArray[np.bool_]]] = []
    others: list[NDArray[np.uint32]] = []
    other_count = np.zeros(files, U32)
    start = 0
    while start < files:
        stop, size = start, 0
        while stop < files and size < _WORDS_AT_ONCE:
            record = records[stop]
            size += len(record.words) // 8 if record is not None else 0
            stop += 1
        some = records[start:stop]
        lengths = np.array([len(record.words) // 8 if record is not None else 0 for record in some], np.intp)
        file = np.repeat(np.arange(start, stop, dtype=U32), lengths)
        words = np.frombuffer(b"".join(record.words for record in some if record is not None), U64)
        counts = np.frombuffer(b"".join(record.counts for record in some if record is not None), U16)
        name, known = _find(name_hash, words)
        others.append((words[~known] & U64(0xFFFFFFFF)).astype(U32))
        other_count[start:stop] = np.bincount(file[~known] - start, minlength=stop - start)
        file, name, counts = file[known], name[known], counts[known]
        own = _find(own_names, file.astype(U64) * U64(len(name_hash)) + name.astype(U64))[1]
        node = own_at[family[file], name]
        node = np.where(node >= 0, node, any_at[name])
        leads = node >= 0  # a name of scopes only leads nowhere
        found.append((file[leads], node[leads].astype(U32), counts[leads], own[leads]))
        start = stop
    if not found:
        return (
            _Edges(np.empty(0, U32), np.empty(0, U32), np.empty(0, U16), np.empty(0, np.bool_)),
            np.empty(0, U32),
            other_count,
        )
    return _Edges(*(np.concatenate(column) for column in zip(*found, strict=True))), np.concatenate(others), other_count


def _find(sorted_values: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Where the values are, and which are there at all."""
    if not len(sorted_values):
        return np.zeros(len(wanted), np.intp), np.zeros(len(wanted), np.bool_)
    at = np.searchsorted(sorted_values, wanted)
    at[at == len(sorted_values)] = 0
    return at, sorted_values[at] == wanted


def _base(definitions: Definitions, weights: NDArray[np.uint8], name_hash: NDArray[np.uint64], files: int) -> Floats:
    """Shares of what the file has by itself: types before functions before members, where programs begin first."""
    weight = np.maximum(definitions.telling, _UNTOLD) * np.sqrt(weights / 16)
    weight[_TELLING[definitions.kind] == 0] = 0.0
    weight[(name_hash[definitions.name] == U64(word_hash(b"main"))) & (definitions.outer < 0)] *= _MAIN_FACTOR
    total = np.bincount(definitions.file, weight, files)[definitions.file]
    shares: Floats = np.divide(weight, total, out=np.zeros(len(weight)), where=total > 0)
    return shares


class Scores(NamedTuple):
    files: Floats
    """Shares of the rank of the whole repository, by their roles."""
    definitions: Floats
    """The same of definitions; a type has that of its members as well."""
    alone: Floats
    """Those of definitions without that of members: they sum up."""


def score(
    graph: Graph,
    definition_file: NDArray[np.uint32],
    owner: NDArray[np.int32],
    telling: Floats,
    role: NDArray[np.uint8],
    teleport: Floats,
    name_factor: Floats | None = None,
    naming: Floats | None = None,
) -> Scores:
    """Rank everything. `name_factor` is for each name, `naming` for what each file names; both are 1 by themselves."""
    nodes = len(graph.node_name)
    role_weight = np.array(roles.WEIGHTS)[role]
    definers = np.bincount(graph.pair_node, minlength=nodes)
    node_weight = graph.node_weight * np.minimum(1.0, _FEW_DEFINERS / np.maximum(definers, 1))
    node_weight[graph.node_any] *= _ACROSS_FAMILIES
    if name_factor is not None:
        node_weight *= name_factor[graph.node_name]
    file_weight = _NAMING[role] if naming is None else _NAMING[role] * naming
    edge_weight = node_weight[graph.edge_node] * np.sqrt(graph.edge_count) * file_weight[graph.edge_file]
    edge_weight *= np.where(graph.edge_own, _OWN, 1.0)
    links = Links(graph.files, nodes, graph.edge_file, graph.edge_node, graph.pair_node, graph.pair_file)
    teleport = ranking.normalised(teleport)
    ranks = ranking.rank(links, edge_weight, graph.pair_weight * role_weight[graph.pair_file], teleport)

    passed = np.append(ranks.pairs, 0.0)  # for -1, no pair
    sharing = np.append(
        np.bincount(np.concatenate([graph.own_pair + 1, graph.any_pair + 1]), minlength=len(passed))[1:], 1
    )
    scores = passed[graph.own_pair] / np.maximum(1, sharing[graph.own_pair])
    scores += passed[graph.any_pair] / np.maximum(1, sharing[graph.any_pair])
    scores += (1 - ranking.DAMPING) * teleport[definition_file] * graph.base
    scores *= np.sqrt(np.maximum(telling, _UNTOLD) / _TELLING.max()) * role_weight[definition_file]
    members = np.flatnonzero(owner >= 0)
    of_members = np.bincount(owner[members], scores[members], len(scores))  # who names a member uses the type
    return Scores(ranks.files * role_weight, scores + of_members, scores)


def family_numbers(languages: Sequence[str]) -> NDArray[np.uint8]:
    numbers = {name: FAMILIES.index(language.family) for name, language in LANGUAGES.items()} | {"": 0}
    return np.array([numbers[language] for language in languages], U8)
