"""A Ray session that goes away under a run is noticed by the run, not by Ray alone."""

import asyncio
import inspect
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from capo_ray.cluster import session
from capo_ray.cluster.faults import SessionLost, is_loss
from capo_ray.cluster.session import _say_less, tidy, while_it_answers


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _work(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


def test_work_beside_a_head_that_answers() -> None:
    async def go() -> str:
        head = await asyncio.start_server(_answer, "127.0.0.1", 0)
        async with head:
            port = head.sockets[0].getsockname()[1]
            answers = iter(["slow", ""] * 100)
            return await while_it_answers(
                _work(0.2), f"127.0.0.1:{port}", silence_s=0.15, every_s=0.02, ask=lambda: next(answers)
            )

    assert asyncio.run(go()) == "done"


def test_a_head_that_takes_connections_and_answers_nothing_is_lost() -> None:
    """A frozen one."""

    async def go() -> None:
        head = await asyncio.start_server(_answer, "127.0.0.1", 0)
        async with head:
            address = f"127.0.0.1:{head.sockets[0].getsockname()[1]}"
            await while_it_answers(_work(3600), address, silence_s=0.2, every_s=0.02, ask=lambda: "too late")

    with pytest.raises(SessionLost, match=r"Ray's head at 127\.0\.0\.1:\d+ has answered nothing for 0 s"):
        asyncio.run(go())


def test_a_head_that_is_gone_ends_the_work() -> None:
    """As a loss, so that the run goes on in another session; nothing of the work is left."""
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"127.0.0.1:{once.getsockname()[1]}"

    async def go() -> None:
        try:
            await while_it_answers(_work(3600), address, silence_s=60, every_s=0.02)
        finally:
            assert asyncio.all_tasks() == {asyncio.current_task()}

    with pytest.raises(SessionLost, match=re.escape(f"Ray's head at {address} is gone ([Errno 111] ")) as error:
        asyncio.run(go())
    assert is_loss(error.value)


def test_what_the_work_raises_is_raised() -> None:
    async def go() -> None:
        async def breaks() -> None:
            raise ValueError("the data are odd")

        await while_it_answers(breaks(), "127.0.0.1:9", silence_s=60, every_s=60)

    with pytest.raises(ValueError, match="the data are odd"):
        asyncio.run(go())


def test_what_a_killed_session_left_is_tidied_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logs are kept; a folder that is no session's is not touched, whatever the file says."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (home := tmp_path / "tmp" / "capo_ray-ab12").joinpath("session_1", "logs").mkdir(parents=True)
    (home / "session_1" / "logs" / "worker.err").write_text("why it died")
    (mine := tmp_path / "home" / "capo_ray-mine").mkdir(parents=True)
    told, logs = tmp_path / "run" / "ray_session", tmp_path / "run" / "logs"
    told.parent.mkdir()
    for named in (mine, tmp_path / "tmp", tmp_path / "tmp" / "capo_ray-ab12" / ".." / "..", home):
        told.write_text(f"{named}\n")
        tidy(told, logs)
        assert mine.is_dir() and not told.exists() and home.is_dir() == (named != home)
    assert (logs / "worker.err").read_text() == "why it died"
    tidy(told, logs)  # nothing is left to be told of


def test_what_ray_says_itself_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    from ray._private import worker

    assert "print_to_stdstream" in inspect.getsource(worker.listen_error_messages), "Ray prints in another way now"
    _say_less(
        {"lines": ["Raylet is terminated. Last 20 lines:\n  - num bytes created total: 8\n"]}, ignore_prefix=False
    )
    _say_less({"lines": [""]})
    assert caplog.messages == ["Ray says: Raylet is terminated. Last 20 lines:"]


@pytest.mark.ray
def test_ray_starts_here_whatever_the_environment_names(tmp_path: Path) -> None:
    """RAY_ADDRESS as docs/launch.md has it for jobs; nobody is there. Its head is asked, frozen and not; and what comes
    when it has ended is read in silence."""
    code = (
        "import sys; from pathlib import Path; from capo_ray.cluster.session import ray_session, why_head_silent;"
        "from capo_ray.faults.processes import find;"
        "from capo_ray.config.compose import compose;"
        "import os, ray, time;"
        "session = ray_session(compose(['+experiment=tiny_cpu']).cluster, logs=Path(sys.argv[1]));"
        "session.__enter__(); print(len(ray.nodes()), 'node');"
        "(head,) = find(os.getpid(), 'gcs_server'); heard = [why_head_silent()];"
        "head.suspend(); time.sleep(1); heard.append(why_head_silent()); head.resume(); print(heard);"
        "reading = ray._private.worker.global_worker.get_serialization_context();"
        "session.__exit__(None, None, None);"
        "late = [ray._private.serialization.SerializedRayObject(b'', b'PYTHON', None)];"
        "print(reading.deserialize_objects(late, [None], {})[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "logs")],
        env=os.environ | {"RAY_ADDRESS": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "1 node" in done.stdout and "System error" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert "['', 'RPC error: Deadline Exceeded']" in done.stdout, done.stdout
    assert not (tmp_path / "ray_session").exists()


def test_a_head_that_takes_no_connection_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own call to one may have no end, whatever its limit."""
    monkeypatch.setattr(session, "head_address", lambda: "127.0.0.1:1")
    monkeypatch.setattr(session.worker.global_worker, "gcs_client", None, raising=False)
    assert "refused" in session.why_head_silent()


def test_another_ray_begins_when_the_last_one_has_ended(caplog: pytest.LogCaptureFixture) -> None:
    """One whose network was away ends when its calls do; it would end a session that begins before."""
    ending: Future[object] = Future()
    threading.Timer(0.4, ending.set_result, [None]).start()
    session._until_ended(ending, word_s=0.15)
    assert ending.done() and caplog.messages[0].startswith("waiting for Ray to end since ")
    session._until_ended(Future(), end_s=0.3, word_s=0.15)
    ending = Future()
    ending.set_exception(OSError("no room"))
    with pytest.raises(OSError, match="no room"):
        session._until_ended(ending)
