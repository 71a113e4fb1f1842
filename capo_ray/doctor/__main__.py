"""`python -m capo_ray.doctor`: can this experiment run here, and what is to be mended if not.

Looks at software, machine, cluster and what the run asks for; changes nothing. Every check is a function of its own in
the modules beside this one. Leaves out the rows of data sets (`capo_ray.data check`).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from capo_ray.config.block import setting
from capo_ray.config.compose import compose
from capo_ray.config.listing import beside_run
from capo_ray.config.own_settings import AnyPath, BesideRun, read_own
from capo_ray.config.run import Config
from capo_ray.doctor import gpus, host, software, wanted
from capo_ray.doctor.cluster import cluster
from capo_ray.doctor.finding import Finding
from capo_ray.files.output import check_output, output_file
from capo_ray.planning.machine import GIB, Machine, shape_of, this_machine
from capo_ray.planning.plan import experiments_that_fit
from capo_ray.program import FAILED, run_program

DEFAULT = "+experiment=tiny_cpu"
USAGE = """usage: python -m capo_ray.doctor [+experiment=NAME] [key=value ...]

Can it run here? Looks at software, machine and what the run asks for (tiny_cpu unless given), and says what to mend.

  python -m capo_ray.doctor +experiment=llama3b_intersection
  cluster.address=auto   look at that cluster and every node of it too (auto or HOST:PORT)

Exit code 0 when nothing fails, 1 when something does, 2 when the configuration itself is wrong.
"""


class Settings(BesideRun):
    """Of this program."""

    out: AnyPath | None = setting("file for the same as JSON; null: none", None)


COLOURS = {"ok": "32", "warn": "33", "fail": "31"}


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(work, argv, USAGE, settings=beside_run(Settings), bare=True)


def asked(arguments: Sequence[str]) -> tuple[Settings, Config]:
    """With the usual experiment where none is named. Raises ConfigError."""
    given = read_own(Settings, arguments)
    named = any(argument.lstrip("+").startswith(("experiment=", "paper=")) for argument in given.overrides)
    return given, compose(given.overrides if named else [*given.overrides, DEFAULT])


def work(arguments: list[str]) -> int:
    given, config = asked(arguments)
    if given.out is not None:
        check_output(given.out)
    machine, findings = examine(config)
    fitting = experiments_that_fit(machine) if machine else []
    failed = any(finding.state == "fail" for finding in findings)
    if given.out is not None:
        write(given.out, config, machine, findings, fitting)
    print(table(findings, colour=sys.stdout.isatty()))
    print(summary(config, findings, fitting))
    return FAILED if failed else 0


def examine(config: Config) -> tuple[Machine | None, list[Finding]]:
    """Everything that there is to look at for `config`; the machine is the cluster's where one is to be joined."""
    run_dir = Path(config.run_dir or "runs").expanduser().resolve()
    findings, where = [*of_software(config), *of_host(config, run_dir)], "here"
    machine: Machine | None = this_machine(config.cluster)
    if config.cluster.address is not None:
        machine, more = cluster(config, run_dir, wanted.folders(config))
        findings, where = [*findings, *more], "the cluster"
    return machine, [*findings, *of_run(config, machine, where, run_dir)]


def of_software(config: Config) -> Iterator[Finding]:
    device = config.cluster.device
    there = software.installed()
    yield software.python((sys.version_info.major, sys.version_info.minor))
    yield software.packages(device, software.pins(device), there)
    yield software.compiler(device)
    if config.cluster.address is None:  # else each node is asked
        found, trouble = gpus.gpus_here()
        yield gpus.gpus(config, found, trouble)
        yield gpus.driver(config, found)
    yield gpus.nccl(config, there, os.environ, host.interfaces())


def of_host(config: Config, run_dir: Path) -> Iterator[Finding]:
    shape = shape_of(config.policy)
    if Path("/dev/shm").is_dir():
        total, free = room_of(Path("/dev/shm"))
        memory = this_machine(config.cluster).memory_gib
        yield host.shared_memory(config, shape, total_gib=total, free_gib=free, memory_gib=memory)
    total, free = room_of(run_dir)
    yield host.run_disk(config, shape, run_dir, total_gib=total, free_gib=free)
    temporary = Path(tempfile.gettempdir())
    total, free = room_of(temporary)
    yield host.ray_disk(temporary, total_gib=total, free_gib=free)
    yield host.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield host.ports(config, host.is_taken)
    yield host.host_name(joins=config.cluster.address is not None)


def of_run(config: Config, machine: Machine | None, where: str, run_dir: Path) -> Iterator[Finding]:
    if machine is not None:
        yield wanted.room(config, machine, where)
    cache = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    for place, model in wanted.models(config):
        yield wanted.model_files(place, model, wanted.ask_hub, cache_free_gib=room_of(cache)[1])
    for source in wanted.sources(config):
        yield wanted.data(source, lambda name: wanted.ask_hub(name, kind="dataset"))
    if config.epochs is not None:
        yield wanted.epochs(config)
    yield wanted.critic_servers(config)
    yield wanted.wandb(config.tracking)
    if config.run_dir is not None:
        yield wanted.run_dir(config, run_dir)


def room_of(folder: Path) -> tuple[float, float]:
    """GiB in all and free of the disk that `folder` is on, or would be."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return usage.total / GIB, usage.free / GIB


def table(findings: Sequence[Finding], *, colour: bool) -> str:
    width = max(len(finding.check) for finding in findings)
    lines = []
    for finding in findings:
        state = f"{finding.state:<4}"
        shown = f"\x1b[{COLOURS[finding.state]}m{state}\x1b[0m" if colour else state
        lines.append(f"{shown}  {finding.check:<{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"{'':<{width + 8}}fix: {finding.fix}")
    return "\n".join(lines)


def summary(config: Config, findings: Sequence[Finding], fitting: Sequence[str]) -> str:
    counts = {state: sum(finding.state == state for finding in findings) for state in COLOURS}
    verdict = "cannot run as it stands" if counts["fail"] else "can run"
    experiments = ", ".join(fitting) or "none"
    return (
        f"\n{config.name} {verdict}: {counts['ok']} ok, {counts['warn']} warn, {counts['fail']} fail\n"
        f"experiments with room here: {experiments}"
    )


def write(
    path: Path, config: Config, machine: Machine | None, findings: Sequence[Finding], fitting: Sequence[str]
) -> None:
    """Raises CannotWrite."""
    report = {
        "experiment": config.name,
        "state": max((finding.state for finding in findings), key=list(COLOURS).index),
        "machine": asdict(machine) if machine else None,
        "findings": [asdict(finding) for finding in findings],
        "experiments_with_room": list(fitting),
    }
    with output_file(path) as file:
        file.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
