"""A run's numbers: what is written where, what going back removes, and that no sink can stop a run."""

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pytest
from ending import living
from small_disk import little_room

from capo_ray.config.blocks import Tracking
from capo_ray.config.compose import compose
from capo_ray.config.critic import Canaries
from capo_ray.config.run import Config
from capo_ray.files.checkpoint import Checkpoints
from capo_ray.files.run_dir import RunDirError
from capo_ray.records import sinks
from capo_ray.records.sinks import Beside, Wandb, wandb_mode
from capo_ray.records.terminal import progress, short, table_rows
from capo_ray.records.tracking import Tracker
from capo_ray.records.watch import Diverged

ROOT = Path(__file__).resolve().parents[2]
QUIET = Tracking(wandb="off", tensorboard=False)
METRICS = {
    "reward/mean_token_reward": 0.4,
    "outcome/accuracy": 0.52,
    "truth/step_accuracy": 0.813,
    "truth/right_answer_and_process": 0.44,
    "critic/valid_share": 0.98,
    "speed/rollout_tokens_per_s": 850.4,
    "speed/critic_tokens_per_s": 12_340.0,
    "speed/trainer_tokens_per_s": 1_260.0,
    "staleness": 1.0,
    "seconds/step": 3.14,
    "trainer/loss": 0.1,
}

SAMPLE = {
    "step": 3, "prompt_id": "p", "question": "1 + 1", "gold": "2", "response": "It is 3.", "answer": "wrong",
    "wrong_steps": [0, 2], "critiques": [{"outcome": "ok", "text": "No"}], "token_rewards": [-0.5, 0.25],
}  # fmt: skip


def tracker(run_dir: Path, config: Tracking = QUIET, **more: Any) -> Tracker:
    arguments = {"run_name": "a run", "resolved_config": {"seed": 1}, "total_steps": 12, "console": False}
    return Tracker(run_dir, config, **(arguments | more))


def lines(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def heads(run_dir: Path) -> list[tuple[int, bool]]:
    """(step, whether it is an evaluation) of each line."""
    return [(line["step"], any(name.startswith("evaluation/") for name in line)) for line in lines(run_dir)]


def four_steps(run_dir: Path) -> Tracker:
    made = tracker(run_dir)
    made.evaluation(0, {"outcome/accuracy": 0.5})
    for step in range(1, 5):
        made.step(step, {"x": float(step)})
        if step % 2 == 0:
            made.evaluation(step, {"outcome/accuracy": 0.5 + step / 10})
    return made


def test_a_line_is_there_when_its_step_is(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    made.step(1, {"a/b": 0.5, "loss": math.nan, "gap": math.inf})
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1.7e9
    assert line == {"step": 1, "a/b": 0.5, "loss": None, "gap": None, "run/restarts": 0}
    made.evaluation(1, {"outcome/accuracy": 0.25})
    assert lines(tmp_path)[1] | {"time": 0} == {"step": 1, "time": 0, "evaluation/outcome/accuracy": 0.25}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_restarts_are_counted(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    for step in (1, 2):
        made.step(step, METRICS)
        made.restarted(step)
    assert [line["run/restarts"] for line in lines(tmp_path)] == [0, 1]


def test_a_run_that_is_stopped_now_and_then_is_warned_as_one_that_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings(run_dir: Path, resumed_at: tuple[int, ...]) -> list[str]:
        caplog.clear()
        made = tracker(run_dir)
        for step in range(1, 61):
            if step - 1 in resumed_at:
                made = tracker(run_dir)
                made.rewind(step - 1)
            accuracy = 0.6 - 0.005 * step
            made.step(
                step,
                {"response/mean_tokens": 100 + 10.0 * step, "response/mean_steps": 5.0, "outcome/accuracy": accuracy},
            )
        return list(caplog.messages)

    assert warnings(tmp_path / "resumed", (15, 30, 45)) == warnings(tmp_path / "whole", ()) != []


def test_a_critic_below_its_floor_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts = {
        "critic/canaries": 60.0,
        "critic/canary_hits": 1.0,
        "critic/canary_flagged": 2.0,
        "critic/canary_wrong": 9.0,
    }
    for floor, warnings in ((0.0, 0), (0.3, 1)):
        caplog.clear()
        made = tracker(tmp_path, canaries=Canaries(source="arithmetic", min_recall=floor))
        made.step(5, counts)
        assert len(caplog.messages) == warnings
    assert caplog.messages[0].startswith("step 5: the critic is below its floor on the last 60 canaries: recall 0.11")


def test_a_run_has_the_floors_of_its_configuration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    floor = ("critic.canaries.source=arithmetic", "critic.canaries.min_precision=0.9", "tracking.tensorboard=false")
    made = Tracker.open(compose(["+experiment=tiny_cpu", "tracking.wandb=off", *floor]), tmp_path)
    made.step(1, {"critic/canaries": 60, "critic/canary_hits": 1, "critic/canary_flagged": 2, "critic/canary_wrong": 1})
    assert "precision 0.50 (critic.canaries.min_precision 0.9)" in caplog.text


def test_the_progress_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tracker(tmp_path, console=True)
    made.step(1, METRICS)
    made.step(12, {"outcome/accuracy": 1.0, "seconds/step": 60.0})
    made.evaluation(12, {"truth/step_accuracy": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "step  1/12 | reward +0.400 | right answer 52.0%, steps 81.3%, both 44.0% | valid critiques 98.0% | "
        "tok/s rollout 850, critic 12k, trainer 1.3k | stale 1 | 3.1 s",
        "step 12/12 | right answer 100.0% | 60.0 s",
        "evaluation after 12 steps | right steps 50.0%",
    ]
    assert progress({"trainer/loss": 1.0}) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (999.6, "1.0k"), (9949, "9.9k"), (9950, "10k"), (123_456, "123k")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


def test_going_back(tmp_path: Path) -> None:
    """To step 2: what steps 1 and 2 did stays, and how the policy after them does."""
    made = four_steps(tmp_path)
    assert heads(tmp_path) == [(0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    samples = tmp_path / "samples"
    samples.mkdir()
    kept = ["000001-0.jsonl", "000002-0.jsonl", "000002-1.jsonl", "notes.txt"]
    for name in [*kept, "000003-0.jsonl", "000004-1.jsonl", "1000000-0.jsonl", "000002-0.partial"]:
        (samples / name).touch()
    folders = ["exports/step_000002", "exports/step_000003", "nonfinite/step_000002", "nonfinite/step_000003"]
    for name in [*folders, "exports/mine"]:
        (tmp_path / name).mkdir(parents=True)
    made.rewind(2)
    assert heads(tmp_path) == [(0, True), (1, False), (2, False), (2, True)]
    assert sorted(path.name for path in samples.iterdir()) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("exports", "metrics.jsonl", "nonfinite", "rolled_back", "samples")
    ]
    stay = [path.name for name in ("exports", "nonfinite") for path in sorted((tmp_path / name).iterdir())]
    assert stay == ["mine", "step_000002", "step_000002"]
    aside = tmp_path / "rolled_back" / "1"
    assert heads(aside) == [(3, False), (4, False), (4, True)]
    assert (aside / "exports" / "step_000003").is_dir() and (aside / "nonfinite" / "step_000003").is_dir()
    gone = ["000003-0.jsonl", "000004-1.jsonl", "1000000-0.jsonl"]
    assert sorted(path.name for path in (aside / "samples").iterdir()) == gone
    assert "after 2" in columns(made)
    assert made.has_evaluation(2) and not made.has_evaluation(4)
    made.step(3, {"x": -1.0})
    assert lines(tmp_path)[-1]["x"] == -1.0
    made.rewind(0)
    assert heads(tmp_path) == [(0, True)]


def test_how_good_a_checkpoint_is(tmp_path: Path) -> None:
    """By its evaluation, or else by the steps since the last one."""
    made = Tracker(
        tmp_path, QUIET, run_name="r", resolved_config={}, total_steps=4, console=False, best_by="outcome/accuracy"
    )
    assert made.score(0) is None
    for step, accuracy in enumerate((0.1, 0.3, 0.8), start=1):
        made.step(step, {"outcome/accuracy": accuracy})
        if step == 2:
            assert made.score(2) == pytest.approx(0.2)
    made.evaluation(3, {"outcome/accuracy": 0.7})
    assert made.score(3) == 0.7
    made.step(4, {"other": 1.0})
    assert made.score(4) is None


def test_a_broken_policy_ends_the_run_when_its_step_is_written(tmp_path: Path) -> None:
    made = Tracker(tmp_path, QUIET, run_name="r", resolved_config={}, total_steps=4, console=False, stop_after=1)
    made.step(1, {"group/credit_share": 0.0})
    with pytest.raises(Diverged):
        made.step(2, {"group/credit_share": 0.0})
    assert heads(tmp_path) == [(1, False), (2, False)]
    again = Tracker(tmp_path, QUIET, run_name="r", resolved_config={}, total_steps=4, console=False, stop_after=1)
    again.rewind(2)


def test_going_back_in_a_run_that_has_written_nothing(tmp_path: Path) -> None:
    tracker(tmp_path).rewind(0)
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_goes(tmp_path: Path) -> None:
    four_steps(tmp_path)
    whole = lines(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "time": 17')  # killed while it wrote
    made = tracker(tmp_path)
    assert lines(tmp_path) == whole
    made.step(4, {"x": 4.0})
    assert lines(tmp_path)[:-1] == whole


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "time": 1}\nwhat\n{"step": 1, "time": 2}\n')
    with pytest.raises(RunDirError) as error:
        tracker(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/metrics.jsonl, line 2 is not JSON (Expecting value); mend or remove that line"
    )


def columns(made: Tracker) -> list[str]:
    table = made.table()
    return [str(column.header) for column in table.columns] if table else []


def test_before_and_after(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    assert made.table() is None
    made.evaluation(0, {"outcome/accuracy": 0.5, "response/mean_tokens": 70.0, "seconds": 3.0, "only/before": 1.0})
    assert made.table() is None
    made.evaluation(8, {"outcome/accuracy": 0.6})
    made.evaluation(16, {"outcome/accuracy": 0.75, "response/mean_tokens": 60.5, "truth/step_accuracy": 1.0})
    assert columns(made) == ["", "after 0", "after 16", "change"]
    resumed = tracker(tmp_path)  # what the run before it has measured is in the file
    table = resumed.table()
    assert table is not None and table.title == "Held-out problems after 0 and 16 training steps"
    assert [list(column.cells) for column in table.columns] == [
        ["right answer", "tokens per response"],
        ["50.0%", "70.0"],
        ["75.0%", "60.5"],
        ["+25.0 points", "-9.5"],
    ]


def test_an_interval_stands_beside_its_share() -> None:
    before = {"outcome/accuracy": 0.477, "outcome/accuracy_low": 0.446, "outcome/accuracy_high": 0.5085}
    assert table_rows(before, {"outcome/accuracy": 0.627}) == [
        ("right answer (± 95 % interval)", "47.7% ± 3.1", "62.7%", "+15.0 points")
    ]


def test_an_evaluation_that_is_made_again_replaces_the_first(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    for accuracy in (0.1, 0.2):
        made.evaluation(0, {"outcome/accuracy": accuracy})
    made.evaluation(1, {"outcome/accuracy": 0.3})
    for at_hand in (made, tracker(tmp_path)):
        table = at_hand.table()
        assert table is not None and list(table.columns[1].cells) == ["20.0%"]
    assert table_rows({}, {}) == []


def test_tensorboard(tmp_path: Path) -> None:
    """What was cut off is gone from its view too."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = tracker(tmp_path, Tracking(wandb="off"))
    made.evaluation(0, {"x": 7.0})
    for step in range(1, 5):
        made.step(step, {"x": float(step)})
        made.evaluation(step, {"x": 7.0 + step})
    made.rewind(2)
    made.step(3, {"x": 20.0})
    made.finish()
    made.finish()
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert [(event.step, event.value) for event in seen.Scalars("x")] == [(1, 1.0), (2, 2.0), (3, 20.0)]
    assert [(event.step, event.value) for event in seen.Scalars("evaluation/x")] == [
        *((0, 7.0), (1, 8.0), (2, 9.0)),
    ]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes below the run's folder, keeps its id over a resume, leaves no process and no key."""
    key = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    config = Tracking(wandb="offline", tensorboard=False)
    first = tracker(tmp_path, config)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "000001-0.jsonl").write_text(json.dumps(SAMPLE) + "\n")
    first.step(1, METRICS | {"broken": math.nan})
    state = first.state()
    first.finish()
    assert list(tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.table.json"))
    second = tracker(tmp_path, config, resume_state=state)
    second.rewind(0)
    second.step(1, METRICS)
    second.finish()
    assert second.state() == state and set(state) == {"wandb_id"}
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*") if any(path.glob("*.wandb"))]
    assert runs and all(name.endswith(state["wandb_id"]) for name in runs)
    assert not children(), "wandb's process outlives the run"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]


def test_wandb_has_no_step_twice(tmp_path: Path) -> None:
    """It takes nothing back, and what is done again after a loss is the same."""
    logged: list[tuple[int, float]] = []
    run = SimpleNamespace(
        define_metric=lambda *names, **more: None,
        log=lambda line: logged.append((line["step"], line.get("x", line.get("evaluation/x")))),
        summary={"step": 1},
    )
    sink = Wandb(run)
    for step in (1, 2, 3):
        sink.write(step, {"x": float(step)})
        sink.write(step, {"evaluation/x": 7.0})
    sink.rewind(1)
    for step in (2, 3, 4):
        sink.write(step, {"x": float(step)})
        sink.write(step, {"evaluation/x": 7.0})
    assert logged == [(step, value) for step in (1, 2, 3, 4) for value in (float(step), 7.0)]


def children() -> list[str]:
    """Command lines of wandb's processes that belong to this one."""
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "wandb-core" in line and line.endswith(f"--pid {os.getpid()}")]


def test_ids_of_two_runs_differ(tmp_path: Path) -> None:
    assert tracker(tmp_path / "a").state() != tracker(tmp_path / "b").state()


def test_wandb_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    made = tracker(tmp_path, Tracking(wandb="offline", tensorboard=False))
    made.step(1, METRICS)
    made.finish()
    (message,) = caplog.messages
    assert message.startswith("wandb cannot start, the run goes on without it: ModuleNotFoundError: ")
    assert len(lines(tmp_path)) == 1


class Scripted:
    """A sink that does with each call what the test says."""

    def __init__(self, does: Callable[[str], None]) -> None:
        self.calls: list[str] = []
        self._does = does

    def write(self, step: int, metrics: dict[str, float]) -> None:
        self._call(f"write {step}")

    def rewind(self, step: int) -> None:
        self._call(f"rewind {step}")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self._does(name)


def test_a_sink_beside_the_run_takes_all_in_order() -> None:
    inner = Scripted(lambda call: None)
    sink = Beside("it", inner, where=Path("there"))
    sink.write(0, {})
    sink.rewind(0)
    sink.write(1, {})
    sink.close()
    assert inner.calls == ["write 0", "rewind 0", "write 1", "close"]


@pytest.mark.parametrize("breaks_at", ["write 0", "close"])
def test_a_sink_that_breaks_is_left_out(breaks_at: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also with its last call: wandb's own raises where its process is gone."""

    def does(call: str) -> None:
        if call == breaks_at:
            raise ConnectionResetError("Connection lost")

    inner = Scripted(does)
    sink = Beside("wandb", inner, where=Path("runs/a/wandb"))
    sink.write(0, {})
    while "write 0" not in inner.calls:
        sleep(0.01)
    for step in (1, 2):
        sink.write(step, {})
    sink.close()
    assert inner.calls[-1] == "close" and (breaks_at == "close") == ("write 2" in inner.calls)
    assert caplog.messages == [
        "wandb has failed: ConnectionResetError: Connection lost; the run goes on without it. What it took is in "
        "runs/a/wandb"
    ]


def test_a_sink_that_stands_still_holds_nothing_up(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a frozen wandb does once its socket is full."""
    monkeypatch.setattr(sinks, "PATIENCE_S", 0.2)
    thawed = threading.Event()
    sink = Beside("wandb", Scripted(lambda call: void(thawed.wait(60))), where=Path("w"), stuck_s=0.2)
    sink.write(0, {})
    sleep(0.3)
    start = monotonic()
    for step in range(1, 100):
        sink.write(step, {})
    sink.close()
    assert monotonic() - start < 10
    thawed.set()
    (message,) = caplog.messages
    assert message == "wandb has taken nothing for 0.2 s; the run goes on without it. What it took is in w"


def void(value: object) -> None:
    """Takes what a call returns."""


def test_tensorboard_that_cannot_write_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where its folder would be")
    made = tracker(tmp_path, Tracking(wandb="off"))
    for step in (1, 2):
        made.step(step, METRICS)
    made.finish()
    assert len(lines(tmp_path)) == 2
    (message,) = caplog.messages
    assert message.startswith("TensorBoard has failed: ") and "FileExistsError" in message


def test_a_full_disk_ends_tensorboard_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracebacks: list[object] = []
    monkeypatch.setattr(threading, "excepthook", tracebacks.append)
    sink = Beside("TensorBoard", sinks.TensorBoard(tmp_path), where=tmp_path)
    with little_room():
        for step in range(1, 100):
            sink.write(step, METRICS)
        sink.close()
    (message,) = caplog.messages
    assert message.startswith("TensorBoard has failed: OSError: ") and tracebacks == []


def test_a_program_leaves_none_of_wandbs_folders_and_processes(tmp_path: Path) -> None:
    """Frozen ones neither: what wandb makes for temporary files stands in TMPDIR, and `leave` runs no finalizers."""
    (tmp_path / "tmp").mkdir()
    code = (
        "import os, signal, sys; from pathlib import Path; from capo_ray.records import sinks as s;"
        "from capo_ray.config.blocks import Tracking; from capo_ray.leaving import _children, leave;"
        "s.PATIENCE_S = s.ANSWER_S = 1;"
        "run_dir, config = Path(sys.argv[1]), Tracking(wandb='offline');"
        "run = s.start_wandb(run_dir, config, run_id='a', run_name='x', resolved_config={});"
        "sink = s.Beside('wandb', run, where=Path('w'));"
        "sink.write(0, {'x': 1.0});"
        "import time; time.sleep(1);"
        "children = _children(); print(*children, flush=True); [os.kill(pid, signal.SIGSTOP) for pid in children];"
        "sink.write(1, {'x': 2.0}); time.sleep(3); sink.close(); leave(3)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, env=clean | {"TMPDIR": str(tmp_path / "tmp")},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3 and "TimeoutError: its process has answered nothing for 1 s; the run" in done.stderr
    children = done.stdout.split()
    assert children and living(children) == []
    assert [path.name for path in (tmp_path / "tmp").iterdir() if "wandb" in path.name] == []


def test_wandb_has_a_table_of_responses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of every step, from all shards' files; none with an evaluation."""

    class Kept:
        def __init__(self) -> None:
            self.summary = {"x": 1.0}
            self.logged: list[dict[str, Any]] = []

        def define_metric(self, name: str, **more: Any) -> None: ...

        def log(self, values: dict[str, Any]) -> None:
            self.logged.append(values)

    fake = SimpleNamespace(Table=lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data])
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for shard, changes in enumerate(({}, {"wrong_steps": None, "critiques": []}, {"wrong_steps": []}, {})):
        (tmp_path / f"000003-{shard}.jsonl").write_text(json.dumps(SAMPLE | changes) + "\n")
    run = Kept()
    sink = Wandb(run, samples=tmp_path, num_samples=3)
    sink.write(3, {"x": 1.0})
    sink.write(3, {"evaluation/x": 1.0})
    sink.write(4, {"x": 1.0})
    assert [sorted(values) for values in run.logged] == [
        ["samples", "step", "x"],
        ["evaluation/x", "step"],
        ["step", "x"],
    ]
    table = run.logged[0]["samples"]
    assert [row["flagged steps"] for row in table] == ["0, 2", "not judged", "none"]
    assert table[0] == {
        "step": 3, "prompt": "p", "question": "1 + 1", "gold": "2", "response": "It is 3.", "answer": "wrong",
        "flagged steps": "0, 2", "critiques": "[ok] No", "reward": -0.25,
    }  # fmt: skip


def test_wandb_that_does_not_end_in_time_says_where_its_files_are(caplog: pytest.LogCaptureFixture) -> None:
    class Slow:
        class settings:
            sync_dir = "/runs/a/wandb/run-1"

        def define_metric(self, name: str, **more: Any) -> None: ...

        def finish(self) -> None:
            raise TimeoutError("Timed out finishing run.")

    Wandb(Slow()).close()
    assert caplog.messages == [
        "wandb did not take everything within 20 s; all of it is in /runs/a/wandb/run-1: pass it on with "
        "`wandb sync /runs/a/wandb/run-1`"
    ]


@pytest.mark.parametrize(
    ("asked", "environment", "mode"),
    [
        ("offline", {"WANDB_API_KEY": "0" * 40}, "offline"),
        ("online", {"WANDB_MODE": "offline"}, "online"),
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "0" * 40}, "online"),
        ("auto", {"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_BASE_URL": "https://wandb.example.org:8443"}, "online"),
        ("auto", {"WANDB_BASE_URL": "https://wandb.example.com"}, "offline"),
        ("auto", {"NETRC": "broken"}, "offline"),
    ],
)
def test_which_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, environment: dict[str, str], mode: str
) -> None:
    """A key is looked for where wandb has it, never asked for and never sent."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password 1234\n")
    (tmp_path / "broken").write_text("machine\n")
    monkeypatch.chdir(tmp_path)
    for name, value in ({"NETRC": "netrc"} | environment).items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(Tracking.model_validate({"wandb": asked})) == mode


UNREACHABLE = """
import logging, sys
from pathlib import Path
from capo_ray.records import sinks
from capo_ray.config.blocks import Tracking
logging.basicConfig(format="%(message)s")
sinks.PATIENCE_S = 1
sink = sinks.start_wandb(
    Path(sys.argv[1]), Tracking(wandb="online"), run_id="abcdefgh", run_name="x", resolved_config={}
)
sink.write(0, {"x": 1.0})
sink.close()
"""


@pytest.mark.slow
def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    """The run is written offline instead."""
    done = outside(tmp_path, UNREACHABLE, str(tmp_path), WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert f"wandb cannot be reached, the run is written to {tmp_path}/wandb instead: " in done.stderr
    assert list(tmp_path.glob("wandb/offline-run-*-abcdefgh/*.wandb"))


def outside(home: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own that knows no key but a given one."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=clean | {"HOME": str(home)} | environment,
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip


def config_of(run_dir: Path) -> Config:
    return Config.model_validate(
        {
            "steps": 5,
            "prompts_per_step": 2,
            "responses_per_prompt": 2,
            "policy": {"path": "random"},
            "data": {"kind": "arithmetic"},
            "rollout": {"max_response_tokens": 8},
            "algorithm": {"advantage": "grpo"},
            "trainer": {"learning_rate": 1e-4, "tokens_per_micro_batch": 512},
            "cluster": {"device": "cpu"},
            "tracking": {"wandb": "off", "tensorboard": False},
            "run_dir": str(run_dir),
        }
    )


def test_opened_again_from_the_newest_checkpoint(tmp_path: Path) -> None:
    first = Tracker.open(config_of(tmp_path), tmp_path)
    for step in (1, 2, 3):
        first.step(step, {"x": 1.0})
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.commit(checkpoints.begin(2), {"step": 2, **first.state()})
    assert Tracker.open(config_of(tmp_path), tmp_path).state() == first.state()
    assert heads(tmp_path) == [(1, False), (2, False)]


def test_opened_again_without_a_checkpoint(tmp_path: Path) -> None:
    """The run begins again, and its file with it; what it had written is kept beside."""
    first = Tracker.open(config_of(tmp_path), tmp_path)
    for number in (1, 2):
        first.step(1, {"x": 1.0})
        (tmp_path / "samples").mkdir(exist_ok=True)
        (tmp_path / "samples" / "000001-0.jsonl").write_text("{}\n")
        again = Tracker.open(config_of(tmp_path), tmp_path)
        assert again.state() != first.state()
        assert heads(tmp_path) == [] and list((tmp_path / "samples").iterdir()) == []
        kept = tmp_path / "rolled_back" / str(number)
        assert [path.name for path in kept.rglob("*.jsonl")] == ["metrics.jsonl", "000001-0.jsonl"]
        assert '"x": 1.0' in (kept / "metrics.jsonl").read_text()
        first = again
    assert not (tmp_path / "rolled_back" / "3").exists()


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('wandb', 'tensorboard', 'rich', 'torch', 'ray')));"
        "import capo_ray.records.tracking, capo_ray.files.checkpoint, capo_ray.records.tally, capo_ray.training.driver"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
