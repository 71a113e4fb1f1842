"""Placement arithmetic by table, memory estimates against known figures, and the message of a machine too small."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from capo_ray.config.blocks import Cluster
from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.config.run import Config
from capo_ray.planning.bundles import misfit, seats
from capo_ray.planning.machine import Machine, gpu_sizes, shape_of, this_machine
from capo_ray.planning.memory import engine_memory, trainer_memory
from capo_ray.planning.plan import describe, experiments_that_fit, fits, plan_for, refuse_unfit, render

HERE = Machine(cpus=2, gpus=0, memory_gib=23.0)
TWO_NODES = Machine(cpus=256, gpus=16, memory_gib=2000, gpu_gib=80)
ONE_NODE = Machine(cpus=128, gpus=8, memory_gib=1000, gpu_gib=79.6)
TINY = "+experiment=tiny_cpu"
PAPER = "+experiment=llama3b_intersection"


def config(*overrides: str) -> Config:
    return compose(list(overrides))


@pytest.mark.parametrize(
    ("overrides", "bundles", "per_role"),
    [
        ([TINY], [{"CPU": 0.1}] * 5, {"rollout": 1, "critic": 1, "trainer": 2, "aggregator": 1}),
        (
            [TINY, "rollout.workers=2", "critic.workers=2", "reward.aggregators=3"],
            [{"CPU": 0.1}] * 9,
            {"rollout": 2, "critic": 2, "trainer": 2, "aggregator": 3},
        ),
        ([TINY, "critic=null", "algorithm=grpo"], [{"CPU": 0.1}] * 4, {"rollout": 1, "trainer": 2, "aggregator": 1}),
        (
            [PAPER],
            [{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 4, "GPU": 4}] + [{"CPU": 1, "GPU": 1}] * 2 + [{"CPU": 1}],
            {"rollout": 2, "critic": 1, "trainer": 2, "aggregator": 1},
        ),
        (
            [PAPER, "cluster.sharing=pairs", "rollout.workers=2", "trainer.ranks=2", "critic.workers=1"],
            [{"CPU": 2, "GPU": 1}] * 2 + [{"CPU": 4, "GPU": 4}] + [{"CPU": 1}],
            {"rollout": 2, "critic": 1, "trainer": 2, "aggregator": 1},
        ),
        (
            [PAPER, "cluster.sharing=pairs", "rollout.tensor_parallel=2", "rollout.workers=1", "trainer.ranks=2"],
            [{"CPU": 4, "GPU": 2}, {"CPU": 4, "GPU": 4}, {"CPU": 1}],
            {"rollout": 1, "critic": 1, "trainer": 2, "aggregator": 1},
        ),
    ],
)
def test_bundles(overrides: list[str], bundles: list[dict[str, float]], per_role: dict[str, int]) -> None:
    made, given = seats(config(*overrides))
    assert made == bundles
    assert [(seat.role, seat.number) for seat in given] == [
        (role, n) for role in per_role for n in range(per_role[role])
    ]
    for number, bundle in enumerate(made):
        inside = [seat.resources for seat in given if seat.bundle == number]
        assert {name: sum(one.get(name, 0) for one in inside) for name in bundle} == bundle
    plan = plan_for(config(*overrides))
    assert {role.role: role.processes for role in plan.roles} == per_role


def test_each_critic_has_its_own_engines_and_servers_have_none() -> None:
    other = (
        "{kind:vllm,model:{path:x,shape:{parameters:7000000000,layers:32,hidden_size:4096,key_value_size:1024,"
        "vocabulary:32000,window:16384}},workers:3}"
    )
    server = "{kind:http,endpoints:['http://h/v1'],served_model:m}"
    plan = plan_for(config(PAPER, f"critic.others=[{server},{other}]"))
    critics = [role for role in plan.roles if role.role == "critic"]
    assert [(critic.processes, critic.gpus_each) for critic in critics] == [(1, 4), (3, 1)]
    assert critics[1].memory["weights"] == pytest.approx(13.0, abs=0.1)
    alone = plan_for(config(PAPER, "critic=http", "critic.endpoints=['http://h/v1']", "critic.served_model=m"))
    assert [role.role for role in alone.roles] == ["rollout", "trainer", "aggregator"]


@pytest.mark.parametrize("name", ["llama1b", "llama3b", "qwen1_5b", "qwen7b"])
def test_sizes(name: str) -> None:
    """Every experiment of the paper is one node as it stands (config/test_config.py); these are the other sizes."""
    two = plan_for(config(f"+experiment={name}_intersection", "+size=two_nodes"))
    nodes = [{"GPU": 8.0, "CPU": 64.0}] * 2
    assert (two.needs("GPU"), two.faults, misfit(two.bundles, nodes)) == (16, (), "")
    halved = plan_for(config(f"+experiment={name}_intersection", "+size=one_node_fp8"))
    (critic,) = (role for role in halved.roles if role.role == "critic")
    assert (halved.needs("GPU"), halved.faults, critic.processes) == (8, (), 2)
    assert critic.memory["weights"] == pytest.approx(34.5, abs=1)  # two GPUs hold what four did
    small = [f"+experiment={name}_grpo", "+size=one_gpu"]
    alone = plan_for(config(*small))
    assert alone.needs("GPU") == 1
    assert bool(alone.faults) == (name in ("llama3b", "qwen7b"))  # with float32 moments and a reference
    assert config(*reversed(small)) == config(*small)


def test_one_card_holds_capo_with_its_critic_behind_a_server_and_the_tiny_world() -> None:
    server = ["critic=http", "critic.endpoints=['http://h/v1']", "critic.served_model=m"]
    for overrides in (["+experiment=llama1b_intersection", *server], [TINY, "critic=truth"]):
        plan = plan_for(config(*overrides, "+size=one_gpu"))
        assert (plan.device, plan.needs("GPU"), plan.faults) == ("gpu", 1, ())
    smoke = config(TINY, "cluster=gpu")
    assert fits(plan_for(smoke), ONE_NODE) == []
    assert {model.path for model in (smoke.policy, smoke.critic.model) if model} == {  # type: ignore[union-attr]
        "asset:tiny_policy",
        "asset:tiny_critic",
    }


def test_a_bundle_is_compared_with_the_largest_node_and_not_with_the_sum() -> None:
    bundles, _ = seats(config(PAPER))
    assert misfit(bundles, [{"GPU": 8.0, "CPU": 32.0}]) == ""
    assert misfit(bundles, [{"GPU": 1.0, "CPU": 4.0}] * 16) == (
        "an engine needs 4 GPUs on one node, and the largest node has 1"
    )
    assert misfit([{"GPU": 3.0, "CPU": 1.0}] * 4, [{"GPU": 4.0, "CPU": 8.0}] * 3) == (
        "a part that needs 3 GPUs and 1 cores on one node finds no room beside the others"
    )
    singles = Machine(cpus=64, gpus=16, memory_gib=1000, gpu_gib=79.6, nodes=({"GPU": 1.0, "CPU": 4.0},) * 16)
    assert fits(plan_for(config(PAPER)), singles) == ["an engine needs 4 GPUs on one node, and the largest node has 1"]


def test_trainer_ranks_can_be_one_bundle() -> None:
    bundles, made = seats(config(PAPER), together=True)
    assert {"CPU": 2, "GPU": 2} in bundles
    assert len({seat.bundle for seat in made if seat.role == "trainer"}) == 1
    shared = config(PAPER, "cluster.sharing=pairs", "critic=null", "algorithm=grpo")
    assert seats(shared, together=True) == seats(shared)


def test_a_cluster_is_no_way_round_a_fault() -> None:
    with pytest.raises(ConfigError, match=r"qwen7b_intersection fits no cluster: trainer: a rank needs 1\d\d GiB"):
        refuse_unfit(config("+experiment=qwen7b_intersection", "trainer.ranks=1", "cluster.address=auto"))


def test_no_advice_names_what_is_set_or_would_not_help() -> None:
    (fault,) = plan_for(config("+experiment=qwen7b_grpo", "trainer.ranks=1")).faults
    assert fault.endswith(
        "; set trainer.offload=optimizer or set trainer.lora.rank=16 (an adapter learns) or add trainer.ranks"
    )
    adapted = config("+experiment=qwen7b_grpo", "trainer.ranks=1", "trainer.lora.rank=16")
    assert plan_for(adapted, gpu_gib=20).faults[-1].endswith(" or set trainer.offload=optimizer or add trainer.ranks")
    (fault,) = plan_for(config("+experiment=qwen1_5b_grpo", "trainer.tokens_per_micro_batch=400000")).faults
    assert fault.endswith("; lower trainer.tokens_per_micro_batch (not below 5120) or raise trainer.zero_stage or set "
                          "trainer.offload=optimizer or set trainer.lora.rank=16 (an adapter learns) or add "
                          "trainer.ranks")  # fmt: skip


def test_derived_numbers() -> None:
    numbers = plan_for(config(PAPER)).numbers
    assert numbers == {
        "prompts in the run": 9792,
        "responses per step": 192,
        "critiques per step": 768,
        "sampled tokens per step, at most": 192 * 4096,
        "critique tokens per step, at most": 768 * 2048,
        "optimizer steps per step": 4,
        "responses per optimizer step": 192,
        "optimizer steps in the run": 816 * 4,
        "steps in flight, at most": 1,
    }
    numbers = plan_for(config(PAPER, "trainer.responses_per_update=48", "algorithm.importance_cap=2", "steps=10",
                              "algorithm.max_staleness=2")).numbers  # fmt: skip
    assert (numbers["optimizer steps per step"], numbers["optimizer steps in the run"]) == (16, 160)
    assert (numbers["responses per optimizer step"], numbers["steps in flight, at most"]) == (48, 3)


def test_memory_of_engines() -> None:
    """Llama-3-70B in bfloat16 has 131.4 GiB of weights and stores 320 KiB a token."""
    plan = plan_for(config(PAPER))
    critic = next(role for role in plan.roles if role.role == "critic")
    assert critic.memory["weights"] == pytest.approx(131.4 / 4, abs=0.1)
    room = 79.6 * 0.9 - critic.memory["weights"] - 3.0  # vLLM's own, and NCCL's
    assert critic.memory["KV cache"] == pytest.approx(room)
    assert (
        critic.note == f"room for {int(room * 2**30 / (327_680 / 4 * 8192))} sequences of 8,192 tokens, up to 256 run"
    )
    assert plan.faults == ()


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"), [(0, 6, 6, 36), (1, 6, 18, 9), (2, 6, 3, 9), (3, 1.5, 3, 9)]
)
def test_memory_of_the_trainer_by_zero_stage(stage: int, weights: float, gradients: float, optimizer: float) -> None:
    """3.2 G parameters on 4 ranks in bfloat16: 2 bytes each of weights, 12 of the optimizer, and sums of gradients in
    float32 from stage 1 on, cut by 4 where the stage shards them."""
    given = config(PAPER, "trainer.ranks=4", f"trainer.zero_stage={stage}")
    memory = trainer_memory(given, given.policy.shape)
    assert memory["weights"] == memory["reference"] == pytest.approx(weights, abs=0.05)
    assert (memory["gradients"], memory["optimizer"]) == pytest.approx((gradients, optimizer), abs=0.1)
    assert "reference" not in trainer_memory(config(PAPER, "algorithm.kl_weight=0"), given.policy.shape)


def test_an_adapter_needs_no_reference_and_an_optimizer_of_its_own_size() -> None:
    """3.2 G parameters; rank 16 beside all linear layers of Llama-3.2-3B is 24 M."""
    given = config(PAPER, "trainer.ranks=4", "trainer.zero_stage=2", "trainer.lora.rank=16")
    memory = trainer_memory(given, given.policy.shape)
    assert memory["weights"] == pytest.approx(6, abs=0.05) and "reference" not in memory
    assert memory["adapter"] == pytest.approx(24.3e6 * 2 / 2**30, rel=0.02)
    assert memory["optimizer"] == pytest.approx(24.3e6 * 12 / 4 / 2**30, rel=0.02)
    fewer = config(PAPER, "trainer.lora.targets=[q_proj,k_proj]")
    each = 16 * (2 * 3072 + 3072 + 1024) * 28
    assert trainer_memory(fewer, fewer.policy.shape)["adapter"] == pytest.approx(each * 2 / 2**30, rel=0.01)


def test_offload_moves_a_rank_to_its_host() -> None:
    """7.6 G parameters in bfloat16 on one rank: 12 bytes each of the optimizer, 4 of sums of gradients, as many again
    in its step."""
    given = ["+experiment=qwen7b_grpo", "trainer.ranks=1"]
    plain, some, everything = (
        next(role for role in plan_for(config(*given, f"trainer.offload={off}")).roles if role.role == "trainer")
        for off in ("none", "optimizer", "all")
    )
    assert {"optimizer", "gradients", "weights", "reference"} <= plain.memory.keys()
    assert {"weights", "reference"} <= some.memory.keys() and not {"optimizer", "gradients"} & some.memory.keys()
    assert not {"weights", "optimizer", "gradients", "reference"} & everything.memory.keys()
    assert plain.total_gib > 100 > 45 > some.total_gib > everything.total_gib
    plan = plan_for(config(*given, "trainer.offload=optimizer"))
    number = 7.6 * 10**9 / 2**30
    assert plan.faults == () and plan.memory_gib == pytest.approx((12 + 4 + 4) * number, rel=0.01)
    assert "in its host's memory 141" in render(plan) and "GiB of memory for what is off the GPUs" in render(plan)
    short = fits(plan, Machine(cpus=64, gpus=8, memory_gib=100, gpu_gib=79.6))
    assert short == ["about 141.9 GiB of memory for what is off the GPUs (here: 100.0)"]


def test_an_engine_holds_the_adapter_that_it_is_sent() -> None:
    def of_engine(*more: str) -> dict[str, float]:
        given = config(PAPER, "trainer.lora.rank=256", *more)
        return engine_memory(given, given.rollout, given.policy.shape, "bfloat16", 4096, 80, "rollout").gib

    merged, alone = of_engine("cluster.lora_sync=merged"), of_engine()
    assert "adapter" not in merged and alone["adapter"] == pytest.approx(16 * 24.3e6 * 2 / 2**30, rel=0.02)
    assert alone["KV cache"] == pytest.approx(merged["KV cache"] - alone["adapter"])
    few = of_engine("cluster.lora_sync=adapter", "trainer.lora.rank=200", "trainer.lora.targets=[q_proj]")
    assert few["adapter"] == alone["adapter"]  # vLLM's room is for 256, at every layer


def test_gradient_checkpointing_saves_activations() -> None:
    kept = [
        trainer_memory(one, one.policy.shape)["activations"]
        for one in (
            config("+experiment=llama3b_grpo"),
            config("+experiment=llama3b_grpo", "trainer.gradient_checkpointing=false"),
        )
    ]
    assert kept[0] < kept[1] / 2


def test_tiny_cpu_fits_two_cores_and_twelve_gib() -> None:
    given = config(TINY)
    shapes = {"policy": shape_of(given.policy), "critic": shape_of(given.critic.model) if given.critic else None}
    assert fits(plan_for(given, shapes), Machine(cpus=2, gpus=0, memory_gib=12)) == []
    assert fits(plan_for(given, shapes), Machine(cpus=2, gpus=0, memory_gib=4))[0].startswith("about 1")


def test_what_is_missing_is_named() -> None:
    assert fits(plan_for(config(PAPER)), TWO_NODES) == []
    assert fits(plan_for(config(PAPER)), HERE) == ["8 GPUs (here: 0)", "9 cores (here: 2)"]
    short = Machine(cpus=64, gpus=8, memory_gib=500, gpu_gib=80)
    assert fits(plan_for(config(PAPER, "+size=two_nodes")), short) == ["16 GPUs (here: 8)"]


@pytest.mark.parametrize(
    ("overrides", "gpu_gib", "fault"),
    [
        (
            [PAPER, "critic.tensor_parallel=1"],
            80.0,
            "critic: 0.0 GiB of KV cache are left per GPU, one sequence of 8192 tokens needs 2.50 (weights 131.4 GiB); "
            "raise critic.tensor_parallel above 1",
        ),
        (
            ["+experiment=qwen7b_majority", "trainer.zero_stage=0"],
            80.0,
            "CUDA 1.0 + NCCL 1.0), a GPU has 80; raise trainer.zero_stage or set "
            "trainer.lora.rank=16 (an adapter learns) or add trainer.ranks",
        ),
        (
            [PAPER, "cluster.sharing=pairs"],
            80.0,
            "a GPU has 12 beside its rollout worker; lower rollout.gpu_memory_share or raise trainer.zero_stage",
        ),
    ],
)
def test_what_no_number_of_machines_helps(overrides: list[str], gpu_gib: float, fault: str) -> None:
    plan = plan_for(config(*overrides), gpu_gib=gpu_gib)
    assert any(fault in one for one in plan.faults), plan.faults
    assert set(plan.faults) <= set(fits(plan, TWO_NODES))
    assert f"fault: {plan.faults[0]}" in render(plan)


def test_a_kv_cache_on_cpu_that_holds_no_sequence() -> None:
    long = ["rollout.max_response_tokens=100000", "trainer.tokens_per_micro_batch=200000"]
    plan = plan_for(config(TINY, "model@policy=llama3_2_3b_instruct", *long))
    assert plan.faults[0] == (
        "rollout: 1.0 GiB of KV cache are left per process, one sequence of 100064 tokens needs 10.69 (weights 6.0 "
        "GiB); raise rollout.kv_cache_gib to 11"
    )


def test_the_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_unfit(config(PAPER), HERE)
    assert str(caught.value).splitlines() == [
        "llama3b_intersection does not fit this machine.",
        "  it needs: 8 GPUs, 9 cores (2 x rollout with 1 GPUs, 1 x critic with 4 GPUs, 2 x trainer with 1 GPUs)",
        "  here: 2 cores, 23.0 GiB of memory, no GPU",
        "  missing: 8 GPUs (here: 0); 9 cores (here: 2)",
        "  fits here: +experiment=smollm2_cpu or +experiment=tiny_cpu or +experiment=tiny_cpu_text",
        "  elsewhere: join a cluster with cluster.address=auto, or see the plan with dry_run=true",
    ]
    refuse_unfit(config(PAPER), ONE_NODE)
    refuse_unfit(config(PAPER, "cluster.address=auto"))
    assert experiments_that_fit(Machine(cpus=1, gpus=0, memory_gib=1)) == []
    assert len(experiments_that_fit(ONE_NODE)) == 31


def test_the_description_holds_configuration_and_plan() -> None:
    text = describe(config(PAPER))
    for part in (
        "  learning_rate: 2.0e-08",
        "placement of llama3b_intersection on gpu: 8 GPUs, 9 cores, 6 bundles",
        "critiques per step                            768",
    ):
        assert part in text


def test_the_program_refuses_and_describes_offline(tmp_path: Path) -> None:
    """From another folder, with every connection refused."""
    offline = {"HF_HUB_OFFLINE": "1", "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = os.environ | offline | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def launch(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "capo_ray.launch", PAPER, *overrides]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    planned = launch("dry_run=true")
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "placement of llama3b_intersection on gpu" in planned.stdout
    refused = launch()
    if not gpu_sizes():
        assert refused.returncode == 2
        assert refused.stderr.startswith("error: llama3b_intersection does not fit this machine.\n")
    assert list(tmp_path.iterdir()) == []


def test_this_machine() -> None:
    machine = this_machine(Cluster(device="cpu"))
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert machine.memory_gib > 1
    assert this_machine(Cluster(device="cpu", cpus=7)).cpus == 7


def test_gpus_are_counted_by_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the program, not for what reads it."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '81559\\n81559\\n40960\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [round(size) for size in gpu_sizes()] == [80, 80, 40]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert len(gpu_sizes()) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_sizes() == []


def test_shapes_of_models_that_are_here() -> None:
    for name in ("tiny_policy", "tiny_critic"):
        shape = shape_of(Model(path=f"asset:{name}"))
        assert shape is not None
        assert 300_000 < shape.parameters < 3_000_000
    assert shape_of(Model(path="somebody/something")) is None
