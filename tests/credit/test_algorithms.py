"""Every choice between a verdict and an advantage against a slow loop over tokens, written from its paper's formula."""

from __future__ import annotations

import random
import re
from itertools import product
from typing import get_args

import pytest

from capo_ray.credit.advantage import ALGORITHMS, Advantage
from capo_ray.credit.group import GroupScore, Member, Scheme, score_group
from capo_ray.credit.penalty import ErrorSet, Returns, penalties
from capo_ray.credit.reward import Outcome
from capo_ray.types import Answer, Critique, Finish, Rollout, Step

EPSILON = 1e-6


def make(rng: random.Random, right: bool, *, index: int = 0, finish: Finish = "stop") -> Member:
    """A response of one to nine tokens in one to four steps, judged by three critics; a step may hold no token."""
    num_tokens = rng.choice([1, 1, 2, 5, 9])
    borders = sorted(rng.randint(0, num_tokens) for _ in range(rng.randint(0, 3)))
    spans = list(zip([0, *borders], [*borders, num_tokens], strict=True))
    critiques = [
        Critique(
            text="",
            outcome="ok",
            wrong_steps=tuple(s for s in range(len(spans)) if rng.random() < 0.4),
            says_correct=rng.choice([True, False, None]),
        )
        for _ in range(3)
    ]
    return Member(
        rollout=Rollout(
            prompt_id="p",
            index=index,
            text="x" * num_tokens,
            finish=finish,
            token_ids=(1,) * num_tokens,
            logprobs=(0.0,) * num_tokens,
            char_ends=tuple(range(1, num_tokens + 1)),
            versions=(0,),
        ),
        steps=tuple(Step(text="", chars=span, tokens=span) for span in spans),
        critiques=tuple(critiques),
        answer="correct" if right else "wrong",
    )


def groups(seed: int) -> list[list[Member]]:
    """Mixed, all right, all wrong, a single response, and one that no critic flags."""
    rng = random.Random(seed)
    mixed = [make(rng, rng.random() < 0.5) for _ in range(5)]
    equal = [[make(rng, right) for _ in range(4)] for right in (True, False)]
    clean = [
        Member(
            rollout=member.rollout,
            steps=member.steps,
            critiques=(Critique(text="", outcome="ok"),),
            answer=member.answer,
        )
        for member in mixed
    ]
    return [mixed, *equal, mixed[:1], clean]


def slow_weights(member: Member, scheme: Scheme) -> list[float]:
    """Average vote, then the error set and the return as their papers have them, on step rewards."""
    flags = [sum(s in c.wrong_steps for c in member.critiques) for s in range(len(member.steps))]
    weights = [count / len(member.critiques) for count in flags]
    wrong = [s for s, weight in enumerate(weights) if weight > 0]
    if scheme.error_set == "first":
        weights = [weight if wrong and s == wrong[0] else 0.0 for s, weight in enumerate(weights)]
    if scheme.error_set == "from_first":
        weights = [max(weights[: s + 1]) if wrong and s >= wrong[0] else 0.0 for s in range(len(weights))]
    rewards = [-weight for weight in weights]
    if scheme.returns == "suffix_sum":
        rewards = [sum(rewards[s:]) for s in range(len(rewards))]
    if scheme.returns == "suffix_min":
        rewards = [min(rewards[s:]) for s in range(len(rewards))]
    return [-reward for reward in rewards]


def slow_rewards(member: Member, scheme: Scheme, *, pays: bool) -> list[float]:
    outcome = scheme.outcome_weight * (member.answer == "correct")
    weights = slow_weights(member, scheme)
    rewards = []
    for t in range(len(member.rollout.token_ids)):
        step = next((s for s, made in enumerate(member.steps) if made.tokens[0] <= t < made.tokens[1]), None)
        paid = scheme.process_weight * weights[step] if pays and step is not None else 0.0
        rewards.append(outcome - paid)
    return rewards


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def std(values: list[float]) -> float:
    return mean([(value - mean(values)) ** 2 for value in values]) ** 0.5


def slow_advantages(members: list[Member], scheme: Scheme) -> list[list[float]]:
    name = scheme.advantage
    rows = [slow_rewards(member, scheme, pays=name.startswith("capo")) for member in members]
    outcomes = [scheme.outcome_weight * (member.answer == "correct") for member in members]
    pooled = [reward for row in rows for reward in row]
    made: list[list[float]] = []
    for i, row in enumerate(rows):
        others = outcomes[:i] + outcomes[i + 1 :]
        process = [reward - o for r, o in zip(rows, outcomes, strict=True) for reward in r]
        for_row = []
        for reward in row:
            n = len(outcomes)
            sample = std(outcomes) * (n / (n - 1)) ** 0.5 if n > 1 else 0.0
            grpo = (outcomes[i] - mean(outcomes)) / (std(outcomes) + EPSILON)
            for_row.append(
                {
                    "capo": (reward - mean(pooled)) / (std(pooled) + EPSILON),
                    "capo_mean": reward - mean(pooled),
                    "capo_channels": grpo + (reward - outcomes[i] - mean(process)) / (std(process) + EPSILON),
                    "capo_batch": reward,
                    "grpo": grpo,
                    "grpo_sample": (outcomes[i] - mean(outcomes)) / (sample + EPSILON),
                    "dr_grpo": outcomes[i] - mean(outcomes),
                    "rloo": outcomes[i] - (mean(others) if others else outcomes[i]),
                    "reinforce_pp": reward,
                }[name]
            )
        made.append(for_row)
    return made


def flat(rows: object) -> list[float]:
    return [value for row in rows for value in row]  # type: ignore[attr-defined]


@pytest.mark.parametrize("advantage", get_args(Advantage))
@pytest.mark.parametrize(("error_set", "returns"), product(get_args(ErrorSet), get_args(Returns)))
@pytest.mark.parametrize("seed", range(3))
def test_rewards_and_advantages_equal_a_loop_over_tokens(
    advantage: Advantage, error_set: ErrorSet, returns: Returns, seed: int
) -> None:
    scheme = Scheme(
        vote="average",
        outcome_weight=2.3,
        process_weight=0.7,
        advantage=advantage,
        error_set=error_set,
        returns=returns,
    )
    for members in groups(seed):
        score = score_group(members, scheme)
        pays = advantage.startswith("capo")
        expected = [slow_rewards(member, scheme, pays=pays) for member in members]
        assert flat(m.token_rewards for m in score.members) == pytest.approx(flat(expected), abs=1e-12)
        assert flat(score.advantages) == pytest.approx(flat(slow_advantages(members, scheme)), abs=1e-6)


@pytest.mark.parametrize(
    ("error_set", "returns", "expected"),
    [
        ("all", "none", (0, 1, 0, 1, 0)),
        ("from_first", "none", (0, 1, 1, 1, 1)),
        ("first", "none", (0, 1, 0, 0, 0)),
        ("all", "suffix_sum", (2, 2, 1, 1, 0)),
        ("all", "suffix_min", (1, 1, 1, 1, 0)),
        ("first", "suffix_min", (1, 1, 0, 0, 0)),
    ],
)
def test_penalties_of_one_response(error_set: ErrorSet, returns: Returns, expected: tuple[float, ...]) -> None:
    assert penalties((0.0, 1.0, 0.0, 1.0, 0.0), error_set, returns) == expected
    assert penalties((), error_set, returns) == ()


def critic_says(*said: bool | None, right: bool = True) -> Member:
    member = make(random.Random(3), right)
    critiques = tuple(Critique(text="", outcome="ok", says_correct=each) for each in said)
    return Member(rollout=member.rollout, steps=member.steps, critiques=critiques, answer=member.answer)


def test_genorm_pays_the_share_of_critiques_that_say_yes() -> None:
    scheme = Scheme(advantage="grpo", outcome=Outcome(source="critic"))
    score = score_group([critic_says(True, False, None), critic_says(False, False, right=True)], scheme)
    assert [m.token_rewards[0] for m in score.members] == [1.0, 0.0]
    first, second = score.advantages
    assert first is not None and second is not None and first[0] == pytest.approx(1, abs=1e-5) == -second[0]


def test_genorm_wants_as_many_valid_critiques_as_it_is_told() -> None:
    scheme = Scheme(advantage="grpo", outcome=Outcome(source="critic"), min_valid_critiques=2)
    score = score_group([critic_says(True), critic_says(False, True), critic_says(True, True)], scheme)
    assert score.num_unjudged == 1
    assert [row is None for row in score.advantages] == [True, False, False]


def test_genorm_drops_what_no_critic_has_judged_and_keeps_what_no_verifier_could_read() -> None:
    scheme = Scheme(advantage="grpo", outcome=Outcome(source="critic"))
    unverifiable = critic_says(True)
    unverifiable = Member(
        rollout=unverifiable.rollout,
        steps=unverifiable.steps,
        critiques=unverifiable.critiques,
        answer="unverifiable",
    )
    score = score_group([critic_says(None), critic_says(False), unverifiable], scheme)
    assert score.advantages[0] is None and score.num_unjudged == 1
    assert score.advantages[1] is not None and score.advantages[2] is not None


def scored(outcome: Outcome, num_tokens: int, text: str = "") -> float:
    member = make(random.Random(0), True)
    rollout = Rollout(
        prompt_id="p",
        index=0,
        text=text,
        finish="stop",
        token_ids=(1,) * num_tokens,
        logprobs=(0.0,) * num_tokens,
        char_ends=(len(text),) * num_tokens,
        versions=(0,),
    )
    step = Step(text=text, chars=(0, len(text)), tokens=(0, num_tokens))
    member = Member(rollout=rollout, steps=(step,), critiques=(), answer="correct")
    score: GroupScore = score_group([member], Scheme(advantage="grpo", outcome=outcome))
    return score.members[0].token_rewards[0]


@pytest.mark.parametrize(("num_tokens", "reward"), [(1, 2.0), (60, 2.0), (80, 1.75), (100, 1.5)])
def test_overlong_responses_are_punished_as_dapo_says(num_tokens: int, reward: float) -> None:
    """Eq. 13 with a limit of 100 tokens and a buffer of 40, at half weight."""
    outcome = Outcome(overlong_tokens=40, overlong_weight=0.5, max_response_tokens=100)
    assert scored(outcome, num_tokens) == reward


def test_the_format_is_paid_beside_the_answer() -> None:
    outcome = Outcome(format_weight=0.2, format_pattern=re.compile(r"\\boxed\{"))
    assert scored(outcome, 3, "so \\boxed{1}") == 2.2
    assert scored(outcome, 3, "so 1") == 2.0


def test_a_cut_off_response_is_compared_and_not_trained_on() -> None:
    rng = random.Random(1)
    members = [make(rng, True), make(rng, False, finish="length"), make(rng, False)]
    masked, plain = (score_group(members, Scheme(advantage="grpo", mask_cut_off=mask)) for mask in (True, False))
    assert masked.advantages == (plain.advantages[0], None, plain.advantages[2])
    assert (masked.num_compared, masked.has_credit) == (3, True)
    assert score_group(members[1:2], Scheme(advantage="grpo", mask_cut_off=True)).num_compared == 1


def test_every_algorithm_has_its_name() -> None:
    assert get_args(Advantage) == tuple(ALGORITHMS)


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused_with_its_response(reward: float) -> None:
    member = Member(
        rollout=Rollout(
            prompt_id="p7", index=3, text="ab", finish="stop", token_ids=(1, 2), logprobs=(0.0, 0.0), char_ends=(1, 2),
            versions=(0,),
        ),
        steps=(),
        critiques=(),
        answer="correct",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"rollout 'p7'/3: the reward of token 0 is (nan|inf), and of 2 tokens"):
        score_group([member], Scheme(outcome_weight=reward, advantage="grpo"))


@pytest.mark.parametrize("weight", [1e200, 1.7e308])
def test_rewards_that_cannot_be_compared_are_refused(weight: float) -> None:
    def one(index: int, answer: Answer) -> Member:
        rollout = Rollout(
            prompt_id="p7", index=index, text="a", finish="stop", token_ids=(1,), logprobs=(0.0,), char_ends=(1,),
            versions=(0,),
        )  # fmt: skip
        return Member(rollout=rollout, steps=(), critiques=(), answer=answer)

    with pytest.raises(ValueError, match=r"algorithm.advantage (capo|grpo)"):
        for advantage in ("capo", "grpo"):
            score_group([one(0, "correct"), one(1, "wrong")], Scheme(outcome_weight=weight, advantage=advantage))
