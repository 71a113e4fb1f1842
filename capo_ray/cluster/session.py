"""A Ray session of our own: started for one run, and gone with it.

Its files live in a temporary folder of its own, from which the logs are moved to the run's folder at the end; while it
goes on, `ray_session` in the run's folder says where that is, for who wants to look (launch/grafana), and for a resumed
run, which tidies up after one that was killed. Whoever reaches a Ray runs code in it, so it listens on 127.0.0.1 alone,
and asks for a token as well (Ray's own, in ~/.ray, unless RAY_AUTH_MODE says otherwise). With `address` an existing
cluster is joined instead and left as it was. Leaves out what runs in the session.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil
import ray
from ray._private import ray_constants, serialization, state, worker
from ray.exceptions import RpcError

from capo_ray.cluster.faults import SessionLost
from capo_ray.cluster.patience import beside, ends_within
from capo_ray.cluster.stacks import family
from capo_ray.config.blocks import Cluster
from capo_ray.planning.machine import why_silent

log = logging.getLogger(__name__)

T = TypeVar("T")

GIB = 1 << 30
PREFIX = "capo_ray-"
_ANSWER_S = 5
"""Seconds that Ray's head has for an answer to who asks whether it is there."""
_PATIENCE_S = 10
"""Seconds that Ray is given to end; one whose head is gone does not."""
_HEADLESS_S = 86_400
"""Seconds that Ray looks for a head that is gone before it ends this program: never, since a call that was on its way
when the head went goes on looking beside the next session."""
_END_S = 180.0
"""Seconds until another Ray is started though the last one has not ended."""


def _say_less(data: dict[str, Any], *given: Any, **more: Any) -> None:
    """In place of Ray's printing: of a raylet that ended the first line, without the forty of its state."""
    said = "".join(data["lines"]).strip()
    if said:
        log.warning("Ray says: %s", said.splitlines()[0])


@contextmanager
def ray_session(cluster: Cluster, *, logs: Path) -> Iterator[None]:
    """Ray, started here or joined; `logs` receives the logs of a session that was started here."""
    environment = worker_environment()
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(_HEADLESS_S))  # see while_it_answers
    # Ray has a switch for what actors print, and none for what it has to say itself.
    worker.print_to_stdstream = _say_less
    # What cannot be read is raised where it was asked for; where Ray has just ended nobody asks any more.
    logging.getLogger(serialization.__name__).setLevel(logging.CRITICAL)
    if cluster.address is not None:
        with sigterm_as_it_was():
            ray.init(
                address=cluster.address,
                runtime_env={"env_vars": environment},
                log_to_driver=False,
                logging_level="ERROR",
            )
        try:
            yield
        finally:
            ends_within(_PATIENCE_S, ray.shutdown)
        return
    told = logs.with_name("ray_session")
    tidy(told, logs)
    home = Path(tempfile.mkdtemp(prefix=PREFIX))  # short: socket paths have a limit of 107 characters
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_health_check_failure_threshold", "3")  # a frozen raylet is lost after 40 s, not after 65
    try:
        with sigterm_as_it_was(), _this_machine_alone():
            context = _started(cluster, environment, home)
        if context.dashboard_url:
            log.info("Ray's dashboard: http://%s", context.dashboard_url)
        told.parent.mkdir(parents=True, exist_ok=True)
        told.write_text(f"{home}\n", encoding="utf-8")
        try:
            yield
        finally:
            told.unlink(missing_ok=True)
            _end(home)
            keep_logs(home, logs)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def tidy(told: Path, logs: Path) -> None:
    """What a session of this run left that was killed with its program: `told` names its folder, whose logs are kept.
    A run has one program at a time (files.run_dir), so nobody is in there. Another folder than a session's is left
    alone."""
    if not told.is_file():
        return
    home = Path(told.read_text(encoding="utf-8", errors="replace").strip())
    if home.parent == Path(tempfile.gettempdir()) and home.name.startswith(PREFIX) and home.is_dir():
        keep_logs(home, logs)
        shutil.rmtree(home, ignore_errors=True)
    told.unlink(missing_ok=True)


def _started(cluster: Cluster, environment: dict[str, str], home: Path) -> Any:
    """Ray on this machine. On a busy one its start can take longer than Ray waits for it: then it is tried again."""
    for last in (False, False, True):
        try:
            return ray.init(
                address="local",  # whatever RAY_ADDRESS says, or an earlier `ray start` has left behind
                num_cpus=None if cluster.cpus is None else max(1, int(cluster.cpus)),
                num_gpus=0 if cluster.device == "cpu" else None,
                object_store_memory=None if cluster.object_store_gib is None else int(cluster.object_store_gib * GIB),
                include_dashboard=cluster.dashboard,
                # What vLLM's processes leave where they were, sockets and files by which they meet, goes with the rest.
                runtime_env={"env_vars": environment | {"VLLM_RPC_BASE_PATH": str(home), "TMPDIR": str(home)}},
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(home),
            )
        except Exception as error:
            if last or "timed out" not in str(error):
                raise
            log.warning("Ray's start took too long and is tried again: %s", str(error).splitlines()[0])
            _end(home)
    raise AssertionError("the last try returns or raises")


@contextmanager
def _this_machine_alone() -> Iterator[None]:
    """A Ray that starts inside has 127.0.0.1 as its address, as on systems where it makes no clusters, and listens
    there; an address that it is given it replaces by one that others reach."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _end(home: Path) -> None:
    """End Ray, and what of it does not end by itself since it is frozen, or its head gone."""
    ending = beside(ray.shutdown)
    wait((ending,), _PATIENCE_S)
    left = [child for child in psutil.Process().children(recursive=True) if str(home) in _command(child)]
    if left or not ending.done():
        for process in [member for child in left for member in family(child.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    _until_ended(ending)


def _until_ended(ending: Future[object], *, end_s: float = _END_S, word_s: float = _PATIENCE_S) -> None:
    """What waited for a frozen process goes on, and another session may begin. Where the network was away Ray goes on
    waiting for as long as its own calls may take; a session that begins before is refused by Ray, or ended by it."""
    waited = 0.0
    while waited < end_s and not wait((ending,), word_s).done:
        waited += word_s
        log.warning("waiting for Ray to end since %.0f s", waited)
    if ending.done():
        ending.result()


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def head_address() -> str:
    """HOST:PORT of the head of the session that this process is in."""
    return str(ray.get_runtime_context().gcs_address)


def own_actors(*, alive: bool = False) -> dict[str, dict[str, Any]]:
    """What Ray's head knows of the actors of this program, by their ids; of those that are `alive` alone."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return dict(state.actors(job_id=job, actor_state_name="ALIVE" if alive else None))


def why_head_silent() -> str:
    """Why Ray's head gives this program no answer; empty where it does. Ends within `_ANSWER_S`, after the knock: one
    that takes no connection is not asked, since of several calls to a head that is gone some have no end."""
    return why_silent(head_address()) or _no_answer()


def _no_answer() -> str:
    """Of a head that takes connections."""
    try:
        worker.global_worker.gcs_client.check_alive([], timeout=_ANSWER_S)
    except RpcError as error:
        return str(error)
    return ""


async def while_it_answers(
    work: Coroutine[Any, Any, T],
    address: str,
    *,
    silence_s: float,
    every_s: float = 1.0,
    misses: int = 3,
    ask: Callable[[], str] = _no_answer,
) -> T:
    """What `work` returns. Raises SessionLost, with `work` cancelled, when Ray's head at `address` takes no connection
    `misses` times in a row, or gives no answer for `silence_s`: a frozen one takes connections.

    Ray itself would look for a head that is gone for a minute, and then end the program without a word. It may do that
    still while it ends, for its calls may outlast the head, so `ray_session` forbids it.
    """
    doing = asyncio.ensure_future(work)
    missed, answered = 0, time.monotonic()
    try:
        while not (await asyncio.wait((doing,), timeout=every_s))[0]:
            why = await asyncio.to_thread(why_silent, address)
            missed = missed + 1 if why else 0
            if missed >= misses:
                raise SessionLost(f"Ray's head at {address} is gone ({why})")
            if not (why or await asyncio.to_thread(ask)):
                answered = time.monotonic()
            if (silent := time.monotonic() - answered) >= silence_s:
                raise SessionLost(f"Ray's head at {address} has answered nothing for {silent:.0f} s")
        return doing.result()
    finally:
        doing.cancel()
        await asyncio.wait((doing,), timeout=_PATIENCE_S)


@contextmanager
def sigterm_as_it_was() -> Iterator[None]:
    """Ray takes SIGTERM for itself; what it did before (see `program`) is what it does afterwards."""
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


def worker_environment() -> dict[str, str]:
    """What every process of the run needs: this package, wherever it was started from, and quiet libraries."""
    checkout = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    return {
        "PYTHONPATH": os.pathsep.join(part for part in (checkout, inherited) if part),
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def keep_logs(home: Path, logs: Path) -> None:
    """Copy the session's logs, without its sockets and databases. What keeps them from being written (a full disk) is
    said, and takes no other error's place."""
    for session in home.glob("session_*"):
        source = session / "logs"
        if source.is_dir() and not session.is_symlink():
            try:
                shutil.copytree(source, logs, dirs_exist_ok=True, ignore=shutil.ignore_patterns("old"))
            except OSError as error:  # shutil.Error is one, with a list of every file in place of a text
                log.warning("the processes' logs cannot all be kept in %s: %s", logs, error.strerror or "see its disk")
