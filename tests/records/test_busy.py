"""Seconds with at least one request, on a clock of the test's own."""

import pytest

from capo_ray.records import busy


def test_seconds_in_which_any_request_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(busy.time, "monotonic", lambda: now)
    held = busy.Busy()
    now = 12.0
    with held:
        now = 13.0
        with held:
            now = 15.0
            assert (held.running, held.seconds) == (2, 3.0)
        assert held.running == 1
        now = 16.0
    now = 20.0
    assert (held.running, held.seconds) == (0, 4.0)
    with pytest.raises(KeyError), held:
        now = 21.0
        raise KeyError
    assert (held.running, held.seconds) == (0, 5.0)
