"""Waiting that ends."""

from __future__ import annotations

import threading

import pytest

from capo_ray.cluster.patience import ends_within


def test_a_call_that_does_not_end_is_left_behind() -> None:
    never = threading.Event()
    assert not ends_within(0.01, never.wait)
    never.set()


def test_a_call_that_ends_is_waited_for_and_its_error_is_raised() -> None:
    done: list[int] = []
    assert ends_within(10, lambda: done.append(1)) and done == [1]
    with pytest.raises(ZeroDivisionError):
        ends_within(10, lambda: 1 // 0)
