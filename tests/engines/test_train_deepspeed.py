"""One update is one update: however it is split over ranks, micro-batches and ZeRO stages, and across a restart."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines.rank_bytes import MODEL as LARGER
from engines.rank_bytes import bytes_per_parameter
from engines.trainer_ranks import MODEL, VOCABULARY, Case, Ranks, batch_of, engine_of, sequences, updated, weights_of

from capo_ray.config.blocks import Trainer
from capo_ray.config.model import Shape
from capo_ray.learn.batch import collate, token_weight
from capo_ray.planning.memory import bytes_held, learning
from capo_ray.types import TrainSequence

pytestmark = pytest.mark.engine
SKIPPED = {"seconds"}


def assert_same(one: Any, other: Any, tolerance: float = 1e-4) -> None:
    """Metrics and weights of two runs. The tolerance is a hundredth of the learning rate: Adam divides a gradient by
    its own size, so where one is all rounding, its step is too, and how much depends on the processor."""
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - SKIPPED:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=tolerance), name
    assert list(one[1]) == list(other[1])
    for name in one[1]:
        np.testing.assert_allclose(one[1][name], other[1][name], atol=tolerance, err_msg=name)


# -- the same step everywhere

MANY = Case(
    per_update=5,
    trainer={"optimisation_passes": 2},
    algorithm={"kl_weight": 0.05, "importance_cap": 1.1},
)


@pytest.fixture(scope="module")
def folder(one: Ranks, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with weights: under ZeRO-3 such are made in shares."""
    path = str(tmp_path_factory.mktemp("model"))
    one(written, Case(stage=0), path)
    return f"{path}/written"


@pytest.fixture(scope="module")
def whole(one: Ranks, folder: str) -> Any:
    """One rank, no micro-batches, no ZeRO."""
    return one(updated, MANY.but(model=folder, stage=0), 2)


def test_micro_batches_change_nothing(one: Ranks, whole: Any, folder: str) -> None:
    for stage in (0, 3):
        assert_same(one(updated, MANY.but(model=folder, stage=stage, budget=20), 2), whole)


OFFLOADED = [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "all")]


@pytest.mark.parametrize(("stage", "offload"), [*((stage, "none") for stage in range(4)), *OFFLOADED])
def test_two_ranks_change_nothing_at_any_zero_stage(
    two: Ranks, whole: Any, folder: str, stage: int, offload: str
) -> None:
    """Nor does it where the optimizer, or weights too, lie in the memory of the host."""
    case = MANY.but(model=folder, stage=stage, budget=20, trainer={**MANY.trainer, "offload": offload})
    for rank in two.each(updated, case, 2):
        assert_same(rank, whole)


def where_weights_are(rank: int, ranks: int, case: Case) -> Any:
    """Of the policy and the reference: on which device DeepSpeed has been told to keep them, and that of the moments;
    and what an update makes."""
    with engine_of(case, rank, ranks) as engine:
        made = engine.update(batch_of(case, rank, ranks)).metrics
        told = [str(scorer.zero_offload_param().device) for scorer in (engine._engine, engine._reference)]
        return told, str(engine._engine.zero_offload_optimizer().device), made


def test_a_reference_lies_where_the_weights_do(two: Ranks, folder: str) -> None:
    case = MANY.but(model=folder, stage=3, dtype="bfloat16", algorithm={"kl_weight": 0.1})
    off = case.but(trainer={**MANY.trainer, "offload": "all"})
    plain = two(updated, case, 1)[0][0]
    for told, optimizer, made in two.each(where_weights_are, off):
        assert (told, optimizer) == (["cpu", "cpu"], "cpu")
        assert made["loss"] == pytest.approx(plain["loss"], abs=1e-4)


def held(rank: int, ranks: int, path: str) -> Any:
    """Numbers of a model that this rank holds once it is made, and of the whole; and what is gathered at each stage."""
    import torch

    from capo_ray.engines import causal_model, trainer_settings

    model = causal_model.make(path, dtype=torch.bfloat16, seed=0, zero_three={"offload_param": {"device": "cpu"}})
    mine = sum(parameter.numel() + parameter.ds_tensor.numel() for parameter in model.parameters())
    gathered = []
    for stage in range(4):
        with engine_of(
            Case(model=path, stage=stage, dtype="bfloat16", trainer={"weight_decay": 0.1}), rank, ranks
        ) as engine:
            gathered.append(weights_of(engine))
            groups = [
                sum(math.prod(causal_model.shape_of(p)) for p in group["params"])
                for group in trainer_settings.decay_groups(engine._model, 0.1)
            ]
    return mine, sum(math.prod(causal_model.shape_of(p)) for p in model.parameters()), groups, gathered


def test_under_zero_three_a_model_is_made_in_shares_and_gathered_as_at_every_stage(two: Ranks, folder: str) -> None:
    for mine, all_numbers, (decaying, rest), (first, *others) in two.each(held, folder):
        assert mine <= all_numbers / 2 + 100  # shares are padded
        assert decaying + rest == all_numbers and 0 < rest < decaying
        for other in others:
            assert list(other) == list(first)
            for name in first:
                np.testing.assert_array_equal(other[name], first[name])


def siblings(count: int) -> tuple[TrainSequence, ...]:
    """Three responses to each prompt."""
    made = sequences(count)
    return tuple(replace(one, prompt_ids=made[number // 3].prompt_ids) for number, one in enumerate(made))


@pytest.mark.parametrize(("stage", "packing"), [(0, "packed"), (2, "shared"), (3, "packed"), (3, "shared")])
def test_packing_changes_nothing(two: Ranks, folder: str, stage: int, packing: str) -> None:
    """With checkpointing, a reference and frozen log-probabilities, in rows of one sequence and of several."""
    case = MANY.but(
        sequences=siblings(12), model=folder, stage=stage, trainer=MANY.trainer | {"gradient_checkpointing": True}
    )
    padded = two(updated, case.but(trainer=case.trainer | {"packing": "padded"}), 2)
    for budget in (20, 60):
        packed = case.but(trainer=case.trainer | {"packing": packing}, budget=budget)
        assert_same(two(updated, packed, 2), padded)


def test_a_model_whose_sequences_know_of_each_other_is_refused(one: Ranks) -> None:
    with pytest.raises(RuntimeError, match="since a sequence knows of the one before it in its row: set it to padded"):
        one(leaking, Case())


def leaking(rank: int, ranks: int, case: Case) -> None:
    from capo_ray.engines import attention
    from capo_ray.learn.packing import Segment

    true = attention.in_pieces
    attention.in_pieces = lambda q, k, v, segments, scale: true(q, k, v, (Segment(0, q.shape[2], 0, 0),), scale)
    try:
        with engine_of(case, rank, ranks):
            pass
    finally:
        attention.in_pieces = true


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model_type": "mistral", "sliding_window": 14},
            "MistralAttention attends over 14 tokens, and a sequence has 17",
        ),
        ({"model_type": "bloom"}, "BloomForCausalLM has attention of its own kind"),
        ({"model_type": "opt"}, "a sequence knows of the one before it in its row"),
    ],
)
def test_a_model_with_another_attention_is_refused(one: Ranks, changes: dict[str, Any], said: str) -> None:
    case = Case(model=MODEL | changes)
    with pytest.raises(RuntimeError, match=said) as error:
        one(updated, case)
    assert "padded" in str(error.value)
    one(updated, case.but(trainer={"packing": "padded"}))


@pytest.mark.parametrize(("stage", "tied"), [(0, True), (2, False), (3, True), (3, False)])
def test_a_head_in_pieces_changes_nothing(two: Ranks, stage: int, tied: bool) -> None:
    """With an entropy bonus and a reference, in a model whose head is its embedding or is not."""
    case = MANY.but(
        stage=stage,
        model=MODEL | {"tie_word_embeddings": tied},
        algorithm={"kl_weight": 0.05, "entropy_weight": 0.01},
        trainer={"optimisation_passes": 2, "gradient_checkpointing": True},
    )
    whole = two(updated, case, 2)
    assert_same(two(updated, case.but(trainer=case.trainer | {"head_tokens": 4}), 2), whole)
    assert_same(two(updated, case.but(trainer=case.trainer | {"head_tokens": 4, "head_float32": True}), 2), whole)


@pytest.mark.parametrize("stage", [0, 3])
def test_a_head_in_float32_moves_what_bfloat16_scores(two: Ranks, stage: int) -> None:
    case = MANY.but(dtype="bfloat16", stage=stage, trainer={"head_float32": True})
    in_pieces = case.but(trainer={"head_float32": True, "head_tokens": 4})
    entropies = [two(updated, one)[0][0]["entropy"] for one in (case.but(trainer={}), case, in_pieces)]
    assert entropies[1] == pytest.approx(entropies[2], rel=1e-5)
    assert entropies[0] != entropies[1] and entropies[0] == pytest.approx(entropies[1], rel=0.01)


@pytest.mark.parametrize("aggregation", ["token_mean", "constant"])
def test_every_aggregation_survives_the_split(one: Ranks, two: Ranks, aggregation: str) -> None:
    case = MANY.but(algorithm={"aggregation": aggregation})
    assert_same(two(updated, case.but(budget=20)), one(updated, case))


@pytest.mark.parametrize("stage", [2, 3])
def test_a_rank_without_sequences_joins_in(one: Ranks, two: Ranks, stage: int) -> None:
    case = Case(sequences=sequences(1), stage=stage)
    assert_same(two(updated, case), one(updated, case))


@pytest.mark.parametrize("stage", [2, 3])
def test_gradient_checkpointing_changes_nothing(two: Ranks, stage: int) -> None:
    case = Case(stage=stage, budget=40)
    assert_same(two(updated, case.but(trainer={"gradient_checkpointing": True})), two(updated, case))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_plan_counts_the_bytes_that_a_rank_holds(two: Ranks, stage: int) -> None:
    case = Case(sequences=sequences(2), model=LARGER, stage=stage, dtype="bfloat16")
    real = two(bytes_per_parameter, case)
    each = bytes_held(stage, 2, 2)
    summing = each.weights + each.optimizer + each.gradients
    assert summing == pytest.approx(real["summing"], rel=0.15)
    assert summing + each.step == pytest.approx(real["step"], rel=0.15)
    assert real["between"] < 1.01 * summing


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_and_those_beside_an_adapter(two: Ranks, stage: int) -> None:
    """Of rank 128, so that what learns counts beside what stays."""
    shape = Shape(parameters=4_983_040, layers=4, hidden_size=256, key_value_size=128, vocabulary=4096, window=64)
    trainer = Trainer(**{**Case(stage=stage).trainer_block(2).model_dump(), "lora": {"rank": 128}})
    case = Case(sequences=sequences(2), model=LARGER, stage=stage, dtype="bfloat16", trainer={"lora": {"rank": 128}})
    case = case.but(algorithm={"kl_weight": 0.1})
    real = two(bytes_per_parameter, case)
    share = learning(trainer, shape) / (shape.parameters + learning(trainer, shape))
    each = bytes_held(stage, 2, 2)
    summing = each.weights + share * (each.optimizer + each.gradients)
    assert summing == pytest.approx(real["summing"], rel=0.15)
    assert summing + share * each.step == pytest.approx(real["step"], rel=0.15)


def test_a_batch_of_nothing_is_no_update(two: Ranks) -> None:
    case = Case(sequences=())
    ((metrics,), weights) = two(updated, case)
    assert metrics["tokens"] == metrics["optimizer_steps"] == metrics["loss"] == 0
    for name, start in two(updated, case, 0)[1].items():
        np.testing.assert_array_equal(weights[name], start)


@pytest.mark.parametrize("stage", [0, 2])
def test_steps_too_small_for_bfloat16_add_up_until_the_engines_see_them(one: Ranks, stage: int) -> None:
    """A step of 2e-6 is under half a bf16 step of most weights; float32 weights keep it. Without them the share would
    stay where the first step has left it."""
    case = Case(
        stage=stage, dtype="bfloat16", trainer={"learning_rate": 2e-6, "warmup_steps": 0, "schedule": "constant"}
    )
    start, once, often = (one(updated, case, times)[1] for times in (0, 1, 30))

    def reached(weights: dict[str, Any]) -> float:
        changed = sum(int((weights[name] != start[name]).sum()) for name in start)
        return changed / sum(tensor.size for tensor in start.values())

    assert 0 < reached(once) < 0.1
    assert reached(often) > 0.3


def settings_in_use(rank: int, ranks: int, case: Case) -> tuple[int, bool, float, int]:
    with engine_of(case, rank, ranks) as engine:
        used = engine._engine
        return (
            used.zero_reduce_bucket_size(),
            used.memory_breakdown(),
            used.gradient_clipping(),
            used.zero_optimization_stage(),
        )


def test_options_by_deepspeeds_names_arrive_beside_our_own(two: Ranks) -> None:
    options = {"zero_optimization": {"reduce_bucket_size": 12345}, "memory_breakdown": True}
    case = Case(stage=1, trainer={"max_grad_norm": 0.25, "deepspeed": options})
    assert two(settings_in_use, case) == (12345, True, 0.25, 1)
    assert two(settings_in_use, case.but(trainer={"max_grad_norm": 0.25}))[:2] == (500_000_000, False)


def test_supervised_training_is_split_as_well(one: Ranks, two: Ranks) -> None:
    case = Case(supervised=True)
    assert_same(two(updated, case.but(budget=20, stage=3)), one(updated, case.but(stage=0)))


def by_hand(rank: int, ranks: int, case: Case) -> Any:
    """What the engine should do, in plain PyTorch: a sequence at a time, unpadded, all logits, no DeepSpeed."""
    import torch

    from capo_ray.engines import causal_model
    from capo_ray.engines.trainer_settings import learning_rate

    model = causal_model.make(case.model, dtype=torch.float32, seed=0)
    trainer, algorithm = case.trainer_block(1), case.algorithm_block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, betas=trainer.betas, weight_decay=0.0)

    def logprobs(sequence: TrainSequence) -> torch.Tensor:
        ids = torch.tensor([*sequence.prompt_ids, *sequence.token_ids])
        rows = model(ids[None]).logits[0, :-1].div(case.temperature).log_softmax(-1)
        return rows.gather(-1, ids[1:, None])[len(sequence.prompt_ids) - 1 :, 0]

    with torch.no_grad():
        old = [logprobs(s) for s in case.sequences]
    if algorithm.old_logprobs == "sampler":
        old = [torch.tensor(s.logprobs) for s in case.sequences]
    for step in range(trainer.optimisation_passes):
        loss = torch.zeros(())
        for sequence, before in zip(case.sequences, old, strict=True):
            mask = torch.tensor(sequence.loss_mask or (True,) * len(sequence.token_ids))
            ratio = (logprobs(sequence) - before).exp()
            advantages = torch.tensor(sequence.advantages)
            gain = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
            loss = loss - gain[mask].mean() / len(case.sequences)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), trainer.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(trainer, step, 20)
        optimizer.step()
    return {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("old", ["trainer", "sampler"])
def test_the_step_is_that_of_plain_pytorch(one: Ranks, old: str) -> None:
    case = Case(budget=40, trainer={"optimisation_passes": 3}, algorithm={"old_logprobs": old})
    expected = one(by_hand, case)
    _, weights = one(updated, case)
    for name in expected:
        np.testing.assert_allclose(weights[name], expected[name], atol=2e-5, err_msg=name)


def passes_forward(rank: int, ranks: int, case: Case) -> int:
    """Of an update, those that only score among them."""
    with engine_of(case, rank, ranks) as engine:
        calls: list[int] = []
        engine._engine.register_forward_hook(lambda *_: calls.append(1))
        engine.update(batch_of(case, rank, ranks))
        return len(calls)


def test_the_first_step_takes_the_old_log_probabilities_from_its_own_pass(one: Ranks) -> None:
    passes = {"optimisation_passes": 2}
    assert one(passes_forward, Case(trainer=passes)) == 2
    assert one(passes_forward, Case(trainer=passes, per_update=3)) == 2 * 3 + 2  # the second and the third are scored


# -- what the metrics say


def test_one_pass_on_policy_has_ratio_one_and_later_passes_clip(one: Ranks) -> None:
    ((first,), _) = one(updated, Case(budget=20))
    assert first["ratio_mean"] == first["ratio_max"] == 1 and first["clip_fraction"] == 0 and first["kl_old"] == 0
    ((later,), _) = one(updated, Case(budget=20, trainer={"optimisation_passes": 4}))
    assert later["clip_fraction"] > 0 and later["ratio_max"] > 1 and later["kl_old"] > 0
    assert later["optimizer_steps"] == 4


def test_kl_to_the_reference_starts_at_zero(two: Ranks) -> None:
    for stage in (2, 3):
        case = Case(stage=stage, algorithm={"kl_weight": 0.1})
        (first, second), _ = two(updated, case, 2)
        assert first["kl_reference"] == 0 and first["loss"] == first["policy_loss"]
        assert second["kl_reference"] > 0 and second["loss"] > second["policy_loss"]


def test_a_batch_that_teaches_nothing_moves_nothing(two: Ranks) -> None:
    still = Case(sequences=sequences(4, scale=0.0), budget=40)
    (metrics, later), weights = two(updated, still, 2)
    assert metrics["skipped_steps"] == 1 and metrics["optimizer_steps"] == 0 and metrics["loss"] == 0
    assert later["learning_rate"] > metrics["learning_rate"]  # the schedule goes on
    for name, start in two(updated, still, 0)[1].items():
        np.testing.assert_array_equal(weights[name], start)
    one_teaches = still.but(sequences=(*sequences(3, scale=0.0), *sequences(1)))
    ((metrics,), _) = two(updated, one_teaches)
    assert metrics["skipped_steps"] == 0
    ((metrics,), _) = two(updated, still.but(algorithm={"kl_weight": 0.1}))
    assert metrics["skipped_steps"] == 0


def state_of(engine: Any) -> dict[str, Any]:
    """All that a step may move: the model's weights, float32 masters, moments and their counts, of this rank."""
    held = {f"weight {name}": weight for name, weight in weights_of(engine).items()}
    for place, (master, kept) in enumerate(engine._engine.basic_optimizer.state.items()):
        for name, value in {"master": master, **kept}.items():
            held[f"{name} {place}"] = value.detach().clone().float().numpy()
    return held


def past_a_gradient(rank: int, ranks: int, case: Case) -> Any:
    """Three updates, the second with advantages of one rank that are not finite in float32: the state after each, the
    metrics of the second, and where two updates lead of which none was so."""
    from dataclasses import replace

    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        states, metrics = [], []
        for spread in (1.0, 1e-42 if rank == ranks - 1 else 1.0, 1.0):
            metrics.append(engine.update(replace(batch, spread=spread)).metrics)
            states.append(state_of(engine))
    with engine_of(case, rank, ranks) as engine:
        for _ in range(2):
            engine.update(batch)
        return states, metrics, state_of(engine)


ON_CPU = {"offload": "optimizer"}


@pytest.mark.parametrize(
    ("stage", "dtype", "options"),
    [
        *((stage, dtype, {}) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16")),
        *((stage, "bfloat16", ON_CPU) for stage in (1, 2, 3)),
    ],
)
def test_a_gradient_that_is_not_finite_moves_nothing(
    two: Ranks, stage: int, dtype: str, options: dict[str, Any]
) -> None:
    """Nor is anything of it in the next step."""
    trainer = {"warmup_steps": 0, "schedule": "constant", **options}
    case = Case(stage=stage, dtype=dtype, budget=40, trainer=trainer)
    for (before, after, later), (first, skipped, _), straight in two.each(past_a_gradient, case):
        assert {"weight", "master", "exp_avg", "exp_avg_sq", "step"} <= {name.split()[0] for name in before}
        assert (skipped["nonfinite_steps"], skipped["skipped_steps"], skipped["optimizer_steps"]) == (1, 1, 0)
        assert first["nonfinite_steps"] == 0 and math.isfinite(first["grad_norm"]) and math.isnan(skipped["grad_norm"])
        for name in before:
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
            np.testing.assert_array_equal(later[name], straight[name], err_msg=name)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_that_are_lost_are_not_made_worse(two: Ranks, stage: int) -> None:
    case = Case(stage=stage, supervised=True, trainer={"learning_rate": 1e15, "warmup_steps": 0})
    metrics, _ = two(updated, case, 3)
    assert [one["nonfinite_steps"] for one in metrics] == [0, 1, 1]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_learns(two: Ranks, stage: int) -> None:
    case = Case(dtype="bfloat16", stage=stage, budget=40, supervised=True, trainer={"schedule": "constant"})
    losses = [metrics["loss"] for metrics in two(updated, case, 12)[0]]
    assert losses[-1] < losses[0] - 0.3
    uncut = [metrics["loss"] for metrics in two(updated, case.but(budget=1000), 12)[0]]
    assert losses == pytest.approx(uncut, rel=0.01)


# -- what carries loss


def scored(rank: int, ranks: int, pad_id: int) -> Any:
    """Log-probabilities of padded micro-batches against those of single sequences, and the gradient."""
    import torch

    from capo_ray.engines import causal_model

    model = causal_model.make(MODEL, dtype=torch.float32, seed=0)
    given = sequences(6)
    batch = collate(given, "response_mean", 6, pad_id=pad_id)
    logprobs, _ = causal_model.Scorer(model)(batch, 0.6)
    (logprobs * batch.weights).sum().backward()
    gradient = {name: p.grad.numpy() for name, p in model.named_parameters()}
    alone = []
    with torch.no_grad():
        for sequence in given:
            ids = torch.tensor([*sequence.prompt_ids, *sequence.token_ids])
            rows = (model(ids[None]).logits[0, :-1] / 0.6).log_softmax(-1)
            mask = sequence.loss_mask or (True,) * len(sequence.token_ids)
            first = len(sequence.prompt_ids)
            alone += [float(rows[first - 1 + t, ids[first + t]]) for t, taken in enumerate(mask) if taken]
    return logprobs.detach().numpy(), alone, gradient


def test_padding_is_never_read(one: Ranks) -> None:
    logprobs, alone, gradient = one(scored, 0)
    np.testing.assert_allclose(logprobs, alone, atol=1e-5)
    others, _, other_gradient = one(scored, VOCABULARY - 1)
    np.testing.assert_array_equal(logprobs, others)
    for name in gradient:
        np.testing.assert_allclose(gradient[name], other_gradient[name], atol=1e-7, err_msg=name)


def test_masked_tokens_carry_no_loss(one: Ranks) -> None:
    """What is said of a masked token (advantage, log-probability) changes nothing."""
    (given,) = sequences(1, seed=5)
    mask = tuple(t % 2 == 0 for t in range(len(given.token_ids)))

    def masked(value: float) -> Case:
        keep = [a if m else value for a, m in zip(given.advantages, mask, strict=True)]
        return Case(
            sequences=(
                TrainSequence(
                    prompt_ids=given.prompt_ids,
                    token_ids=given.token_ids,
                    advantages=tuple(keep),
                    logprobs=given.logprobs,
                    loss_mask=mask,
                ),
            )
        )

    first, second = one(updated, masked(0.0)), one(updated, masked(9.0))
    assert first[0][0]["tokens"] == sum(mask)
    assert_same(first, second, tolerance=0)
    assert token_weight("response_mean", sum(mask), 1) == 1 / sum(mask)


# -- weights and checkpoints


def written(rank: int, ranks: int, case: Case, path: str) -> Any:
    with engine_of(case, rank, ranks) as engine:
        engine.update(batch_of(case, rank, ranks))
        engine.save_pretrained(f"{path}/written")
        engine.save(f"{path}/checkpoint")
        return weights_of(engine)


def exported(rank: int, ranks: int, path: str) -> Any:
    """Out of the checkpoint alone, by a process that has no engine."""
    from capo_ray.engines.exported import write_policy

    folder = Path(path) / "exported"
    folder.mkdir()
    write_policy(Path(path) / "checkpoint", folder)
    return read_back(rank, ranks, str(folder))


def read_back(rank: int, ranks: int, path: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    return tied, {name: p.detach().numpy() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("tied", "stage"), [(True, 3), (False, 3), (True, 2), (False, 0)])
def test_a_written_model_is_read_back(one: Ranks, two: Ranks, tmp_path: Path, tied: bool, stage: int) -> None:
    case = Case(model={**MODEL, "tie_word_embeddings": tied}, stage=stage)
    weights = two(written, case, str(tmp_path))
    assert ("lm_head.weight" in weights) is not tied
    for is_tied, read in (one(read_back, f"{tmp_path}/written"), one(exported, str(tmp_path))):
        assert is_tied is tied and list(read) == list(weights)
        for name in read:
            np.testing.assert_array_equal(read[name], weights[name])
    for stage in (0, 3):
        _, start = two(updated, Case(model=f"{tmp_path}/written", stage=stage), 0)
        for name in read:
            np.testing.assert_array_equal(start[name], weights[name])


def declared(rank: int, ranks: int, stage: int) -> Any:
    with engine_of(Case(stage=stage), rank, ranks) as engine:
        shapes = {name: shape for name, _, shape in engine.weight_shapes()}
        return shapes == {name: weight.shape for name, weight in weights_of(engine).items()}


def test_what_will_be_sent_is_declared_without_gathering_it(two: Ranks) -> None:
    assert two.each(declared, 3) == [True, True]


# -- what is made before an update


def updated_after_scoring(rank: int, ranks: int, case: Case, *, lost: int | None = None) -> Any:
    """As `updated`, twice; before each update the ranks score sequences that others of them may train on. How often
    something was scored again in it."""
    from dataclasses import replace

    with engine_of(case, rank, ranks) as engine:
        batch = batch_of(case, rank, ranks)
        again = []
        score = engine._score
        engine._score = lambda *given: again.append(1) or score(*given)
        metrics = []
        for _ in range(2):
            mine = [replace(one, loss_mask=()) for one in case.sequences[rank::ranks]]
            engine.score(None if rank == lost else mine, old=True)
            metrics.append(engine.update(batch).metrics)
        return len(again), (metrics, weights_of(engine))


@pytest.mark.parametrize("stage", [2, 3])
def test_log_probabilities_made_ahead_change_nothing_and_are_not_made_again(
    two: Ranks, folder: str, whole: Any, stage: int
) -> None:
    case = MANY.but(model=folder, stage=stage, budget=20)
    for again, results in two.each(updated_after_scoring, case):
        assert again == 0
        assert_same(results, whole)


def without_some(rank: int, ranks: int, case: Case) -> Any:
    return updated_after_scoring(rank, ranks, case, lost=1)


def test_where_a_rank_has_lost_its_responses_the_update_scores_all(two: Ranks, folder: str, whole: Any) -> None:
    for again, results in two.each(without_some, MANY.but(model=folder, budget=20)):
        assert again == 4  # policy and reference, twice
        assert_same(results, whole)


# -- the schedule


def test_schedule() -> None:
    from capo_ray.engines.trainer_settings import learning_rate

    def rates(**changes: Any) -> list[float]:
        trainer = Trainer(learning_rate=1.0, tokens_per_micro_batch=1, **changes)
        return [round(learning_rate(trainer, step, 6), 4) for step in range(8)]

    assert rates() == [1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0, 0.0]
    assert rates(warmup_steps=2) == [0.3333, 0.6667, 1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    assert rates(schedule="constant", warmup_steps=1) == [0.5, *[1.0] * 7]
    assert rates(final_lr_share=0.5)[-1] == 0.5
