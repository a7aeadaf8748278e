"""Sums and copies of table rows equal plain indexing, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hisac_rec.methods.base import History
from hisac_rec.methods.events import EventRows
from hisac_rec.ops import rows
from hisac_rec.ops.rows import group_rows, sum_rows, take_rows


def drawn(rows: int, events: int, groups: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(rows, 3, generator=generator, dtype=torch.float64).requires_grad_()
    at = torch.randint(0, rows, (events,), generator=generator)
    return table, at, torch.randint(0, groups, (events,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    events=st.sampled_from([0, 1, 2, 40]),
    groups=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_sums_equal_index_add(rows: int, events: int, groups: int, seed: int) -> None:
    table, at, owner = drawn(rows, events, groups, seed)
    expected = torch.zeros(groups, 3, dtype=torch.float64).index_add(0, owner, table[at])
    torch.testing.assert_close(sum_rows(table, at, group_rows(owner, groups)), expected)
    assert torch.autograd.gradcheck(lambda t: sum_rows(t, at, group_rows(owner, groups)), (table,))


@pytest.mark.parametrize("events", [0, 1, 500])
def test_the_form_for_other_devices_groups_alike(events: int) -> None:
    _, _, owner = drawn(1, events, 9, 3)
    _, order, bounds = group_rows(owner, 9)
    other_order, other_bounds = rows._order_by_owner(owner, 9)
    assert torch.equal(order, other_order)
    assert torch.equal(bounds, other_bounds)


def test_the_form_for_other_devices_adds_gradients_up_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, at, _ = drawn(5, 40, 1, 0)
    (by_loops,) = torch.autograd.grad(take_rows(table, at).square().sum(), table)
    monkeypatch.setattr(rows, "suit_loops", lambda _: False)
    (found,) = torch.autograd.grad(take_rows(table, at).square().sum(), table)
    torch.testing.assert_close(found, by_loops)


def test_copies_equal_indexing() -> None:
    table, at, _ = drawn(5, 12, 1, 0)
    torch.testing.assert_close(take_rows(table, at), table[at])
    assert torch.autograd.gradcheck(lambda t: take_rows(t, at), (table,))


def test_no_group_and_no_event() -> None:
    table = torch.ones(4, 3, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert sum_rows(table, nothing, group_rows(nothing, 0)).shape == (0, 3)
    (
        sum_rows(table, nothing, group_rows(nothing, 2)).sum() + take_rows(table, nothing).sum()
    ).backward()
    assert table.grad is not None
    assert not table.grad.any()


@pytest.fixture
def history() -> tuple[History, Tensor]:
    """Five events, each an item's row plus a type's; and the same as a plain tensor."""
    items, types, _ = drawn(4, 5, 2, 1)[0], drawn(2, 5, 2, 2)[0], None
    of_item, of_type = torch.tensor([3, 0, 0, 2, 3]), torch.tensor([1, 1, 0, 0, 1])
    rows = EventRows([(items, of_item), (types, of_type)])
    offsets = torch.tensor([0, 2, 5])
    codes, age = torch.zeros((5, 0), dtype=torch.int64), torch.zeros(5)
    return History(offsets, rows, codes, None, age), items[of_item] + types[of_type]


def test_events_are_the_sum_of_their_rows(history: tuple[History, Tensor]) -> None:
    lazy, plain = history
    direct = History(lazy.offsets, plain, lazy.codes, None, lazy.age)
    owner, some = torch.tensor([1, 0, 1, 1, 0]), torch.tensor([4, 4, 0])
    for one in (lazy, direct):
        assert one.num_events == 5
        torch.testing.assert_close(one.values, plain)
        torch.testing.assert_close(one.take(some), plain[some])
        torch.testing.assert_close(
            one.sums(owner, 2), torch.stack([plain[[1, 4]].sum(0), plain[[0, 2, 3]].sum(0)])
        )


def test_values_built_without_gradients_do_not_serve_with_them(
    history: tuple[History, Tensor],
) -> None:
    lazy, _ = history
    with torch.no_grad():
        assert not lazy.values.requires_grad
    assert lazy.values.requires_grad
    assert lazy.values is lazy.values
