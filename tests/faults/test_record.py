"""What a folder of faults keeps: several programs add to one at a time, and each goes on with its own sequence."""

import json
from pathlib import Path

from capo_ray.faults.kinds import KINDS
from capo_ray.faults.plan import Fault
from capo_ray.faults.record import FAULTS, Record, read
from capo_ray.faults.strike import Tried

KIND = next(iter(KINDS.values()))
TRIED = Tried(noticed_s=1.0, recovered_s=2.0, said=(), failures=())


def fault(number: int) -> Fault:
    return Fault(number=number, kind=KIND, which=0.0, delay=0.0)


def test_programs_beside_each_other_have_runs_of_their_own(tmp_path: Path) -> None:
    runs = [Record(tmp_path, seed=seed) for seed in (0, 1, 0)]
    assert [record.run for record in runs] == [0, 1, 2]
    assert len({record.folder for record in runs}) == 3


def test_each_seed_goes_on_where_its_own_sequence_stopped(tmp_path: Path) -> None:
    for seed, faults in ((0, 3), (1, 1)):
        record = Record(tmp_path, seed=seed)
        for number in range(faults):
            record.fault(fault(number), TRIED)
    assert [Record(tmp_path, seed=seed).tried() for seed in (0, 1, 2)] == [3, 1, 0]
    assert [(line["seed"], line["number"]) for line in read(tmp_path / FAULTS)] == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_chosen_kinds_have_a_sequence_of_their_own(tmp_path: Path) -> None:
    """Or those of the whole one that have their numbers would never come."""
    for number in range(3):
        Record(tmp_path, seed=0).fault(fault(number), TRIED, ["kill wandb"])
    record = Record(tmp_path, seed=0)
    assert (record.tried(), record.tried(["kill wandb"]), record.tried(["freeze wandb"])) == (0, 3, 0)


def test_lines_from_before_seeds_were_written_belong_to_the_first(tmp_path: Path) -> None:
    (tmp_path / FAULTS).write_text(json.dumps({"run": 0, "number": 6, "kind": KIND.name}) + "\n", encoding="utf-8")
    assert [Record(tmp_path, seed=seed).tried() for seed in (0, 1)] == [7, 0]
