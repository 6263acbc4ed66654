"""The worlds that are explored. Each asks about something; together they have every kind of fault. The small ones are for every
run of the tests, and for the hunt after mutations."""

from __future__ import annotations

from .world import World

_GROUP = frozenset({"hear", "obey", "left", "join"})
_OPERATOR = frozenset({"act", "look", "notice", "stop"})
_ALL = _GROUP | _OPERATOR
_WORDS = frozenset({"hear", "obey", "left"})

CALM = World("calm", "two pods train: each order of seals, parities and words", pods=2, steps=2, eager=_OPERATOR)
TWO_SLOTS = World(
    "two-slots",
    "two slots, no peers, ranks far apart: a process dies",
    pods=2,
    parity=0,
    slots=2,
    steps=3,
    lag=2,
    faults={"process": 1},
    eager=_ALL,
)
KEPT = World("kept", "two slots, and peers that need one of them", slots=2, steps=2, eager=_ALL)
KILLS = World("kills", "processes die", pods=2, steps=2, faults={"process": 2}, eager=_ALL)
FENCES = World(
    "fences",
    "a process dies, the others do not stop in time, and an order is lost",
    pods=2,
    steps=0,
    faults={"process": 1, "hang": 1, "lose": 1},
    eager=_ALL - {"stop", "act"},
)
LOSSES = World("losses", "a node loses power", steps=1, faults={"node": 1}, eager=_ALL)
ZOMBIES = World(
    "zombies",
    "a live pod is taken for lost, or cut off for a while",
    pods=2,
    steps=1,
    faults={"wrong": 1, "partition": 1},
    most=1,
    eager=_ALL,
)
STORED = World(
    "stored",
    "a store, and a pod that is taken for lost",
    pods=2,
    steps=1,
    stores=1,
    parity=0,
    faults={"wrong": 1, "process": 1},
    eager=_ALL,
)
ROTTEN = World(
    "rotten",
    "a shard in the store is corrupt when it is needed",
    pods=2,
    steps=1,
    stores=1,
    parity=0,
    faults={"rot": 1, "pod": 1},
    eager=_ALL,
    limit=10_000,
)
FLIPPED = World("flipped", "a bit flips in a snapshot or in parity", steps=1, faults={"corrupt": 1}, eager=_ALL)
BITS = World("bits", "a bit flips, and a process dies", pods=2, steps=1, faults={"corrupt": 1, "process": 1}, eager=_ALL)
RESTARTS = World(
    "restarts",
    "a sidecar is restarted: each order of words",
    pods=2,
    steps=1,
    faults={"restart": 1},
    eager=_OPERATOR | {"join"},
)
CUTS = World("cuts", "connections to the coordinator break", pods=2, steps=0, faults={"cut": 2}, eager=_OPERATOR)
SLOW = World(
    "slow",
    "a round that takes too long, words that cross orders",
    pods=2,
    steps=1,
    faults={"slow": 1},
    eager=_OPERATOR | {"join", "seal"},
)

AWAY = World(
    "away",
    "a node loses power, and the peers that bring its rank back are out of reach, again and again",
    steps=0,
    faults={"node": 1, "away": 3},
    eager=_ALL,
)

SMALL = (CALM, TWO_SLOTS, KEPT, KILLS, FENCES, LOSSES, ZOMBIES, STORED, ROTTEN, FLIPPED, BITS, CUTS, SLOW, AWAY)

# --- for `make model`

_FINE = _OPERATOR | {"join"}
LARGE = (
    RESTARTS,
    World("nodes", "two nodes lose power, one while the other's pod is brought back", steps=1, faults={"node": 2}, eager=_ALL),
    World("partitions", "two partitions that heal, at any time", pods=2, steps=0, faults={"partition": 2}, eager=_ALL),
    World("partition", "one of three nodes is cut off, and heals", steps=1, faults={"partition": 1}, eager=_ALL),
    World("node-and-bit", "a node loses power, and a bit flips", steps=1, faults={"node": 1, "corrupt": 1}, most=2, eager=_ALL),
    World(
        "zombie-and-crash",
        "a live pod is taken for lost, and the operator dies or orders go astray",
        steps=1,
        pods=2,
        faults={"wrong": 1, "crash": 1, "lose": 1, "stray": 1},
        most=2,
        eager=_ALL - {"act"},
    ),
    World(
        "operator",
        "a process dies; the operator dies, orders are lost, come twice, views are late",
        steps=1,
        pods=2,
        faults={"process": 1, "crash": 1, "lose": 1, "stray": 1, "stall": 1},
        most=3,
        eager=_GROUP | {"notice", "stop"},
    ),
    World(
        "groups", "four pods in two groups: two nodes lose power", pods=4, group_size=2, steps=0, faults={"node": 2}, eager=_ALL
    ),
    World(
        "groups-and-steps",
        "four pods in two groups train three steps: a node loses power",
        pods=4,
        group_size=2,
        steps=2,
        faults={"node": 1},
        eager=_ALL,
    ),
    World(
        "shared-node",
        "four pods in two groups on two nodes: one of them loses power, or is cut off",
        pods=4,
        group_size=2,
        steps=0,
        domains=("a", "a", "b", "b"),
        faults={"node": 1, "partition": 1},
        most=1,
        eager=_ALL,
    ),
    World(
        "two-parities",
        "three pods, two of which may be lost",
        parity=2,
        steps=0,
        faults={"node": 1, "pod": 1, "corrupt": 1},
        most=2,
        eager=_ALL,
    ),
    World(
        "levels",
        "peers and a store: pods are lost, shards rot",
        stores=1,
        steps=1,
        pods=2,
        faults={"node": 1, "pod": 1, "rot": 1},
        most=2,
        eager=_ALL,
    ),
    World("lazy", "two steps apart, processes die while they write", pods=2, lag=2, steps=3, faults={"process": 2}, eager=_ALL),
    World("words", "three pods, each order of words, a connection breaks", steps=0, faults={"cut": 1}, eager=_FINE),
    World("two-steps", "three pods, each order of words, two steps", steps=1, eager=_FINE),
    World(
        "everything",
        "two faults of any kind",
        steps=1,
        pods=2,
        most=2,
        limit=400_000,
        eager=_ALL,
        faults={
            "process": 1,
            "restart": 1,
            "pod": 1,
            "node": 1,
            "partition": 1,
            "wrong": 1,
            "corrupt": 1,
            "cut": 1,
            "slow": 1,
            "stall": 1,
        },
    ),
)
