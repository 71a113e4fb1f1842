"""How the programs of this package end."""

from __future__ import annotations

import asyncio

import pytest

from capo_ray.program import INTERRUPTED, run_program


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interruption_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], interruption: type[BaseException]
) -> None:
    def work(arguments: list[str]) -> int:
        raise interruption

    assert run_program(work, ["a=1"], "usage", afterwards="It goes on from here.") == INTERRUPTED
    assert capsys.readouterr().err == "\ninterrupted. It goes on from here.\n"
