"""Objects of a user's own by `module:name`: the worked examples of the documentation, as they stand there."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from capo_ray.cluster.actors import RolloutActor
from capo_ray.cluster.arrivals import Errand, Handed
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.credit.advantage import algorithm_of
from capo_ray.credit.critique import Reference
from capo_ray.credit.group import Member, Scheme, score_group
from capo_ray.credit.steps import steps_of
from capo_ray.credit.vote import sealed, vote
from capo_ray.critics.prompt import find_template
from capo_ray.engines.protocols import RolloutEngine
from capo_ray.extension import load
from capo_ray.revote import __main__ as revote
from capo_ray.tasks.registry import task_of
from capo_ray.training import build
from capo_ray.training.build_critics import make_critics
from capo_ray.types import Critique, Prompt, Rollout, Sampling

ROOT = Path(__file__).resolve().parents[1]
PAGES = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("algorithm.md", "extending.md"))
EXAMPLES = dict(re.findall(r"`(my_\w+)\.py`:\n\n```python\n(.*?)^```$", PAGES, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"python -m capo_ray\.launch (.*=my_.*)", PAGES)
TOKENIZER = ROOT / "capo_ray" / "assets" / "tiny_policy"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start from that holds the examples."""
    for module, code in EXAMPLES.items():
        (tmp_path / f"{module}.py").write_text(code)
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_name_an_example_compose(here: Path, command: str) -> None:
    assert compose(command.split())


def test_every_example_has_a_command_or_is_an_engine() -> None:
    assert {name for name in EXAMPLES if any(f"={name}:" in command for command in COMMANDS)} == {*EXAMPLES} - {
        "my_engine"
    }


def test_the_task_of_the_docs(here: Path) -> None:
    task = task_of(
        compose(["+experiment=tiny_cpu_text", "data.kind=my_task:TASK", "data.path=x", "policy.tokenizer=y"])
    )
    prompt = Prompt(id="a", question="Capital of France?", token_ids=(0,), answer="Paris")
    said = {"So.\nAnswer: paris": "correct", "Answer: Rome": "wrong", "Answer: Paris\nOr not.": "wrong", "": "wrong"}
    assert {response: asyncio.run(task.verify(prompt, response)) for response in said} == said
    assert asyncio.run(task.verify(replace(prompt, answer=" "), "Answer: Paris")) == "unverifiable"


def test_the_vote_of_the_docs(here: Path) -> None:
    said = [Critique(text="", outcome="ok", wrong_steps=steps) for steps in ((0, 1, 2), (0, 1), (0,))]
    assert vote(said, 4, "my_vote:two_thirds").weights == (1.0, pytest.approx(2 / 3), 0.0, 0.0)
    assert not sealed(said[:2], 1, 4, "my_vote:two_thirds")
    assert sealed(said[:1], 0, 4, "my_vote:two_thirds")
    assert revote.arguments(["run", "vote=my_vote:two_thirds"]).given == {"vote": "my_vote:two_thirds"}


def test_a_vote_that_falls_with_the_flags_is_refused(here: Path) -> None:
    (here / "my_odd.py").write_text("def odd(flags, valid):\n    return float(flags % 2)\n")
    with pytest.raises(
        ConfigError, match=r"my_odd:odd: the weights of 0 to 2 flags of 2 must rise .*\[0.0, 1.0, 0.0\]"
    ):
        compose(["+experiment=tiny_cpu", "reward.vote=my_odd:odd", "critic.critiques=3"])


def test_the_critic_of_the_docs(here: Path) -> None:
    """Through the service that a run asks."""
    config = compose(["+experiment=tiny_cpu", "critic=own", "critic.kind=my_critic:Sums"])
    assert config.critic is not None and config.critic.template == "paper"
    critics = make_critics(config, find_template(config.critic), [])
    assert critics is not None
    steps = ["1 + 2 = 3.", "So 3 + 4 = 8."]
    (critique,) = asyncio.run(critics.judge("?", Reference("none"), steps, response_key="a", seed=0))
    assert (critique.outcome, critique.wrong_steps, critique.critic) == ("ok", (1,), "sums")


def test_the_engine_of_the_docs(here: Path) -> None:
    """In its actor, asked as a run asks it, and scored by what stands behind it."""
    engine: RolloutEngine = importlib.import_module("my_engine").Canned(str(TOKENIZER), (5, 6, 7))
    actor = RolloutActor(lambda: engine)
    prompt = Prompt(id="a", question="?", token_ids=(0,), answer="")

    async def use() -> list[Rollout]:
        assert await actor.ready() == "canned"
        receipt = await actor.take_weights("finish", {"version": 0})
        assert receipt is not None and receipt.version == (await actor.metrics())["version"] == 0
        made: list[Rollout] = []

        async def keep(handed: Sequence[Handed]) -> None:
            made.extend(rollout for _, rollout, _ in handed)

        class Shard:
            take = SimpleNamespace(remote=keep)

        shard, errand = Shard(), Errand(kind="score", seed=0, step=1)
        await actor.sample_for(shard, errand, prompt, Sampling(max_tokens=9), {0: 1, 1: 2})
        await actor.close()
        return made

    first, second = asyncio.run(use())
    assert (first.index, second.index, first.text) == (0, 1, second.text)
    members = [
        Member(rollout=rollout, steps=steps_of(rollout.text, rollout.char_ends), critiques=(), answer=answer)
        for rollout, answer in ((first, "correct"), (second, "wrong"))
    ]
    score = score_group(members, Scheme(advantage="grpo"))
    assert score.advantages == (pytest.approx((1.0,) * 3, abs=1e-5), pytest.approx((-1.0,) * 3, abs=1e-5))
    for made in re.findall(r"`(make_\w+)`", PAGES):
        assert callable(getattr(build, made))


def test_the_normaliser_of_the_docs(here: Path) -> None:
    algorithm = algorithm_of("my_credit:BY_MEDIAN")
    rows = algorithm.normalise([[2.0, 2.0, 1.0], [0.0, -1.0]], [2.0, 0.0])
    assert rows == [pytest.approx([1.0, 1.0, 0.0], abs=1e-5), pytest.approx([-1.0, -2.0], abs=1e-5)]
    assert algorithm.normalise([[2.0], [2.0, 2.0]], [2.0, 2.0]) == [(0.0,), (0.0, 0.0)]
    config = compose(["+experiment=tiny_cpu", "algorithm.advantage=my_credit:BY_MEDIAN"])
    assert config.algorithm.advantage == "my_credit:BY_MEDIAN"


def test_it_pays_for_steps_and_so_it_needs_a_critic(here: Path) -> None:
    with pytest.raises(ConfigError, match="advantage` my_credit:BY_MEDIAN needs a `critic`"):
        compose(["+experiment=tiny_cpu", "algorithm.advantage=my_credit:BY_MEDIAN", "critic=null"])


def test_the_surrogate_of_the_docs(here: Path) -> None:
    import torch

    from capo_ray.learn.surrogate import Clip, Tokens, surrogate_of

    logprobs = torch.zeros(3, requires_grad=True)
    ratio = torch.tensor([1.0, 1.1, 1.5])
    tokens = Tokens(
        logprobs=logprobs, log_ratio=ratio.log() + logprobs, advantages=torch.ones(3), rows=torch.zeros(3).long()
    )
    made = surrogate_of("my_objective:fade")(tokens, Clip())
    made.losses.sum().backward()
    assert made.held.tolist() == [False, False, True]
    faded = torch.tensor([1.0, 1.1, 1.5 * torch.tensor(-0.3).exp()])
    assert logprobs.grad is not None and torch.allclose(-logprobs.grad, faded)
    assert compose(["+experiment=tiny_cpu", "algorithm.surrogate=my_objective:fade"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "algorithm.advantage=median",
            "algorithm.advantage: must be one of capo, capo_mean, .*, or module:name of your own",
        ),
        (
            "algorithm.advantage=nowhere:X",
            r"nowhere:X: cannot import nowhere \(No module named 'nowhere'\); put nowhere.py into",
        ),
        ("algorithm.advantage=my_credit:BY_MEAN", "my_credit:BY_MEAN: my_credit has no BY_MEAN"),
        ("algorithm.advantage=my_credit:by_median", "must be a capo_ray.credit.advantage.Algorithm, and is a function"),
        ("algorithm.surrogate=my_credit:EPSILON", "must be a function of .* to a Surrogate, and is a float"),
        ("data.kind=my_vote:two_thirds", "must be a capo_ray.tasks.registry.Task, and is a function"),
        ("data.kind=algebra", "data.kind: must be one of math, arithmetic, or module:name of your own"),
        ("reward.vote=my_vote:half", "my_vote:half: my_vote has no half"),
        ("reward.vote=my_task:TASK", "must be a function of .flags, valid critiques. to a weight, and is a Task"),
        ("critic.kind=my_critic:SUMS", "my_critic:SUMS: my_critic has no SUMS"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_starts(here: Path, override: str, message: str) -> None:
    base = ["+experiment=tiny_cpu", "critic=truth", *(["data.path=x"] if override.startswith("data.kind") else [])]
    with pytest.raises(ConfigError, match=message):
        compose([*base, override])


def test_the_program_for_recorded_responses_takes_it_too(here: Path, test_data: Path) -> None:
    response = {"text": "1\n\n2", "outcome": 1, "critiques": ["<incorrect_steps>0</incorrect_steps>"]}
    group = {"id": "a", "responses": [response]}
    program = ("-m", "capo_ray.credit", f"tokenizer={test_data / 'tokenizers' / 'gpt2'}")
    done = subprocess.run(
        [sys.executable, *program, "advantage=my_credit:BY_MEDIAN"],
        input=json.dumps(group),
        cwd=here,
        env={"PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"advantages": [' in done.stdout


def test_an_error_in_the_file_is_named_with_its_line(here: Path) -> None:
    (here / "my_broken.py").write_text("1 / 0")
    with pytest.raises(
        ValueError, match=r"my_broken:X: ZeroDivisionError: division by zero \(.*my_broken.py, line 1\)"
    ):
        load("my_broken:X", callable, is_a="a function")
