"""Which GPUs the engines see that share them with trainer ranks; Ray is real, the GPUs are pretended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pretended_gpus import Onlooker, ray_with_gpus

from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.planning.bundles import Role, seats

pytestmark = pytest.mark.ray

NODE = [f"GPU-{letter * 8}" for letter in "hgfedcba"]
"""As a user names the GPUs of a node in its CUDA_VISIBLE_DEVICES."""
TURNS = ("+experiment=qwen7b_intersection", "+size=one_node_turns", "critic.workers=1", "critic.tensor_parallel=4")
OTHERS = "+critic.others=[{model:${critic.model},tensor_parallel:2},{model:${critic.model},workers:2}]"


def look(file: Path, **given: Any) -> Onlooker:
    return Onlooker(file, {}, file.name)


async def seen(config: Config, engines: Collection[Role], folder: Path, dying: str = "") -> Mapping[str, list[str]]:
    """What trainer ranks and `engines` see, by name; the engine that is `dying` after it was started again."""
    import ray

    from capo_ray.cluster.patience import when_up
    from capo_ray.cluster.placement import Team

    folder.mkdir()
    async with Team(config, "looks") as team:
        ranks = team.hire("trainer", lambda seat: (partial(look, folder / seat.name), None, seat.number))
        for role in engines:
            team.hire(role, lambda seat: (partial(look, folder / seat.name),))
        await team.ready()
        await asyncio.gather(*(rank.start.remote("", 0) for rank in ranks.values()))
        if dying:
            (folder / dying).unlink()
            ray.kill(team.actors[dying], no_restart=False)
            while not (folder / dying).exists():
                await asyncio.sleep(0.1)
            await when_up(team.actors[dying], f"{dying} to start again")
        return {name: json.loads((folder / name).read_text())["visible"] for name in team.actors}


def test_an_engine_sees_the_gpus_of_its_ranks_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Critics of one, two and four GPUs in one run; then one of eight, which is started again, over two workers of
    four."""
    from capo_ray.cluster.faults import NotEnough
    from capo_ray.cluster.placement import Team

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(NODE))
    mixed = compose([*TURNS, OTHERS])
    wide = compose([*TURNS, "critic.tensor_parallel=8", "rollout.workers=2", "rollout.tensor_parallel=4"])
    wider = compose([*TURNS, "critic.tensor_parallel=16", "rollout.workers=16", "trainer.ranks=16"])
    with ray_with_gpus(8, logs=tmp_path / "logs"):
        found = asyncio.run(seen(mixed, ["critic"], tmp_path / "mixed"))
        again = asyncio.run(seen(wide, ["critic", "rollout"], tmp_path / "wide", dying="critic-0"))
        with pytest.raises(NotEnough, match="this run needs 16 GPU \\(there are 8\\)"):
            asyncio.run(Team(wider, "too wide").place())
    for config, saw in ((mixed, found), (wide, again)):
        ranks = [saw[f"trainer-{rank}"] for rank in range(8)]
        assert sorted(ranks) == sorted([name] for name in NODE)
        sharing = [seat for seat in seats(config)[1] if seat.name in saw and seat.role != "trainer"]
        for seat in sharing:
            assert saw[seat.name] == [ranks[rank][0] for rank in seat.shares], seat.name
        assert [len(saw[seat.name]) for seat in sharing] == ([4, 2, 1, 1] if saw is found else [4, 4, 8])
