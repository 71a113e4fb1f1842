"""The laboratory without its runs: designs, intervals, reading results, the page."""

from __future__ import annotations

import csv
import io
import json
import re
from contextlib import nullcontext
from math import inf, sqrt
from pathlib import Path

import pytest

from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.files.run_dir import RunDirError
from capo_ray.lab import __main__ as program
from capo_ray.lab.design import Arm, Design, designs, load
from capo_ray.lab.intervals import interval, paired
from capo_ray.lab.report import curves, every_run, page
from capo_ray.lab.runs import Result, read, results, run_all
from capo_ray.training.run import write_config

ROOT = Path(__file__).resolve().parents[2]
DESIGN = Design(
    title="A test",
    common=("+experiment=tiny_cpu", "steps=2"),
    seeds=2,
    baseline="grpo",
    arms={
        "grpo": Arm(says="answers alone", overrides=("algorithm.advantage=grpo", "critic=null")),
        "capo": Arm(says="with critiques", seeds=3),
        "truth": Arm(says="with the truth", seeds=1, group="bounds", against=("capo",)),
    },
)


def result(arm: str, seed: int, gain: float) -> Result:
    """A run that rises from 0.3 by `gain` in two steps."""
    steps = [
        {"truth/right_answer_and_process": 0.3 + part * gain, "tokens/critiques": 10.0, "seconds/step": 2.0}
        for part in (0.5, 1.0)
    ]
    shares = {"outcome/accuracy": 0.5, "truth/step_accuracy": 0.8}
    return Result(
        arm=arm,
        seed=seed,
        before={"truth/right_answer_and_process": 0.3, **shares},
        after={"truth/right_answer_and_process": 0.3 + gain, **shares},
        steps=tuple(steps),
    )


def test_an_interval_is_students() -> None:
    """Values and interval of scipy.stats.t.interval(0.95, 4, mean, sem)."""
    found = interval([1.0, 2.0, 4.0, 5.0, 8.0])
    assert (found.mean, found.count) == (4.0, 5)
    assert found.half == pytest.approx(2.7764 * sqrt(7.5) / sqrt(5), rel=1e-3)
    assert found.low == pytest.approx(0.5996, abs=1e-3) and found.excludes_zero
    assert not interval([1.0, -1.0]).excludes_zero
    assert interval([3.0]).half == inf
    assert interval([0.0, 1.0] * 20).half == pytest.approx(1.96 * 0.50637 / sqrt(40), rel=1e-3)
    with pytest.raises(ValueError, match="an interval needs a value at least"):
        interval([])


def test_differences_are_taken_seed_by_seed() -> None:
    found = paired({0: 5.0, 1: 15.0, 7: 99.0}, {1: 12.0, 0: 2.0})
    assert found is not None and (found.mean, found.half, found.count) == (3.0, 0.0, 2)
    assert paired({0: 1.0}, {1: 1.0}) is None


def test_runs_go_seed_by_seed() -> None:
    assert DESIGN.runs() == [("capo", 0), ("capo", 1), ("capo", 2), ("grpo", 0), ("grpo", 1), ("truth", 0)]


@pytest.mark.filterwarnings("ignore:reward.process_weight P")  # an arm is about it
@pytest.mark.parametrize("name", designs())
def test_every_design_composes(name: str) -> None:
    """Into runs that differ: two arms that are the same would be one that is compared with itself."""
    design = load(name)
    made = {arm: design.config(arm, 1, Path("/nowhere")) for arm in design.arms}
    assert all((config.name, config.seed) == (arm, 1) for arm, config in made.items())
    assert len({config.model_copy(update={"name": ""}).model_dump_json() for config in made.values()}) == len(made)


def test_what_is_no_design_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no design slow: it is one of .*quick"):
        load("slow")
    path = tmp_path / "own.yaml"
    path.write_text("title: x\ncommon: []\nseeds: 1\nbaseline: grpo\narms: {capo: {says: x}}\n")
    with pytest.raises(ConfigError, match="`baseline` grpo is none of the arms: capo"):
        load(str(path))


def test_the_design_of_the_manual_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "docs" / "lab.md").read_text(), re.M | re.S)
    (tmp_path / "mine.yaml").write_text(block)
    design = load(str(tmp_path / "mine.yaml"))
    assert all(design.config(arm, seed, tmp_path).steps == 8 for arm, seed in design.runs())
    assert [design.members(group) for group in design.groups()] == [["grpo"], ["grpo", "half", "full"]]


def test_a_world_without_truth_is_refused() -> None:
    other = DESIGN.model_copy(update={"common": ("+experiment=tiny_cpu", "data=math")})
    with pytest.raises(ConfigError, match=r"arm capo: the laboratory measures by the truth of every step.*got math"):
        other.config("capo", 0, Path("/nowhere"))


def test_an_arm_is_compared_with_arms_that_there_are() -> None:
    with pytest.raises(ValueError, match="arm grpo is compared with capo, which is none of the arms"):
        Design(title="", common=(), seeds=1, baseline="grpo", arms={"grpo": Arm(says="", against=("capo",))})


def write(run: Path, lines: list[dict[str, float]], settings: Config | None = None) -> None:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, "tor')
    if settings is not None:
        write_config(settings, run)


LINES = [{"step": 0, "evaluation/a": 1.0}, {"step": 0, "b": 2.0}, {"step": 1, "b": 4.0}]


def test_a_run_counts_when_it_was_evaluated_after_its_last_step(tmp_path: Path) -> None:
    for name, lines in {"cut": LINES, "whole": [*LINES, {"step": 2, "evaluation/a": 3.0}]}.items():
        write(tmp_path / name, lines)
    cut, whole, none = (read(DESIGN.config("capo", 1, tmp_path / name), "capo", 1) for name in ("cut", "whole", "none"))
    assert cut is None and none is None
    assert whole is not None and (whole.before, whole.after) == ({"a": 1.0}, {"a": 3.0})
    assert (whole.mean("b"), whole.total("b"), whole.mean("c")) == (3.0, 6.0, None)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["critic.temperature=1.3"],
            "was run with critic.temperature=0.7, and this design has 1.3: choose another",
        ),
        (["critic=truth"], "was run with critic.critiques=4, and this design has 1"),
        (["critic.workers=2"], None),
    ],
)
def test_a_run_with_other_settings_is_no_run_of_the_design(
    tmp_path: Path, overrides: list[str], told: str | None
) -> None:
    write(tmp_path / "run", [*LINES, {"step": 2, "evaluation/a": 3.0}], DESIGN.config("capo", 1, tmp_path / "run"))
    other = DESIGN.model_copy(update={"common": (*DESIGN.common, *overrides)}).config("capo", 1, tmp_path / "run")
    with pytest.raises(RunDirError, match=told) if told else nullcontext():
        assert read(other, "capo", 1) is not None


def test_the_page_says_what_was_found() -> None:
    found = [result("grpo", 0, 0.10), result("grpo", 1, 0.12), result("capo", 0, 0.20), result("capo", 1, 0.224)]
    text = page(DESIGN, found)
    assert "4 of 6 runs. Before training 30.0 %" in text
    assert "| | before training | 2 | 30.0 ± 0.0 | 50.0 ± 0.0 | 80.0 ± 0.0 |  |" in text
    assert "| `capo` | with critiques | 2 | 51.2 ± 15.2 |" in text
    assert (
        "* `capo` against `grpo`: right answer and process +10.2 points (+7.7 to +12.7 on two seeds); right answer +0.0"
        in text
    )
    assert "## Bounds" not in text and "`truth`" not in text
    _, bounds = page(DESIGN, [*found, result("truth", 0, 0.3)]).split("## Bounds")
    rows = [line for line in bounds.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["capo", "truth"]
    assert "| with critiques | 1 | 50.0 |" in rows[0]  # of the seed that `truth` has too
    assert "* `truth` against `capo`: right answer and process +10.0 points (one seed)" in bounds


def test_what_a_point_cost_is_of_all_seeds_together() -> None:
    """20 tokens and 4 s each, for gains of 10 and -6 points; and of -4, which cost nobody knows what."""
    for gains, told in (((0.10, -0.06), "| 2.0 | 10.0 |"), ((0.02, -0.06), "|  |  |")):
        text = page(DESIGN, [result("capo", seed, gain) for seed, gain in enumerate(gains)])
        (row,) = [line for line in text.splitlines() if line.startswith("| `capo`")]
        assert row.endswith(told)


def test_a_difference_that_could_be_none_says_so() -> None:
    found = [result("grpo", 0, 0.10), result("grpo", 1, 0.12), result("capo", 0, 0.20), result("capo", 1, 0.05)]
    assert "points (-106.5 to +109.5 on two seeds, which cannot be told from none)" in page(DESIGN, found)
    assert "+10.0 points (one seed)" in page(DESIGN, found[:1] + found[2:3])
    assert page(DESIGN, []).endswith("No run is finished yet.\n")


def test_every_run_is_a_row() -> None:
    (told,) = csv.DictReader(io.StringIO(every_run([result("grpo", 0, 0.1)])))
    assert (told["arm"], told["seed"], told["right answer and process before, %"]) == ("grpo", "0", "30")
    assert (told["right answer and process, %"], told["vote's precision, %"]) == ("40", "")


def test_the_figure_has_a_line_per_arm() -> None:
    text = curves(DESIGN, [result("grpo", 0, 0.1), result("capo", 0, 0.2), result("truth", 0, 0.3)], "arms")
    assert ">grpo<" in text and ">capo<" in text and ">truth<" not in text


def test_the_program_reports_without_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lab"
    assert program.main(["run=quick", f"out={out}", "report=only"]) == 0
    assert "No run is finished yet" in (out / "report.md").read_text()
    assert program.main(["out=x"]) == 2
    assert "error: name a design with run=NAME: " in capsys.readouterr().err
    assert program.main(["run=quick", f"out={out}", "stepz=3"]) == 2
    assert "error: stepz: no such key" in capsys.readouterr().err


def test_how_runs_go_is_no_matter_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two critics, given where they help, do not stand in the way of arms that cannot have them."""
    design = tmp_path / "two.yaml"
    arms = {"grpo": {"says": "", "overrides": ["critic=truth"]}, "capo": {"says": "", "overrides": ["reward=majority"]}}
    told = {"title": "", "common": ["+experiment=tiny_cpu"], "seeds": 1, "baseline": "grpo", "arms": arms}
    design.write_text(json.dumps(told))
    asked = [f"run={design}", f"out={tmp_path / 'out'}", "report=only"]
    assert program.main([*asked, "critic.workers=2"]) == 0
    assert program.main([*asked, "critic.served_model=other"]) == 2
    assert "`served_model` and `leave_out` have no meaning where `kind` is truth" in capsys.readouterr().err


def test_what_is_no_key_of_its_own_goes_to_every_run(tmp_path: Path) -> None:
    asked = program.parse(
        ["run=quick", f"out={tmp_path}", "arms=grpo,truth", "report=only", "steps=3", "+experiment=tiny_cpu"]
    )
    assert (asked.run, asked.folder, asked.report) == ("quick", tmp_path, "only")
    assert asked.arms == ("grpo", "truth") and asked.overrides == ("steps=3", "+experiment=tiny_cpu")
    with pytest.raises(ConfigError, match="loud: arguments are key=value"):
        program.parse(["run=quick", "loud"])
    with pytest.raises(ConfigError, match=r"name a design with run=NAME: .*quick"):
        program.parse(["report=only"])


def test_some_arms_alone_can_be_run() -> None:
    assert DESIGN.runs(["capo"]) == [(arm, seed) for arm, seed in DESIGN.runs() if arm == "capo"]
    with pytest.raises(ConfigError, match="grop: none of the arms, which are grpo, capo"):
        DESIGN.runs(["grop"])


@pytest.fixture
def runs_are_fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No Ray and no engines; the folders of the runs that were started, and whether they went on from a checkpoint."""
    started: list[str] = []

    async def run(config: Config, run_dir: Path, *, lend: object) -> None:
        resumed = (run_dir / "checkpoints").is_dir()
        started.append(f"{run_dir.parent.name}/{run_dir.name}{' resumed' if resumed else ''}")
        if config.name == "truth":
            raise ValueError("the truth hurts")
        lines = [*LINES, {"step": 2, "evaluation/a": 3.0}]
        (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    monkeypatch.setattr("capo_ray.training.run.run", run)
    monkeypatch.setattr("capo_ray.cluster.session.ray_session", lambda cluster, logs: nullcontext())
    return started


def test_what_is_finished_is_not_run_again_and_what_was_cut_off_goes_on(
    tmp_path: Path, runs_are_fakes: list[str]
) -> None:
    write(tmp_path / "grpo" / "seed-0", [*LINES, {"step": 2, "evaluation/a": 3.0}])
    write(tmp_path / "grpo" / "seed-1", LINES)  # without a checkpoint: from its start
    checkpoint = tmp_path / "capo" / "seed-2" / "checkpoints" / "step_000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"step": 1}')
    write_config(DESIGN.config("capo", 2, tmp_path), tmp_path / "capo" / "seed-2")
    run_all(DESIGN, tmp_path, DESIGN.runs(["grpo", "capo"]))
    assert runs_are_fakes == ["capo/seed-0", "capo/seed-1", "capo/seed-2 resumed", "grpo/seed-1"]
    assert len(results(DESIGN, tmp_path)) == 5
    run_all(DESIGN, tmp_path, DESIGN.runs(["grpo", "capo"]))
    assert len(runs_are_fakes) == 4


def test_a_run_that_fails_is_named(
    tmp_path: Path, runs_are_fakes: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "load", lambda name: DESIGN)
    assert program.main(["run=mine", f"out={tmp_path}", "arms=truth"]) == 1
    story = tmp_path / "truth" / "seed-0" / "error.log"
    assert capsys.readouterr().err == (
        f"error: truth, seed 0: ValueError: the truth hurts. The whole story: {story}\n"
        "The same command goes on from here.\n"
    )
    assert "ValueError: the truth hurts" in story.read_text()


def test_all_arms_share_a_session(tmp_path: Path) -> None:
    arms = {"a": Arm(says=""), "b": Arm(says="", overrides=("cluster.max_restarts=9",))}
    design = Design(title="", common=("+experiment=tiny_cpu",), seeds=1, baseline="a", arms=arms)
    with pytest.raises(ConfigError, match="arm b: all arms run in one Ray session, so `cluster` must be the same"):
        run_all(design, tmp_path, design.runs())
