"""What another vote would have made of a run, from its ledger: by hand, and where it must be what training does."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from responses import response

from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.records.ledger import Ledger
from capo_ray.revote.__main__ import Settings, main
from capo_ray.revote.table import COLUMNS, rows_of
from capo_ray.revote.table import Change as Sums
from capo_ray.types import Answer, Critique, Prompt, Sampling

NOT_ASKED = Critique(text="", outcome="not_asked")
UNREADABLE = Critique(text="?", outcome="unreadable")
OWN = Scheme(vote="intersection")


def ok(*wrong: int) -> Critique:
    return Critique(text="", outcome="ok", wrong_steps=wrong)


def member(index: int, answer: Answer, *critiques: Critique) -> Member:
    """Two steps of a token each and an end token."""
    rollout = response("a\n\n", "b", index=index)
    return Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=critiques, answer=answer)


# Intersection: rewards 2 1 2 | 0 0 0; majority: 2 1 2 | -1 0 0.
GROUP = (member(0, "correct", ok(1), ok(1), ok(1), ok(1)), member(1, "wrong", ok(0), ok(0), ok(), UNREADABLE))
# The run stopped after two: intersection is decided, majority is not for step 0.
STOPPED = (
    member(0, "correct", ok(1), ok(1), ok(1), ok(1)),
    member(1, "wrong", ok(0), ok(), NOT_ASKED, NOT_ASKED),
)


def record(run_dir: Path, *steps: tuple[Member, ...], scheme: Scheme = OWN) -> Path:
    for step, group in enumerate(steps):
        ledger = Ledger(run_dir, shard=step % 2, scheme=scheme, sampling=Sampling(max_tokens=64))
        ledger.add(step, Prompt(id="p", question="", token_ids=(1,), answer=""), group)
        ledger.write(step)
    return run_dir


def table(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, str]]:
    assert main([str(argument) for argument in arguments]) == 0
    head, *lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert tuple(head) == COLUMNS
    return [dict(zip(head, line, strict=True)) for line in lines]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_runs_own_vote_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = table(capsys, record(tmp_path / "run", GROUP, STOPPED))
    assert [row["training steps"] for row in rows] == ["0", "1", "all"]
    assert rows[-1] == {
        "training steps": "all",
        "responses": "4",
        "undetermined": "0.0%",
        "verdicts changed": "0.0%",
        "flagged before": "25.0%",
        "flagged": "25.0%",
        "reward before": "+0.833",  # (2 + 1 + 2) / 6
        "reward": "+0.833",
        "signs changed": "0.0%",
    }


def test_another_vote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row, total) = table(capsys, record(tmp_path / "run", GROUP), "vote=majority", f"out={tmp_path / 'out.jsonl'}")
    assert row | {"training steps": "all"} == total
    assert (row["verdicts changed"], row["flagged before"], row["flagged"]) == ("50.0%", "25.0%", "50.0%")
    assert (row["reward before"], row["reward"]) == ("+0.833", "+0.667")
    # Means 5/6 and 4/6: no token crosses.
    assert row["signs changed"] == "0.0%"
    wanted = score_group(GROUP, Scheme(vote="majority"))
    assert lines(tmp_path / "out.jsonl") == [
        {
            "step": 0,
            "prompt_id": "p",
            "response": m,
            "undetermined": False,
            "weights": list(wanted.members[m].verdict.weights),  # type: ignore[union-attr]
            "token_rewards": list(wanted.members[m].token_rewards),
            "advantages": list(wanted.advantages[m] or ()),
        }
        for m in range(2)
    ]
    assert not list(tmp_path.glob("*.partial"))


def test_signs_of_advantages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """P = 5 makes the flagged token of the right answer worse than the mean: 2 -3 2 | 0 0 0."""
    (row, _) = table(capsys, record(tmp_path, GROUP), "process_weight=5")
    # Before, mean 5/6: + + + - - -. After, mean 1/6: + - + - - -.
    assert (row["verdicts changed"], row["signs changed"]) == ("0.0%", "16.7%")


def test_what_the_run_did_not_ask_for_is_undetermined(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    rows = table(capsys, record(tmp_path / "run", STOPPED, GROUP), "vote=majority", f"out={out}")
    first, second, total = rows
    assert (first["undetermined"], second["undetermined"], total["undetermined"]) == ("50.0%", "0.0%", "25.0%")
    # Of the first step response 0 alone is known, and no advantage.
    assert (first["verdicts changed"], first["flagged"], first["reward"]) == ("0.0%", "50.0%", "+1.667")
    assert first["signs changed"] == "-" and second["signs changed"] == "0.0%"
    known, unknown = lines(out)[:2]
    assert (known["undetermined"], known["token_rewards"], known["advantages"]) == (False, [2.0, 1.0, 2.0], None)
    assert unknown["undetermined"] and unknown["weights"] is unknown["token_rewards"] is unknown["advantages"] is None


def test_a_response_that_nobody_was_asked_about_is_unjudged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unasked = (*GROUP, member(2, "wrong", NOT_ASKED, NOT_ASKED))
    (row, _) = table(capsys, record(tmp_path, unasked), "vote=majority")
    assert row["undetermined"] == "0.0%"


def test_critiques_that_an_outage_took_would_be_missing_under_any_vote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two critics, of which one was down: what the other flagged decides, and nothing is open."""
    half = tuple(member(m, "wrong", ok(0), NOT_ASKED, ok(0), NOT_ASKED) for m in range(2))
    for vote in ("intersection", "strict_majority"):
        (row, _) = table(capsys, record(tmp_path / vote, half), f"vote={vote}")
        assert (row["undetermined"], row["flagged"]) == ("0.0%", "50.0%")


def test_a_group_whose_rewards_hang_on_one_open_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Under outcome_only one unjudged response takes the penalties of all."""
    arguments = (record(tmp_path, STOPPED), "min_valid_critiques=3", "unjudged=outcome_only")
    (row, _) = table(capsys, *arguments)
    assert (row["undetermined"], row["reward"]) == ("50.0%", "-")


def test_an_advantage_without_penalties_hangs_on_no_vote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row, _) = table(capsys, record(tmp_path, STOPPED), "vote=majority", "advantage=grpo")
    assert (row["undetermined"], row["reward"], row["signs changed"]) == ("50.0%", "+1.000", "0.0%")


def test_a_response_that_loses_its_judge_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is dropped, its group has one left and is not trained on: every advantage becomes 0."""
    (row, _) = table(capsys, record(tmp_path, GROUP), "min_valid_critiques=4", f"out={tmp_path / 'out.jsonl'}")
    assert (row["verdicts changed"], row["signs changed"]) == ("50.0%", "100.0%")
    assert [line["advantages"] for line in lines(tmp_path / "out.jsonl")] == [None, None]


def test_an_advantage_over_the_batch_is_standardised_over_the_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    table(capsys, record(tmp_path / "run", GROUP), "advantage=capo_batch", f"out={out}")
    advantages = [value for line in lines(out) for value in line["advantages"]]
    assert sum(advantages) == pytest.approx(0)
    assert sum(value * value for value in advantages) / len(advantages) == pytest.approx(1, abs=1e-5)


def test_a_group_that_was_replaced_is_in_no_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was trained on is standardised without it; under a vote that gives it credit it is no spare one."""
    silent = (member(0, "wrong", ok(0), ok()), member(1, "wrong", ok(0), ok()))
    advantages = {}
    for name, groups in {"alone": [GROUP], "with": [GROUP, silent]}.items():
        ledger = Ledger(
            tmp_path / name, shard=0, scheme=Scheme(advantage="capo_batch"), sampling=Sampling(max_tokens=9)
        )
        for number, group in enumerate(groups):
            ledger.add(0, Prompt(id=str(number), question="", token_ids=(1,), answer=""), group)
        ledger.write(0, spare=["1"])
        out = tmp_path / f"{name}.jsonl"
        (row, _) = table(capsys, tmp_path / name, f"out={out}")
        assert row["signs changed"] == "0.0%"
        advantages[name] = [line["advantages"] for line in lines(out)]
    assert advantages["with"] == [*advantages["alone"], None, None]
    table(capsys, tmp_path / "with", "vote=majority", f"out={out}")
    assert all(line["advantages"] for line in lines(out))


def test_steps_are_shown_in_ten_ranges_at_most() -> None:
    rows = rows_of({step: Sums(responses=2) for step in range(25)})
    assert [row[0] for row in rows] == [*(f"{at}-{at + 2}" for at in range(0, 24, 3)), "24", "all"]
    assert rows[-1][1] == "50"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vote=union"], "run_dir: must be given; pass run_dir=..."),
        (["{run}", "elsewhere"], "elsewhere: arguments are key=value"),
        (["{run}/nowhere"], "{run}/nowhere holds no ledger (no {run}/nowhere/responses/STEP-SHARD.parquet): name the"),
        (
            ["{run}", "vote=most"],
            "vote: must be one of intersection, majority, strict_majority, union, average, greedy, or module:name of",
        ),
        (["{run}", "vote=os:getcwd"], "vote=os:getcwd: os:getcwd: it cannot be called with (flags, valid critiques): "),
        (["{run}", "advantage=ppo"], "advantage: must be one of capo, capo_mean, "),
        (["{run}", "vote=not_here_at_all:vote"], "vote=not_here_at_all:vote: "),
        (["{run}", "votes=union"], "votes: no such key; did you mean vote?"),
        (["{run}", "outcome_weight=two"], "outcome_weight: must be a number, got 'two'"),
        (["{run}", "process_weight=-1"], "process_weight: must be at least 0, got '-1'"),
        (["{run}", "process_weight=nan"], "process_weight: must be a finite number, got 'nan'"),
        (["{run}", "min_valid_critiques=0"], "min_valid_critiques: must be at least 1, got '0'"),
        (["{run}", "min_valid_critiques=1.5"], "min_valid_critiques: must be a whole number, got '1.5'"),
        (["{run}", "mask_cut_off=maybe"], "mask_cut_off: must be true or false, got 'maybe'"),
        (
            ["{run}", "out={run}/no/such/file"],
            "out: {run}/no/such/file cannot be written: there is no folder ",
        ),
        (["{run}", "vote=greedy"], "vote=greedy takes one critique, and step 0 has 4 for each response"),
    ],
)
def test_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    run = record(tmp_path, GROUP)
    assert main([argument.format(run=run) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.match(re.escape(f"error: {message.format(run=run)}"), printed.err), printed.err


def test_what_can_be_given_is_what_a_scheme_has() -> None:
    """With the names and ranges that runs have, and nothing of a run that is not given."""
    names = {one.name for one in fields(Scheme)} - {"outcome"}
    assert names <= Settings.model_fields.keys() and set(Settings.model_fields) - names == {"run_dir", "out", "trust"}
    assert Settings(run_dir="x").given == {} and Settings(run_dir="x", vote="union").given == {"vote": "union"}


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    record(tmp_path / "run", GROUP, GROUP)
    (tmp_path / "run" / "critiques" / "000001-1.parquet").write_bytes(b"torn")
    assert main([str(tmp_path / "run"), f"out={tmp_path / 'out.jsonl'}"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_on_a_terminal_it_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    import sys

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    assert main([str(record(tmp_path, GROUP)), "vote=union"]) == 0
    printed = capsys.readouterr().out
    assert "before, and with vote=union" in printed.replace("\n", " ") and "┃" in printed


def test_code_that_a_run_names_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger may come from anybody, and its vote may be a file beside it."""
    run = record(tmp_path / "run", STOPPED, GROUP, scheme=Scheme(vote="evil_vote:vote"))
    (tmp_path / "evil_vote.py").write_text(
        "open('ran', 'w').close()\ndef vote(count, valid):\n    return float(count == valid)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for arguments in ([run], [run, "process_weight=0.5"], [run, "advantage=capo_mean"]):
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert "the run's vote is evil_vote:vote, code of its author's" in said and "pass trust=true" in said
    first, second, total = table(capsys, run, "vote=majority")
    assert (first["undetermined"], second["undetermined"]) == ("50.0%", "0.0%")
    assert {first[name] for name in ("verdicts changed", "flagged before", "reward before", "signs changed")} == {"-"}
    assert second["flagged"] == "50.0%" and total["flagged"] != "-"
    assert not (tmp_path / "ran").exists()

    trusted = table(capsys, run, "vote=majority", "trust=true")
    assert trusted[1]["flagged before"] == "25.0%" and (tmp_path / "ran").exists()


def test_trusted_code_that_is_no_vote_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path, GROUP, scheme=Scheme(vote="os:getcwd"))
    assert main([str(run), "vote=majority", "trust=true"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the run's vote is os:getcwd: it cannot be called with (flags, valid cr" in said


def test_trusted_code_that_is_not_at_hand_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = record(tmp_path / "run", GROUP, scheme=Scheme(vote="not_here_at_all:vote"))
    assert main([str(run), "vote=majority", "trust=true"]) == 2
    assert "not_here_at_all:vote: cannot import not_here_at_all" in capsys.readouterr().err
