"""All roles on all GPUs: who is awake in which phase, what that takes, and the sizes of one card."""

from typing import Any, get_args

import pytest

from capo_ray.config.compose import compose
from capo_ray.config.run import Config
from capo_ray.plan import main
from capo_ray.planning.bundles import misfit, seats
from capo_ray.planning.estimate import splits, times
from capo_ray.planning.hardware import GPUS
from capo_ray.planning.memory import ASLEEP_GIB, NCCL_GIB
from capo_ray.planning.plan import Plan, plan_for
from capo_ray.planning.turns import Phase, awake

PAPER = "+experiment=qwen1_5b_intersection"
SIZES = {"one_gpu_80gb": 79.6, "one_gpu_24gb": 22.5, "one_node_turns": 79.6}
LARGE = ("trainer.tokens_per_micro_batch=400000",)
SERVER = ("critic=http", "critic.endpoints=[http://h/v1]", "critic.served_model=m")


def phases(plan: Plan) -> dict[str, dict[str, float]]:
    assert plan.turns is not None
    return {turn.phase: turn.gib for turn in plan.turns.phases}


def who(config: Config, gpu_gib: float) -> dict[str, list[str]]:
    return {phase: sorted(roles) for phase, roles in awake(config, {}, gpu_gib).items()}


LEAST = {"sample": ["rollout"], "judge": ["critic"], "train": ["trainer"], "sync": ["rollout", "trainer"]}


@pytest.mark.parametrize("given", [["+experiment=tiny_cpu"], [PAPER, "+size=one_gpu_80gb"]])
def test_who_works_in_a_phase_is_awake_in_it_and_nobody_else_where_there_is_no_room(given: list[str]) -> None:
    found = who(compose(given), 79.6)
    assert tuple(found) == get_args(Phase)
    assert found == LEAST


def test_who_fits_beside_everybody_else_need_not_sleep() -> None:
    """A trainer of 31 GiB between its updates, engines with the shares of the card that they are given."""
    small = [PAPER, "+size=one_gpu_80gb", "rollout.gpu_memory_share=0.4", "critic.gpu_memory_share=0.55"]
    assert who(compose(small), 79.6) == {phase: sorted({*LEAST[phase], "trainer"}) for phase in LEAST}
    everybody = {phase: ["critic", "rollout", "trainer"] for phase in LEAST}
    assert who(compose([*small, "critic.gpu_memory_share=0.4"]), 200.0) == everybody
    assert who(compose([*small, "cluster.address=head:6379"]), 200.0) == LEAST  # whose GPUs are not known here
    turns = plan_for(compose([*small, "critic.gpu_memory_share=0.4"]), gpu_gib=200.0).turns
    assert turns is not None and (turns.switch_s, turns.aside) == (0, {})


def test_while_servers_judge_nobody_changes_places() -> None:
    config = compose([PAPER, "+size=one_gpu_80gb", *SERVER])
    assert who(config, 79.6) == LEAST | {"judge": LEAST["sample"]}
    assert list(phases(plan_for(config))) == ["sample", "train", "sync"]


@pytest.mark.parametrize("name", ["llama1b", "qwen1_5b"])
@pytest.mark.parametrize("size", SIZES)
def test_sizes_fit_phase_by_phase(name: str, size: str) -> None:
    plan = plan_for(compose([f"+experiment={name}_intersection", f"+size={size}"]), gpu_gib=SIZES[size])
    assert plan.faults == ()
    assert plan.needs("GPU") == (8 if size == "one_node_turns" else 1)
    for phase, gib in phases(plan).items():
        assert sum(gib.values()) < SIZES[size], phase
    without = plan_for(compose([f"+experiment={name}_grpo", f"+size={size}"]), gpu_gib=SIZES[size])
    assert without.faults == () and {role.role for role in without.roles} == {"rollout", "trainer", "aggregator"}


def test_a_policy_of_1_5b_and_a_critic_of_7b_on_one_card_of_80_gb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PAPER, "+size=one_gpu_80gb", "gpu=h100"]) == 0
    said = capsys.readouterr().out
    for part in (
        "placement of qwen1_5b_intersection on gpu: 1 GPUs",
        "  all roles share all GPUs, one after the other; on one of them",
        "    sample    70.2 GiB = rollout 67.7 + critic asleep 1.5 + trainer asleep 1.0; 2.1 s to switch",
        "    judge     74.1 GiB = rollout asleep 1.5 + critic 71.6 + trainer asleep 1.0; 1.8 s to switch",
        "    asleep in host memory 43.9 GiB = critic 14.2 + trainer 29.7",
        "sleep and wake 8 s",
        "20 GB/s between a GPU and its host",
        "Qwen/Qwen2.5-7B-Instruct (14 GiB)",
    ):
        assert part in said
    plan = plan_for(compose([PAPER, "+size=one_gpu_80gb"]))
    rooms = {role.role: role.memory.get("KV cache", 0) for role in plan.roles}
    assert rooms["rollout"] > 60 and rooms["critic"] > 50


def test_an_adapter_and_a_critic_of_four_bits_on_one_card_of_24_gb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PAPER, "+size=one_gpu_24gb", "gpu=rtx4090"]) == 0
    said = capsys.readouterr().out
    assert "Qwen/Qwen2.5-7B-Instruct-AWQ (5 GiB)" in said and "GPU of 24 GiB" in said
    config = compose([PAPER, "+size=one_gpu_24gb"])
    plan = plan_for(config, gpu_gib=22.5)
    critic = next(role for role in plan.roles if role.role == "critic")
    assert critic.memory["weights"] == pytest.approx(5.4, abs=0.2)  # Qwen's files are 5.6 GB
    assert phases(plan)["train"]["trainer"] < 10
    assert phases(plan)["sync"]["rollout"] == pytest.approx(2.9 + 2.5, abs=0.2)  # without its KV cache


def test_a_critic_that_is_the_base_takes_no_card_and_no_host_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([PAPER, "+size=one_gpu_24gb", "critic=base", "gpu=rtx4090"]) == 0
    said = capsys.readouterr().out
    for part in (
        "room for 68 sequences of 8,192 tokens, up to 128 run; judges too, without the adapter",
        "    sample    21.4 GiB = rollout 20.4 + trainer asleep 1.0; 0.7 s to switch",
        "    judge     21.4 GiB = rollout 20.4 + trainer asleep 1.0; 0.0 s to switch",
        "    asleep in host memory 7.3 GiB = rollout 2.9 + trainer 4.4",
    ):
        assert part in said
    config = compose([PAPER, "+size=one_gpu_24gb", "critic=base"])
    assert who(config, 22.5) == LEAST | {"judge": LEAST["sample"]}
    shape = config.policy.shape
    assert shape is not None and times(config, shape, {}, GPUS["rtx4090"]).critic > 10


def test_an_engine_whose_weights_no_sync_brings_keeps_them() -> None:
    merged = plan_for(compose([PAPER, "+size=one_gpu_24gb", "cluster.lora_sync=merged"]), gpu_gib=22.5).turns
    alone = plan_for(compose([PAPER, "+size=one_gpu_24gb"]), gpu_gib=22.5).turns
    assert merged is not None and "rollout" not in merged.aside
    assert alone is not None and alone.aside["rollout"] == pytest.approx(2.9, abs=0.1)


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        (
            "rollout.gpu_memory_share=1",
            "sample: 82.1 GiB on a GPU (rollout 79.6 + critic asleep 1.5 + trainer asleep 1.0), which has 79.6; lower "
            "rollout.gpu_memory_share to 0.96",
        ),
        (
            "critic.gpu_memory_share=0.99",
            "judge: 81.3 GiB on a GPU (rollout asleep 1.5 + critic 78.8 + trainer asleep 1.0), which has 79.6; lower "
            "critic.gpu_memory_share to 0.96",
        ),
        ("model@policy=qwen2_5_7b", "trainer: a rank needs 172 GiB"),
        (
            "model@policy=qwen2_5_7b",
            "; set trainer.offload=optimizer or set trainer.lora.rank=16 (an adapter learns) or add trainer.ranks and "
            "rollout.workers",
        ),
        ("model@policy=qwen2_5_7b", "sync: 164.0 GiB on a GPU"),
    ],
)
def test_what_does_not_fit_is_said_of_its_phase(override: str, fault: str) -> None:
    plan = plan_for(compose([PAPER, "+size=one_gpu_80gb", override]))
    assert any(fault in one for one in plan.faults), plan.faults


def test_where_all_weights_have_no_room_an_adapter_is_advised_and_has() -> None:
    """On the card for which the size has one."""
    given = [PAPER, "+size=one_gpu_24gb"]
    faults = plan_for(compose([*given, "trainer.lora=null"]), gpu_gib=22.5).faults
    assert [fault.partition(":")[0] for fault in faults] == ["trainer", "sync"]
    ways = (
        "set trainer.offload=optimizer or set trainer.lora.rank=16 (an adapter learns) or add trainer.ranks and "
        "rollout.workers"
    )
    assert all(fault.endswith(f"; {ways}") for fault in faults)
    assert plan_for(compose([*given, "trainer.lora=null", "trainer.lora.rank=16"]), gpu_gib=22.5).faults == ()


@pytest.mark.parametrize("role", ["rollout", "critic"])
def test_the_share_that_is_advised_fits(role: str) -> None:
    given = [PAPER, "+size=one_gpu_80gb"]
    (fault,) = plan_for(compose([*given, f"{role}.gpu_memory_share=1"])).faults
    share = fault.rpartition(f"lower {role}.gpu_memory_share to ")[2]
    assert plan_for(compose([*given, f"{role}.gpu_memory_share={share}"])).faults == ()
    assert plan_for(compose([*given, f"{role}.gpu_memory_share={float(share) + 0.01}"])).faults


def test_everybody_of_one_gpu_sits_in_one_bundle() -> None:
    config = compose([PAPER, "+size=one_node_turns", "critic.tensor_parallel=1", "critic.workers=3"])
    bundles, made = seats(config)
    assert bundles == [{"CPU": 3.0, "GPU": 1}] * 3 + [{"CPU": 2.0, "GPU": 1}] * 5 + [{"CPU": 1.0}]
    assert {seat.bundle for seat in made if seat.role == "critic"} == {0, 1, 2}
    for role in ("rollout", "trainer"):
        assert [seat.bundle for seat in made if seat.role == role] == list(range(8))
    assert seats(config, together=True) == (bundles, made)
    tiny = compose(["+experiment=tiny_cpu", "cluster.sharing=turns"])
    assert seats(tiny) == seats(compose(["+experiment=tiny_cpu"]))


OTHERS = (
    "+critic.others=[{{model:${{critic.model}},tensor_parallel:{}}},{{model:${{critic.model}},tensor_parallel:{}}}]"
)


@pytest.mark.parametrize(
    ("given", "critics", "gpus"),
    [
        (["critic.workers=8", "critic.tensor_parallel=1"], [(n,) for n in range(8)], [1] * 8),
        (["critic.workers=3", "critic.tensor_parallel=2"], [(0, 1), (2, 3), (4, 5)], [2, 2, 2, 1, 1]),
        ([], [(0, 1, 2, 3), (4, 5, 6, 7)], [4, 4]),
        (["critic.workers=1"], [(0, 1, 2, 3)], [4, 1, 1, 1, 1]),
        (["critic.workers=1", "rollout.workers=4", "rollout.tensor_parallel=2"], [(0, 1, 2, 3)], [4, 2, 2]),
        (["critic.workers=1", "critic.tensor_parallel=8"], [tuple(range(8))], [8]),
        (["critic.workers=1", "critic.tensor_parallel=1", OTHERS.format(4, 2)],
         [(6,), (0, 1, 2, 3), (4, 5)], [4, 2, 1, 1]),
        (["critic.workers=2", "critic.tensor_parallel=1", "rollout.workers=1", "rollout.tensor_parallel=8"],
         [(0,), (1,)], [8]),
    ],
)  # fmt: skip
def test_who_shares_gpus_is_on_their_node(given: list[str], critics: list[tuple[int, ...]], gpus: list[int]) -> None:
    """A bundle is on one node; engines over several GPUs lie within one."""
    config = compose([PAPER, "+size=one_node_turns", *given])
    bundles, made = seats(config)
    assert [tuple(seat.shares) for seat in made if seat.role == "critic"] == critics
    assert [int(bundle["GPU"]) for bundle in bundles if "GPU" in bundle] == gpus
    home = {seat.number: seat.bundle for seat in made if seat.role == "trainer"}
    for seat in made:
        assert {home[rank] for rank in seat.shares} <= {seat.bundle}
        assert ("GPU" in seat.resources) == (seat.role == "trainer")  # and Ray counts each GPU once
    assert sorted(rank for seat in made if seat.role == "rollout" for rank in seat.shares) == list(range(8))
    assert misfit(bundles, [{"GPU": 8.0, "CPU": 64.0}]) == ""


def test_an_engine_is_never_on_two_nodes() -> None:
    bundles, _ = seats(compose([PAPER, "+size=one_node_turns"]))
    assert misfit(bundles, [{"GPU": 4.0, "CPU": 32.0}] * 2) == ""
    reason = "an engine needs 4 GPUs on one node, and the largest node has 2"
    assert misfit(bundles, [{"GPU": 2.0, "CPU": 32.0}] * 4) == reason


def test_a_critic_of_72b_over_the_gpus_of_a_node_in_the_turns_of_a_policy_of_7b() -> None:
    """Each of its GPUs holds a part; asleep, NCCL's buffers stay."""
    given = ["+experiment=qwen7b_intersection", "+size=one_node_turns"]
    apart, whole = plan_for(compose(given)), plan_for(compose([*given, "critic.workers=1", "critic.tensor_parallel=8"]))
    for plan, parts in ((apart, 4), (whole, 8)):
        assert plan.faults == () and plan.needs("GPU") == 8 and plan.turns is not None
        critic = next(role for role in plan.roles if role.role == "critic")
        assert (critic.processes * parts, critic.gpus_each) == (8, parts)
        assert critic.memory["weights"] == pytest.approx(135.4 / parts, abs=0.5)
        found = phases(plan)
        assert found["judge"]["critic"] == pytest.approx(0.9 * 79.6)
        for phase in ("sample", "train", "sync"):
            assert found[phase]["critic asleep"] == ASLEEP_GIB + NCCL_GIB
        assert found["judge"]["rollout asleep"] == ASLEEP_GIB
        assert plan.turns.aside["critic"] == pytest.approx(135.4 * 8 / parts, abs=1)
    parted = plan_for(compose([*given, "rollout.workers=4", "rollout.tensor_parallel=2"]))
    assert phases(parted)["judge"]["rollout asleep"] == ASLEEP_GIB + NCCL_GIB and parted.faults == ()
    room = 79.6 - 2 * ASLEEP_GIB - 2 * NCCL_GIB
    (fault, *_) = plan_for(compose([*given, "rollout.workers=4", "rollout.tensor_parallel=2", *LARGE])).faults
    assert f"a GPU has {room:.0f} beside those asleep" in fault


def test_splits_in_turns_are_runs_that_the_rules_allow() -> None:
    given = [PAPER, "+size=one_node_turns", "critic.workers=1"]
    config = compose([*given, "rollout.workers=4", "rollout.tensor_parallel=2"])
    made = list(splits(config, 8, 79.6, {}))
    assert {(one.rollout.workers, one.trainer.ranks, one.critic and one.critic.workers) for one in made} == {
        (2, 4, 1), (3, 6, 1), (4, 8, 1), (4, 8, 2)
    }  # fmt: skip
    for one in made:
        assert one == type(config).model_validate(one.model_dump())


def test_in_turns_a_step_takes_as_long_as_all_of_it() -> None:
    config = compose([PAPER, "+size=one_gpu_80gb"])
    assert config.policy.shape and config.critic and config.critic.model and config.critic.model.shape
    shapes: dict[str, Any] = {"critic": config.critic.model.shape}
    took = times(config, config.policy.shape, shapes, GPUS["h100"])
    assert took.step == pytest.approx(took.rollout + took.critic + took.update + took.sync + took.switch)
    assert took.switch == pytest.approx(7.8, abs=0.5)  # twice 30 and 14 GiB at 20 GB/s, and half a second each
