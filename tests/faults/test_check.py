"""What a run's files say of its samples: one that is lost, trained on twice, too old or from other weights is found."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from responses import response

from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.faults import __main__ as program
from capo_ray.faults.check import MOST_GAP, check
from capo_ray.records.ledger import Ledger, LedgerError
from capo_ray.types import Answer, Critique, Prompt, Sampling

STEPS, PROMPTS, RESPONSES, PASSES = 4, 2, 3, 2
SCHEME = Scheme(vote="majority")
OK = Critique(text="", outcome="ok", critic="critic-0", num_tokens=9)
CONFIG: dict[str, Any] = {
    "prompts_per_step": PROMPTS,
    "responses_per_prompt": RESPONSES,
    "rollout": {"top_p": 1.0, "top_k": -1},
    "algorithm": {"max_staleness": 0, "old_logprobs": "trainer"},
    "trainer": {"optimisation_passes": PASSES, "responses_per_update": None},
    "policy": {"dtype": "float32"},
}


def member(prompt: str, index: int, version: int, answer: Answer) -> Member:
    rollout = response("2 +", " 2", *["is 4"] * index, index=index, prompt_id=prompt, versions=(version,))
    return Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=(OK,), answer=answer)


@dataclass
class Made:
    """A run that keeps its promises, before it is spoilt and written."""

    groups: dict[int, dict[str, list[Member]]] = field(default_factory=dict)
    """[step][prompt]"""
    spare: dict[int, list[str]] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=lambda: dict(CONFIG))


def made() -> Made:
    run = Made()
    for step in range(1, STEPS + 1):
        names = [f"p@{step * PROMPTS + place}" for place in range(PROMPTS)]
        answers: Sequence[Answer] = ("correct", "wrong", "unverifiable" if step == 2 else "wrong")
        run.groups[step] = {n: [member(n, i, step - 1, a) for i, a in enumerate(answers)] for n in names}
        everybody = [m for group in run.groups[step].values() for m in group]
        scored = [score_group(group, SCHEME) for group in run.groups[step].values()]
        trained = sum(len(row) for score in scored for row in score.advantages if row)
        run.lines.append(
            {
                "step": step,
                "staleness": 0.0,
                "tokens/sampled": float(sum(len(m.rollout.token_ids) for m in everybody)),
                "outcome/unverifiable_share": sum(m.answer == "unverifiable" for m in everybody) / len(everybody),
                "trainer/tokens": float(trained * PASSES),
                "trainer/skipped_steps": 0.0,
                "trainer/sampler_gap_max": 1e-6,
            }
        )
    return run


def write(run: Made, run_dir: Path) -> Path:
    for step, groups in run.groups.items():
        ledger = Ledger(run_dir, shard=0, scheme=SCHEME, sampling=Sampling(max_tokens=64))
        for name, members in groups.items():
            ledger.add(step, Prompt(id=name, question="2 + 2?", token_ids=(1,), answer="4"), members)
        ledger.write(step, run.spare.get(step, ()))
    evaluation = {"step": 0, "evaluation/outcome/accuracy": 0.5}
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [evaluation, *run.lines]))
    (run_dir / "config.yaml").write_text(yaml.safe_dump(run.config))
    return run_dir


def test_a_run_that_keeps_its_promises(tmp_path: Path) -> None:
    found = check(write(made(), tmp_path))
    assert found.findings == ()
    assert (found.steps, found.responses) == (STEPS, STEPS * PROMPTS * RESPONSES)
    assert found.trained_tokens > 0 and found.largest_gap == 1e-6


def lose_a_response(run: Made) -> None:
    del run.groups[3]["p@6"][1]


def lose_it_in_the_counts_too(run: Made) -> None:
    gone = run.groups[3]["p@6"].pop(1)
    run.lines[2]["tokens/sampled"] -= len(gone.rollout.token_ids)
    run.lines[2]["trainer/tokens"] -= PASSES * len(gone.rollout.token_ids)


def lose_a_group(run: Made) -> None:
    del run.groups[3]["p@7"]


def lose_a_step(run: Made) -> None:
    del run.groups[3]


def lose_a_line(run: Made) -> None:
    del run.lines[2]


def write_a_line_twice(run: Made) -> None:
    run.lines.append(run.lines[3])


def take_a_group_twice(run: Made) -> None:
    run.groups[4]["p@6"] = [
        replace(m, rollout=replace(m.rollout, versions=(3,), prompt_id="p@6")) for m in run.groups[4].pop("p@9")
    ]


def train_on_more_than_there_is(run: Made) -> None:
    run.lines[1]["trainer/tokens"] += 4


def train_on_more_where_steps_were_skipped(run: Made) -> None:
    run.lines[1] |= {"trainer/tokens": run.lines[1]["trainer/tokens"] + 4, "trainer/skipped_steps": 1.0}


def count_no_failure(run: Made) -> None:
    run.lines[1]["outcome/unverifiable_share"] = 0.0


def sample_from(run: Made, *versions: int) -> None:
    group = run.groups[4]["p@8"]
    group[0] = replace(group[0], rollout=replace(group[0].rollout, versions=versions))
    run.lines[3]["staleness"] = float(3 - min(*versions, 3))


def count_another_staleness(run: Made) -> None:
    run.lines[3]["staleness"] = 1.0


def have_other_weights(run: Made) -> None:
    run.lines[3]["trainer/sampler_gap_max"] = 2 * MOST_GAP


def have_no_number(run: Made) -> None:
    run.lines[3]["trainer/sampler_gap_max"] = None


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (lose_a_response, "step 3: responses [1] to p@6 are lost"),
        (lose_it_in_the_counts_too, "step 3: responses [1] to p@6 are lost"),
        (lose_a_group, "step 3: 1 groups are recorded, 2 were to be sampled"),
        (lose_a_step, "step 3 has no responses in the ledger"),
        (lose_a_line, "step 3 is not written down, a later one is"),
        (write_a_line_twice, "step 4 is written down 2 times"),
        (take_a_group_twice, "response p@6/0 is trained on twice, in steps 3, 4"),
        (train_on_more_than_there_is, "step 2: "),
        (train_on_more_where_steps_were_skipped, "step 2: "),
        (count_no_failure, "step 2: 2 of 6 answers are unverifiable, which is counted otherwise"),
        (lambda run: sample_from(run, 2), "step 4: p@8/0 is 1 versions old, 0 may be"),
        (lambda run: sample_from(run, 4), "step 4: p@8/0 was sampled by version 4, which is not made yet"),
        (lambda run: sample_from(run, 2, 3), "step 4: p@8/0 was sampled while weights moved, by versions (2, 3)"),
        (count_another_staleness, "step 4: staleness 1.0 is counted, 0 is recorded"),
        (have_other_weights, "step 4: log-probabilities of sampler and trainer differ by 0.02"),
        (have_no_number, "step 4: log-probabilities of sampler and trainer differ by None"),
    ],
)
def test_what_is_broken_is_found(spoil: Callable[[Made], None], found: str, tmp_path: Path) -> None:
    run = made()
    spoil(run)
    findings = check(write(run, tmp_path)).findings
    assert any(finding.startswith(found) for finding in findings), findings


def test_samples_may_be_as_old_as_the_run_allows(tmp_path: Path) -> None:
    run = made()
    sample_from(run, 2)
    have_other_weights(run)  # an older policy has others: nothing is said of that
    run.config |= {"algorithm": {"max_staleness": 1}}
    assert check(write(run, tmp_path)).findings == ()


@pytest.mark.parametrize(
    "block",
    [
        {"rollout": {"top_p": 1.0, "top_k": 5}},
        {"rollout": {"top_p": 0.9, "top_k": -1}},
        {"algorithm": {"max_staleness": 0, "old_logprobs": "sampler"}},
        {"policy": {"dtype": "bfloat16"}},
    ],
    ids=["top_k", "top_p", "policy moved on before it was compared", "rounded"],
)
def test_where_log_probabilities_may_differ_nothing_is_said_of_them(block: dict[str, Any], tmp_path: Path) -> None:
    run = made()
    have_other_weights(run)
    run.config |= block
    assert check(write(run, tmp_path)).findings == ()


def test_a_run_that_counts_from_0_is_not_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made()
    for line in run.lines:
        line["step"] -= 1
    write(run, tmp_path)
    assert program.main([f"check={tmp_path}"]) == 2
    assert "counted training steps from 0" in capsys.readouterr().err


def test_what_is_asked_beside_a_check_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([f"check={tmp_path}", "minutes=5", "seed=3"]) == 2
    assert capsys.readouterr().err.endswith("and does nothing else; leave out minutes, seed\n")


def test_what_was_replaced_is_no_sample_of_its_step(tmp_path: Path) -> None:
    run = made()
    members = [member("p@6.1", index, 2, "wrong") for index in range(RESPONSES)]
    run.groups[3]["p@6.1"] = members
    run.spare[3] = ["p@6.1"]
    run.lines[2]["tokens/sampled"] += sum(len(m.rollout.token_ids) for m in members)
    assert check(write(run, tmp_path)).findings == ()


def test_optimizer_steps_without_anything_to_learn_are_no_loss(tmp_path: Path) -> None:
    run = made()
    run.lines[0] |= {"trainer/tokens": 0.0, "trainer/skipped_steps": 2.0, "trainer/sampler_gap_max": None}
    assert check(write(run, tmp_path)).findings == ()


def test_the_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made()
    write(run, tmp_path / "well")
    assert program.main([f"check={tmp_path / 'well'}"]) == 0
    assert capsys.readouterr().out.startswith("4 steps, 24 responses, ")
    lose_a_group(run)
    write(run, tmp_path / "ill")
    assert program.main([f"check={tmp_path / 'ill'}"]) == 1
    assert "step 3: 1 groups are recorded" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml"])
@pytest.mark.parametrize("content", [None, "[", "\0", "5"])
def test_a_file_that_is_no_run_s_is_named(
    name: str, content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(made(), tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(LedgerError, match=name):
        check(tmp_path)
    assert program.main([f"check={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: check: ") and name in said and said.count("\n") == 1
