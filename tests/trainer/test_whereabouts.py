"""A plan that is used again has to notice every tensor whose memory is another one."""

from __future__ import annotations

import pytest
import torch
from holdfast._capture.whereabouts import Whereabouts

COUNT = 300  # more than two batches
MOVES = {
    "other memory": lambda t: setattr(t, "data", t.data.clone()),
    "set_": lambda t: t.set_(torch.zeros(2, 3)),
    "grown": lambda t: t.untyped_storage().resize_(1 << 20),
}
TURNS = {"transposed": lambda t: t.t_(), "other shape, same memory": lambda t: setattr(t, "data", t.data.view(3, 2))}


def tensors() -> list[torch.Tensor]:
    return [torch.zeros(2, 3) for _ in range(COUNT)]


@pytest.mark.parametrize("where", [0, 127, 128, COUNT - 1])
@pytest.mark.parametrize("move", MOVES.values(), ids=list(MOVES))
def test_one_tensor_that_moved_is_noticed(move, where):
    turned, others = tensors(), tensors()
    known = Whereabouts(turned, others)
    assert known.same()
    kept = others[where].untyped_storage()  # so that the new memory is not the old one again
    if move is not MOVES["grown"]:
        move(others[where])
        assert not known.same()
        assert kept.nbytes()
    move(turned[where])
    assert not known.same()


@pytest.mark.parametrize("where", [0, 127, 128, COUNT - 1])
@pytest.mark.parametrize("turn", TURNS.values(), ids=list(TURNS))
def test_one_that_was_turned_round_in_place_is_noticed_where_scripts_do_that(turn, where):
    turned, others = tensors(), tensors()
    known = Whereabouts(turned, others)
    turn(others[where])
    assert known.same()
    turn(turned[where])
    assert not known.same()


def test_nothing_is_always_where_it_was():
    assert Whereabouts([], []).same()
