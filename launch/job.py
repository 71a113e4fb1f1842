#!/usr/bin/env python3
"""Runs as jobs of a Ray cluster: submit, follow, stop, resume, list. From a laptop or from the cluster's head.

    python launch/job.py submit +experiment=llama3b_intersection run_dir=/shared/runs/first [key=value ...]
    python launch/job.py submit --program doctor +experiment=llama3b_intersection
    python launch/job.py submit --program evaluate model=/shared/runs/first/policy suite=paper out=/shared/scores
    python launch/job.py submit --program sft --gpus 8 +experiment=qwen7b_sft out=/shared/models/sft
    python launch/job.py follow JOB          its output from the beginning; Ctrl-C leaves the job alone
    python launch/job.py stop JOB            as Ctrl-C would: the run closes its engines and says where to go on
    python launch/job.py resume JOB [key=value ...]
    python launch/job.py list

Flags are this program's own, as `ray job` has them; key=value is handed to the program that the job runs. RAY_ADDRESS,
or --address, names the cluster's dashboard (http://127.0.0.1:8265 when unset). Needs `ray[default]` alone.
This checkout is sent along, so the nodes need the environment of requirements/gpu.lock and not this package; what is
written must be on storage that every node sees. Ends with the exit code of the run. Leaves out starting clusters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = [
    "/.venv",
    "/.git",
    "/runs",
    "/models",
    "/evaluations",
    "/tests",
    "/benchmarks",
    "/docs",
    "**/__pycache__",
    ".*_cache",
]
"""At the top of the checkout: what programs write there, and what no run reads; folders below with the same names go
along. The cluster takes 500 MiB at most."""
STARTING_S = 60
"""Seconds that a cluster has, whose dashboard answers already, before it must take jobs."""
STOP_S = 300
"""Seconds that a run has to write a checkpoint and close its engines; Ray's own patience is three."""
STOPPING_S = 60
"""Seconds more that Ray has to end it and to say so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How a program of capo_ray is as a job."""

    writes: str = ""
    """Its argument that names the folder it writes; none: it writes none."""
    reads: tuple[str, ...] = ()
    """Arguments of its own that may name files, beside those of `FILES`."""
    plans: bool = False
    """Whether dry_run=true has it write nothing."""
    joins: bool = True
    """Whether it starts actors on the cluster."""
    own_gpus: bool = True
    """Whether its own process uses GPUs, those of the node that the job is put on: to train, or for a critic."""
    again: tuple[str, ...] | None = ()
    """What its command is to have besides to go on where it was stopped; None: it cannot."""


PROGRAMS = {
    "launch": Program(writes="run_dir", plans=True, own_gpus=False, again=("resume=true",)),
    "evaluate": Program(writes="out", reads=("model", "suite")),
    "critic_bench": Program(writes="out", joins=False),
    "sft": Program(writes="out", reads=("model", "data"), plans=True, joins=False, again=("resume=true",)),
    "doctor": Program(own_gpus=False, again=None),
}
FILES = ("path", "tokenizer", "template", "source", "data_dir", "replay")
"""How arguments end that may name files, whatever the program."""
ASKED, GPUS = "capo_ray", "capo_ray_gpus"
"""Under which names a job keeps what it was asked, for `resume`."""


class JobError(RuntimeError):
    """What was asked for cannot be done; the message says why and what to do."""


def connect(address: str) -> JobSubmissionClient:
    try:
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError as error:
        raise JobError("Ray is not installed here: pip install 'ray[default]==2.60.0'") from error
    if not address.startswith(("http://", "https://")):
        raise JobError(
            f"{address} is no dashboard: name it as http://HEAD:8265, by --address or RAY_ADDRESS (HOST:PORT is where "
            "programs join a cluster, cluster.address)"
        )
    try:
        with _address_alone():
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise JobError(
            f"the cluster at {address} asks for its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to what its nodes have (`ray get-auth-token` prints it there)"
        ) from error
    except (TypeError, ValueError, LookupError, AttributeError) as error:  # as its client takes other servers' answers
        raise JobError(f"what answers at {address} is no Ray dashboard: name another with --address") from error
    except (ConnectionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise JobError(
            f"no Ray dashboard answers at {address} ({reason}). Name it with RAY_ADDRESS=http://HEAD:8265, or bring it "
            "here: ssh -L 8265:127.0.0.1:8265 HEAD"
        ) from error


@contextmanager
def _address_alone() -> Iterator[None]:
    """Ray's client asks these variables first, whatever address it is given."""
    hidden = {name: os.environ.pop(name) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a job runs."""

    program: str
    arguments: tuple[str, ...]
    gpus: int = 0
    """Of the job's own process."""

    def metadata(self) -> dict[str, str]:
        """What a job keeps of it, for `resume`."""
        return {ASKED: json.dumps([self.program, *self.arguments]), GPUS: str(self.gpus)}


def submit(client: JobSubmissionClient, request: Request, environment: dict[str, str], name: str | None) -> str:
    """Id of the job. `exec`: a shell that Ray's signal ends first leaves the program to whoever reaps orphans, which in
    a container may be nobody, and Ray waits until all of it is reaped."""
    joined = ["cluster.address=auto"] if PROGRAMS[request.program].joins else []
    entrypoint = "exec " + shlex.join(["python", "-m", f"capo_ray.{request.program}", *joined, *request.arguments])
    runtime = {
        "working_dir": str(ROOT),
        "excludes": LEFT_OUT,
        "env_vars": environment | {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), "PYTHONUNBUFFERED": "1"},
    }
    deadline = time.monotonic() + STARTING_S
    while True:
        try:
            return str(
                client.submit_job(
                    entrypoint=entrypoint,
                    submission_id=name,
                    runtime_env=runtime,
                    metadata=request.metadata(),
                    entrypoint_num_gpus=request.gpus or None,
                )
            )
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                said = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
                raise JobError(f"the cluster does not take the job: {said[-1] if said else error}") from error
        time.sleep(2)


def check(request: Request) -> None:
    """A job's working directory goes away with it, so what it writes needs a place of its own."""
    if request.program not in PROGRAMS:
        raise JobError(f"--program must be one of {', '.join(PROGRAMS)}, got {request.program!r}")
    program = PROGRAMS[request.program]
    given = dict(argument.lstrip("-").split("=", 1) for argument in request.arguments if "=" in argument)
    planned = program.plans and given.get("dry_run") == "true"
    _check_gpus(request, given, planned)
    place = given.get(program.writes, "")
    if program.writes and not planned and not place.startswith("/"):
        raise JobError(
            f"{program.writes} must be an absolute path on storage that every node sees, got {place or 'none'}: a "
            f"job's own folder is removed with it; pass {program.writes}=/shared/runs/NAME"
        )
    for name, value in given.items():
        if (name in program.reads or name.split(".")[-1] in FILES) and _is_left_here(value):
            raise JobError(
                f"{name}={value} is a path of this machine, and the job runs on another: pass the absolute path of a "
                "copy on storage that every node sees"
            )


def _check_gpus(request: Request, given: Mapping[str, str], planned: bool) -> None:
    program = PROGRAMS[request.program]
    if request.gpus < 0:
        raise JobError(f"--gpus must be at least 0, got {request.gpus}")
    if request.gpus and not program.own_gpus:
        takers = ", ".join(name for name, one in PROGRAMS.items() if one.own_gpus)
        raise JobError(
            f"--gpus is for programs with GPUs of their own ({takers}); {request.program} asks Ray for its own"
        )
    if request.program == "sft" and not request.gpus and not planned and given.get("device") != "cpu":
        raise JobError("sft trains on the GPUs of one node: pass --gpus N, or device=cpu")


def _is_left_here(value: str) -> bool:
    """Whether it is a path from here that the checkout, which is sent along, does not hold."""
    if not value or value.startswith("/") or not Path(value).exists():
        return False
    there = (ROOT / value).resolve()
    if not there.exists() or not there.is_relative_to(ROOT):
        return True
    return bool({f"/{part}" for part in there.relative_to(ROOT).parts[:1]} & set(LEFT_OUT))


def what_goes_on(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """What the command of a job is to have besides to go on; None: it cannot, or `submit` did not start it."""
    name = json.loads(metadata.get(ASKED, "[null]"))[0]
    return PROGRAMS[name].again if name in PROGRAMS else None


def resumed(metadata: Mapping[str, str], changes: Sequence[str]) -> Request:
    """What a job was asked, with `changes` in place of what they repeat, and what it takes to go on."""
    if (more := what_goes_on(metadata)) is None:
        going_on = [name for name, program in PROGRAMS.items() if program.again is not None]
        raise JobError(f"only jobs that `submit` started can be resumed, of: {', '.join(going_on)}")
    name, *arguments = json.loads(metadata[ASKED])
    new = {change.split("=", 1)[0] for change in (*changes, *more)}
    kept = [old for old in arguments if old.split("=", 1)[0] not in new]
    return Request(program=name, arguments=(*kept, *changes, *more), gpus=int(metadata.get(GPUS, "0")))


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print what the job prints until it ends; its exit code, 130 of one that was stopped: Ray keeps none of that."""
    details(client, job)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)

    try:
        asyncio.run(tail())
        done = wait(client, job)
    except KeyboardInterrupt:
        print(f"\n{job} goes on. Follow it again: follow {job}; end it: stop {job}", file=sys.stderr)
        return 130
    print(f"{job}: {done.status.value.lower()}", file=sys.stderr)
    if done.status.value == "SUCCEEDED":
        return 0
    return done.driver_exit_code or (130 if done.status.value == "STOPPED" else 1)


def wait(client: JobSubmissionClient, job: str, *, within_s: float = math.inf) -> JobDetails:
    """The job once it has ended, or as it is then."""
    deadline = time.monotonic() + within_s
    while not (found := details(client, job)).status.is_terminal() and time.monotonic() < deadline:
        time.sleep(1)
    return found


def details(client: JobSubmissionClient, job: str) -> JobDetails:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        raise JobError(f"the cluster knows no job {job!r}; `list` shows those there are") from error


def stop(client: JobSubmissionClient, job: str) -> int:
    found = details(client, job)
    if found.status.is_terminal():
        raise JobError(f"{job} has ended already: {found.status.value.lower()}")
    client.stop_job(job)
    done = wait(client, job, within_s=STOP_S + STOPPING_S)
    if not done.status.is_terminal():
        raise JobError(
            f"{job} was told to stop and has not ended in {STOP_S + STOPPING_S} s, though Ray kills what is left of it "
            f"after {STOP_S}: see whether the node it is on still lives (`ray status`), and its output (follow {job})"
        )
    print("\n".join(client.get_job_logs(job).rstrip().splitlines()[-3:]))
    further = f" Go on with: resume {job}" if what_goes_on(found.metadata or {}) is not None else ""
    print(f"{job}: {done.status.value.lower()}.{further}", file=sys.stderr)
    return 0


def table(jobs: Sequence[JobDetails]) -> str:
    """Jobs, newest last."""
    rows = []
    for job in sorted(jobs, key=lambda one: one.start_time or 0):
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime((job.start_time or 0) / 1000))
        rows.append(f"{job.submission_id or job.job_id:<28} {job.status.value.lower():<10} {begun}  {job.entrypoint}")
    return "\n".join(rows) or "no jobs"


def environment_of(names: Sequence[str]) -> dict[str, str]:
    if missing := [name for name in names if name not in os.environ]:
        raise JobError(f"--env {missing[0]}: that variable is not set here")
    return {name: os.environ[name] for name in names}


class Parser(argparse.ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise JobError(f"{message}; {self.prog} --help says more")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="launch/job.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RAY_ADDRESS") or "http://127.0.0.1:8265"
    parser.add_argument("--address", default=default, help="the cluster's dashboard; else RAY_ADDRESS")
    commands = parser.add_subparsers(dest="command", required=True)
    starting = argparse.ArgumentParser(add_help=False)
    starting.add_argument("--env", action="append", default=[], metavar="NAME", help="pass this variable on")
    starting.add_argument("--detach", action="store_true", help="print the job's id and do not follow it")
    starting.add_argument("--id", help="name of the new job; else Ray makes one up")
    first = commands.add_parser("submit", parents=[starting])
    first.add_argument("--program", default="launch", help=f"capo_ray.PROGRAM: {', '.join(PROGRAMS)}")
    first.add_argument(
        "--gpus",
        type=int,
        default=0,
        metavar="N",
        help="GPUs of the program's own process: sft, or the critic of evaluate and critic_bench",
    )
    first.add_argument("arguments", nargs="+")
    again = commands.add_parser("resume", parents=[starting])
    again.add_argument("job")
    again.add_argument("arguments", nargs="*")
    for name in ("follow", "stop"):
        commands.add_parser(name).add_argument("job")
    commands.add_parser("list")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> int:
    if options.command == "submit":
        request = Request(program=options.program, arguments=tuple(options.arguments), gpus=options.gpus)
        check(request)
    client = connect(options.address)
    if options.command == "follow":
        return follow(client, options.job)
    if options.command == "stop":
        return stop(client, options.job)
    if options.command == "list":
        print(table(client.list_jobs()))
        return 0
    if options.command == "resume":
        request = resumed(details(client, options.job).metadata or {}, options.arguments)
        check(request)
    job = submit(client, request, environment_of(options.env), options.id)
    if options.detach:
        print(job)
        return 0
    print(f"job {job}; Ctrl-C leaves it alone, `stop {job}` ends it", file=sys.stderr)
    return follow(client, job)


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(parse(argv))
    except JobError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # Ray's client tells what it sends, and that it has sent it before
    sys.exit(main())
