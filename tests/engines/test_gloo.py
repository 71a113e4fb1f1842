"""Groups of gloo that share a loop still reach each other."""

import subprocess
import sys
from pathlib import Path

RANK = """
import sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from capo_ray.engines.gloo import one_loop

rank = int(sys.argv[2])
with one_loop():
    dist.init_process_group("gloo", store=dist.FileStore(sys.argv[1], 2), rank=rank, world_size=2)
    groups = [dist.new_group([0, 1], backend="gloo") for _ in range(3)]
sums = []
for place, group in enumerate(groups, 1):
    tensor = torch.full((3,), float(place * 10**rank))
    dist.all_reduce(tensor, group=group)
    sums.append(int(tensor[0]))
names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
assert distributed_c10d.ProcessGroupGloo is dist.ProcessGroupGloo, "those of others are as they were"
print(*sums, "loops:", sum(name.startswith("gloo_tcp_loop") for name in names))
dist.barrier()
"""


def test_groups_of_two_ranks_share_one_loop(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "store"), str(rank)], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert said == ["11 22 33 loops: 1\n"] * 2
