"""What the planner sees in RAM; `test_recovery` has what it makes of it."""

from __future__ import annotations

import pytest
from holdfast_core.planner.sources import common_copies
from holdfast_core.protection import Holdings
from holdfast_core.timeline import Copy, Resume


@pytest.mark.parametrize(
    ("sealed", "history", "expected", "why"),
    [
        ({0: [(4, 1), (5, 1)], 1: [(4, 1)]}, [], {(4, 1)}, "rank 1 has not sealed 5"),
        ({0: [(4, 1)], 1: [(4, 1), (5, 1)]}, [], {(4, 1)}, "rank 0 has not: no rank's word is enough"),
        ({0: [(5, 1)]}, [], set(), "rank 1 has nothing"),
        ({0: [(5, 1)], 1: [(5, 2)]}, [], set(), "the same step of two attempts is not one state"),
        ({0: [(5, 1)], 1: [(5, 1)]}, [(2, 4)], set(), "a later attempt resumed below it: void"),
    ],
)
def test_what_all_ranks_have_in_memory(sealed, history, expected, why):
    copies = {rank: [Copy(*c) for c in held] for rank, held in sealed.items()}
    found = common_copies(Holdings(copies, {}), 2, tuple(Resume(*r) for r in history))
    assert found == {Copy(*c) for c in expected}, why
