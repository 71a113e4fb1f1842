"""What a user meets who asks for what cannot run: one error, exit code 2, and nothing left behind."""

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import little_room

from capo_ray import launch
from capo_ray.config.compose import compose
from capo_ray.launch import _keep_story, main
from capo_ray.models.find import ASSETS
from capo_ray.program import BAD_INPUT

TINY = "+experiment=tiny_cpu"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the program sets its own
    yield
    logging.captureWarnings(False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message; checked that it is one and that no folder was left."""
    before = sorted(Path.cwd().rglob("*"))
    assert main(list(arguments)) == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("error: ") == 1
    assert "Traceback" not in printed.err
    assert sorted(Path.cwd().rglob("*")) == before
    return printed.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "stepz: no such key; did you mean steps?"),
        ("steps=many", "steps: must be a whole number, got 'many'"),
        ("policy.path=/nowhere", "policy.path: '/nowhere' is no folder here; name a folder or a Hugging Face id"),
        ("data.max_prompt_tokens=10 data.limit=50", "50 of 50 prompts are longer than data.max_prompt_tokens 10"),
        ("rollout.max_response_tokens=9999", "configuration: `trainer.tokens_per_micro_batch`"),
        (
            "rollout.max_response_tokens=460 trainer.tokens_per_micro_batch=2048",
            f"the policy at {ASSETS / 'tiny_policy'} has a window of 512 tokens; data.max_prompt_tokens + rollout.max",
        ),
        (
            "critic.max_critique_tokens=1000",
            f"the critic at {ASSETS / 'tiny_critic'} has a window of 512 tokens; data.max_prompt_tokens + rollout.max",
        ),
        (
            "name=my=run",
            "name: a part of `my=run` is read as grammar: commas, brackets, quotes, = and # mean something there; "
            "quote it once for the shell and once for that: 'name=\"my=run\"'",
        ),
        (
            "critic.endpoints=[http://[::1]:8000/v1,http://h/v1]",
            "critic.endpoints: a part of `[http://[::1]:8000/v1,http://h/v1]` is read as grammar: commas, brackets, "
            "quotes, = and # mean something there; quote it once for the shell and once for that: "
            '\'critic.endpoints=["http://[::1]:8000/v1","http://h/v1"]\'',
        ),
        ("seed=1,2", "seed: a part of `1,2` is read as grammar: commas, "),
        ("tiny", "tiny: arguments are key=value"),
        ("data.kind=math data.path=~/none.jsonl", f"data.path: there is no file {Path.home()}/none.jsonl; pass"),
        (
            "cluster.address=127.0.0.1:9",
            "cluster.address: nothing answers at 127.0.0.1:9 ([Errno 111] Connection refused); start Ray on its nodes, "
            "and see that this port of its head is open from here: docs/launch.md",
        ),
        ("resume=true", "resume: name the run to resume with run_dir=DIR"),
    ],
)
def test_what_cannot_run(capsys: pytest.CaptureFixture[str], override: str, message: str) -> None:
    assert refused(capsys, TINY, *override.split()).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "data.path: there is no file {path}; pass data.path=FILE (.jsonl, "),
        ("", "data.path: {path} is empty; it must hold one JSON object a line, or rows of json"),
        ('{"question": "q", "answer": "1"}\n{\n', "data.jsonl, line 2: not JSON ("),
        ('{"question": "q"}\n', "data.jsonl, line 1: no field 'answer'; there are question: set data.answer_field"),
    ],
    ids=["missing", "empty", "not JSON", "no field"],
)
def test_data_that_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "data.jsonl"
    if content is not None:
        path.write_text(content)
    assert refused(capsys, TINY, "data.kind=math", f"data.path={path}").startswith(message.format(path=path))


def test_a_run_directory_is_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/metrics.jsonl").touch()
    folder = Path("run").resolve()
    assert refused(capsys, TINY, "run_dir=run").startswith(f"the run directory {folder} exists and is not empty: pass")
    assert refused(capsys, TINY, "run_dir=run", "resume=true").startswith(f"{folder} holds no run to resume")
    Path("run/config.yaml").touch()
    Path("run/metrics.jsonl").write_text('{"step": 0, "evaluation/x": 1}\n{"step": 0, "time": 1, "x": 1}\n')
    assert refused(capsys, TINY, "run_dir=run", "resume=true").startswith(
        f"{folder} was written by a version that counted training steps from 0, and they count from 1 now: go on"
    )


def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(capsys: pytest.CaptureFixture[str]) -> None:
    """Its records would be cut away: refused before anything is started, with all that is there left as it was."""
    Path("run/samples").mkdir(parents=True)
    for name, text in {
        "config.yaml": "steps: 4\n", "metrics.jsonl": '{"step": 1}\n', ".newest_checkpoint": "step_000001\n",
        "samples/000001-0.jsonl": "{}\n", ".lock": "",
    }.items():  # fmt: skip
        Path("run", name).write_text(text)
    folder = Path("run").resolve()
    assert refused(capsys, TINY, "run_dir=run", "resume=true").startswith(
        f"{folder} cannot be gone on with: {folder}/checkpoints/step_000001 is not there any more, and from step 1 on"
    )
    assert Path("run/metrics.jsonl").read_text() == '{"step": 1}\n'


def test_an_error_that_cannot_be_written_down_is_told(tmp_path: Path) -> None:
    """On a full or read-only disk the cause is what is said."""
    (tmp_path / "error.log").mkdir()
    said = _keep_story(ValueError("the cause"), tmp_path)
    assert said.startswith(f"{tmp_path / 'error.log'} cannot be written (Is a directory); the processes' own logs are")
    full = tmp_path / "full"
    full.mkdir()
    with little_room():
        said = _keep_story(ValueError("x" * 5000), full)
    assert said.startswith(f"{full / 'error.log'} cannot be written (File too large); ") and list(full.iterdir()) == []


def test_a_weight_of_critiques_above_that_of_outcomes_is_warned_of(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([TINY, "reward.process_weight=3", "dry_run=true"]) == 0
    (warning,) = [m for m in caplog.messages if "reward.process_weight" in m]
    assert warning.startswith("reward.process_weight P = 3 >= reward.outcome_weight C = 2: ")
    assert warning.endswith("Use P < C.")


def test_what_to_do_next_fits_the_run_and_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert launch._what_next(compose(["+experiment=tiny_cpu", "reward=intersection"]), tmp_path) == (
        f"Look inside it: python -m capo_ray.view {tmp_path}\n"
        "Then try reward=majority, or algorithm=grpo critic=null to see what the critiques were worth.\n"
        "With problems of your own: docs/tutorial.md"
    )
    monkeypatch.chdir(tmp_path)
    alone = compose(["+experiment=tiny_cpu", "algorithm=grpo", "critic=null"])
    assert launch._what_next(alone, tmp_path) == f"Look inside it: python -m capo_ray.view {tmp_path}"
