"""Denominators and collation."""

import math
import random
from dataclasses import replace
from typing import get_args

import pytest

from capo_ray.learn.batch import (
    Aggregation,
    centre_and_spread,
    collate,
    denominators,
    loss_length,
    standardised,
    token_weight,
)
from capo_ray.learn.packing import Packing, Segment
from capo_ray.learn.plan import Size, plan, sizes_of
from capo_ray.types import TrainSequence

AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
PACKINGS: tuple[Packing, ...] = get_args(Packing)


def sequence(prompt: int, response: int, mask: tuple[bool, ...] = (), start: int = 1) -> TrainSequence:
    tokens = range(start, start + prompt + response)
    return TrainSequence(
        prompt_ids=tuple(tokens[:prompt]),
        token_ids=tuple(tokens[prompt:]),
        advantages=tuple(float(t) for t in range(response)),
        logprobs=tuple(-float(t) for t in range(response)),
        loss_mask=mask,
    )


def sizes(*lengths: int) -> list[Size]:
    """Of sequences with a prompt of one token each."""
    return [Size(1, length - 1, number) for number, length in enumerate(lengths)]


def test_denominators_count_the_whole_step_over_all_ranks() -> None:
    made = plan(sizes(5, 9, 3, 4, 8, 2, 7), ranks=2, tokens_per_micro_batch=10, responses_per_update=5)
    counts = [2, 3, 0, 1, 4, 2, 5]  # the third carries no loss
    expected = {"response_mean": (4, 2), "token_mean": (10, 7), "constant": (24, 12)}
    for aggregation in AGGREGATIONS:
        assert denominators(counts, made, aggregation, max_response_tokens=6) == expected[aggregation]


def test_a_step_without_loss_tokens_divides_by_one() -> None:
    made = plan(sizes(3), ranks=1, tokens_per_micro_batch=10)
    for aggregation in AGGREGATIONS:
        assert denominators([0], made, aggregation, max_response_tokens=6) == (1.0,)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_weights_over_any_plan_sum_to_the_formula(aggregation: Aggregation) -> None:
    """Sum of w_t loss_t over ranks and micro-batches == the aggregation written out on the whole step."""
    rng = random.Random(0)
    sequences = [sequence(rng.randrange(1, 4), rng.randrange(1, 9)) for _ in range(20)]
    losses = [[rng.gauss(0, 1) for _ in s.token_ids] for s in sequences]
    expected = {
        "response_mean": sum(sum(row) / len(row) for row in losses) / 20,
        "token_mean": sum(map(sum, losses)) / sum(map(len, losses)),
        "constant": sum(map(sum, losses)) / (20 * 9),
    }[aggregation]
    for ranks, budget in ((1, 1000), (1, 15), (3, 15), (4, 30)):
        made = plan(sizes_of(sequences), ranks=ranks, tokens_per_micro_batch=budget)
        (denominator,) = denominators([loss_length(s) for s in sequences], made, aggregation, max_response_tokens=9)
        total = sum(
            token_weight(aggregation, len(losses[i]), denominator) * loss
            for share in made
            for micro_batch in share[0]
            for i in micro_batch
            for loss in losses[i]
        )
        assert total == pytest.approx(expected, abs=1e-12)


def test_collation_says_where_the_logits_of_each_loss_token_stand() -> None:
    masked = sequence(2, 3, (True, False, True), start=10)  # 10 11 | 12 13 14
    longer = sequence(3, 4, start=20)  # 20 21 22 | 23 24 25 26
    batch = collate([masked, longer], "response_mean", 2, pad_id=9)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 9, 9], [20, 21, 22, 23, 24, 25, 26]]
    assert batch.targets.tolist() == [12, 14, 23, 24, 25, 26]
    after = batch.input_ids.flatten()[batch.places + 1]
    assert after.tolist() == batch.targets.tolist()
    assert batch.rows.tolist() == [0, 0, 1, 1, 1, 1]
    assert batch.weights.tolist() == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    assert batch.advantages.tolist() == [0, 2, 0, 1, 2, 3]
    assert batch.sampler_logprobs.tolist() == [0, -2, 0, -1, -2, -3]
    assert not batch.empty


def test_a_prompt_of_several_stands_once_in_its_row() -> None:
    one, other = sequence(2, 3, start=10), sequence(3, 2, (False, True), start=20)  # 10 11 | 12 13 14, 20 21 22 | 23 24
    sibling = replace(one, token_ids=(15, 16), advantages=(0.0, 1.0), logprobs=(0.0, -1.0))
    batch = collate([one, other, sibling], "token_mean", 1, packing="shared")
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 15, 16, 20, 21, 22, 23, 24]]
    assert batch.positions is not None and batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 3, 4]]
    assert batch.segments == (Segment(0, 2, 0, 0), Segment(2, 5, 0, 2), Segment(5, 7, 0, 2), Segment(7, 12, 0, 0))
    assert batch.targets.tolist() == [12, 13, 14, 24, 15, 16]
    assert batch.places.tolist() == [1, 2, 3, 10, 1, 5]  # both first tokens are predicted by the end of the prompt
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2]
    apart = collate([one, other, sibling], "token_mean", 1, packing="packed")
    assert apart.input_ids.tolist() == [[10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 10, 11, 15, 16]]
    assert apart.segments == (Segment(0, 5, 0, 0), Segment(5, 10, 0, 0), Segment(10, 14, 0, 0))
    assert apart.input_ids[0][apart.places + 1].tolist() == apart.targets.tolist() == batch.targets.tolist()


@pytest.mark.parametrize("packing", PACKINGS)
def test_an_empty_micro_batch_has_one_token_of_weight_zero(packing: Packing) -> None:
    nothing_to_learn = sequence(2, 2, (False, False))
    for sequences in ([], [nothing_to_learn]):
        batch = collate(sequences, "token_mean", 1, packing=packing)
        assert batch.empty and batch.weights.tolist() == [0.0] and batch.input_ids.shape[1] > 1


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    for advantage, logprob in ((value, 0.0), (0.0, value)):
        broken = TrainSequence(
            prompt_ids=(1,), token_ids=(2,), advantages=(advantage,), logprobs=(logprob,), source="p/7"
        )
        with pytest.raises(
            ValueError, match=r"^an advantage or a sampler.s log-probability of response p/7 is not finite"
        ):
            collate([broken], "token_mean", 1)


@pytest.mark.parametrize("packing", PACKINGS)
def test_nothing_predicts_the_first_token(packing: Packing) -> None:
    with pytest.raises(ValueError, match="without a prompt cannot carry loss"):
        collate([sequence(0, 2)], "token_mean", 1, packing=packing)
    later = sequence(0, 2, (False, True))
    assert collate([later], "token_mean", 1, packing=packing).places.tolist() == [0]
    assert collate([later, later], "token_mean", 1, packing=packing).places.tolist() == [0, 2]


def test_a_batch_is_standardised_from_the_sums_of_its_groups() -> None:
    """REINFORCE++: mean 0 and variance 1 over all tokens, whatever group they are in."""
    groups = [[2.0, 2.0, -1.0], [0.0], [1.0, 0.5, 0.25]]
    tallies = [
        {"trained_tokens": len(g), "advantage": sum(g), "advantage_squared": sum(v * v for v in g)} for g in groups
    ]
    centre, spread = centre_and_spread(tallies)
    values = [(value - centre) / spread for group in groups for value in group]
    assert sum(values) == pytest.approx(0, abs=1e-9)
    assert sum(value**2 for value in values) / len(values) == pytest.approx(1, abs=1e-5)
    assert centre_and_spread([{"trained_tokens": 4, "advantage": 8.0, "advantage_squared": 16.0}]) == (2.0, 1.0)
    assert centre_and_spread([]) == (0.0, 1.0)


def test_advantages_are_centred_and_scaled() -> None:
    sequence = TrainSequence(prompt_ids=(1,), token_ids=(2, 3), advantages=(3.0, -1.0), logprobs=(0.0, 0.0))
    made = standardised(collate([sequence], "token_mean", 2.0), 1.0, 2.0)
    assert made.advantages.tolist() == [1.0, -1.0]
    assert standardised(collate([], "token_mean", 2.0), 1.0, 2.0).advantages.tolist() == [0.0]
