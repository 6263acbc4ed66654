"""What a group asks of a pod: connections to serve."""

from __future__ import annotations

import pytest
from holdfast_core.config import PeersConfig
from holdfast_core.erasure.groups import Place, make_groups
from holdfast_core.protection import connections


@pytest.mark.parametrize("processes", [1, 8, 16, 64])
@pytest.mark.parametrize(("size", "parity"), [(2, 1), (4, 1), (8, 2), (16, 1), (32, 8)])
def test_a_pod_may_serve_all_ranks_of_its_group_and_those_of_the_round_before(size: int, parity: int, processes: int) -> None:
    largest = max(
        len(group.members)
        for pods in range(2, 4 * size)
        for group in make_groups([Place(i, "") for i in range(pods)], size, parity)
    )
    assert connections(PeersConfig(size, parity), processes) >= 2 * (largest - 1) * processes + 8 * parity * processes
