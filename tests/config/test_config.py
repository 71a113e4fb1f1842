"""The configuration: every experiment composes, and every fault is told with its field, its value and what to do."""

import re
import warnings
from pathlib import Path

import pytest

from capo_ray.config.compose import compose, conf_dir, validate
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.launch import launch

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml") if not path.stem.endswith("_sft"))
POLICIES = ("llama1b", "llama3b", "qwen1_5b", "qwen7b")
METHODS = ("sft", "grpo", "genorm", "intersection", "majority", "union", "average", "greedy")
TINY = "+experiment=tiny_cpu"
HTTP = "critic=http critic.endpoints=[http://h:1/v1] critic.served_model=m"
PAPER = {
    "llama1b": (1_235_814_400, 5e-8),
    "llama3b": (3_212_749_824, 2e-8),
    "qwen1_5b": (1_543_714_304, 1e-7),
    "qwen7b": (7_615_616_512, 2e-8),
}


def fault(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, *overrides])
    return str(caught.value)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_prints_its_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose([f"+experiment={name}", "dry_run=true"])
    assert config.name == name
    assert validate(config.model_dump(mode="json")) == config
    wanting = {  # what a user has to bring first
        "tiny_cpu_text": "fault: policy.path: a random model needs policy.shape and policy.tokenizer\n",
        "smollm2_cpu": "fault: data.path: there is no file models/smollm2/train.jsonl; pass data.path=FILE",
    }
    assert launch(config) == (2 if name in wanting else 0)
    printed = capsys.readouterr().out
    assert wanting.get(name, "verdict: this run can start ") in printed
    assert f"placement of {name} on " in printed and "a prompt as the policy reads it" in printed
    if name.startswith(POLICIES):
        assert f"placement of {name} on gpu: 8 GPUs" in printed and "fault" not in printed
        assert "final answer within \\boxed{}." in printed and "What is $2 + 3$?" in printed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_a_server_as_its_critic(name: str) -> None:
    critic = compose([f"+experiment={name}", *HTTP.split()]).critic
    assert critic is not None and critic.kind == "http" and critic.model is None


@pytest.mark.parametrize("group", sorted(path.name for path in conf_dir().iterdir() if path.is_dir()))
def test_every_choice_of_a_group_composes(group: str) -> None:
    """Each file is used by an experiment or can stand in for the one that is."""
    names = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    assert names
    if group in ("data", "reward", "tracking"):
        for name in names:
            path = [] if name == "arithmetic" else ["data.path=x"]
            compose(["+experiment=llama3b_intersection", f"{group}={name}", *path])
    if group == "model":
        for name in names:
            shape = compose([TINY, f"model@policy={name}"]).policy.shape
            assert (shape is None) == name.startswith("tiny_")


def test_the_papers_experiments_are_all_there() -> None:
    there = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    ours = {"tiny_cpu", "tiny_cpu_text", "smollm2_cpu", "smollm2_cpu_sft"}
    assert there == {f"{policy}_{method}" for policy in POLICIES for method in METHODS} | ours


def test_a_supervised_training_is_not_launched() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["+experiment=qwen7b_sft", "steps=3"])
    message = "a supervised training is started with: python -m capo_ray.sft +experiment=qwen7b_sft"
    assert str(caught.value) == message


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("method", METHODS[1:])
def test_the_papers_settings(policy: str, method: str) -> None:
    config = compose([f"+experiment={policy}_{method}"])
    parameters, rate = PAPER[policy]
    assert config.policy.shape is not None
    assert (config.policy.shape.parameters, config.trainer.learning_rate) == (parameters, rate)
    assert (config.reward.outcome_weight, config.reward.process_weight) == (2, 1)
    assert (config.prompts_per_step * config.responses_per_prompt, config.responses_per_prompt) == (192, 16)
    assert (config.rollout.temperature, config.rollout.top_p, config.algorithm.kl_weight) == (0.7, 0.9, 0.01)
    assert (config.trainer.optimisation_passes, config.trainer.schedule) == (4, "cosine")
    assert ("MATH-lighteval" in str(config.data.path)) == (policy in ("llama1b", "qwen1_5b"))
    algorithm = "grpo" if method in ("grpo", "genorm") else "capo"
    outcome = "critic" if method == "genorm" else "verifier"
    assert (config.algorithm.advantage, config.reward.outcome) == (algorithm, outcome)
    critic = config.critic
    assert (critic is None) == (method == "grpo")
    if critic is None:
        return
    assert algorithm == "grpo" or config.reward.vote == method
    sampling = (1, 0.0) if method == "greedy" else (4, 0.7)
    assert (critic.critiques, critic.temperature) == sampling
    assert (critic.top_p, critic.max_critique_tokens, critic.window) == (0.9, 2048, 8192)
    assert critic.model is not None and critic.model.shape is not None and critic.model.shape.parameters > 70e9
    assert ("Qwen" in critic.model.path) == policy.startswith("qwen")


@pytest.mark.parametrize(
    ("name", "intermediate", "heads_size", "tied"),
    [
        ("llama3_2_1b_instruct", 8192, 2048, True),
        ("llama3_2_3b_instruct", 8192, 3072, True),
        ("qwen2_5_1_5b", 8960, 1536, True),
        ("qwen2_5_7b", 18944, 3584, False),
        ("llama3_70b_instruct", 28672, 8192, False),
        ("qwen2_5_72b_instruct", 29568, 8192, False),
    ],
)
def test_shapes_add_up_to_their_parameters(name: str, intermediate: int, heads_size: int, tied: bool) -> None:
    shape = compose([TINY, f"model@policy={name}"]).policy.shape
    assert shape is not None
    hidden, kv = shape.hidden_size, shape.key_value_size
    bias = heads_size + 2 * kv if name.startswith("qwen") else 0
    layer = 2 * hidden * heads_size + 2 * hidden * kv + bias + 3 * hidden * intermediate + 2 * hidden
    embeddings = shape.vocabulary * hidden * (1 if tied else 2)
    assert shape.layers * layer + embeddings + hidden == shape.parameters


def test_the_random_models_shape_is_that_of_the_model_made() -> None:
    shape = compose(["+experiment=tiny_cpu_text"]).policy.shape
    assert shape is not None
    hidden, kv = shape.hidden_size, shape.key_value_size
    layer = 2 * hidden * hidden + 2 * hidden * kv + 12 * hidden * hidden
    assert shape.parameters == pytest.approx(shape.vocabulary * hidden + shape.layers * layer, rel=0.01)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stepz=3", "stepz: no such key; did you mean steps?"),
        ("reward.votes=union", "reward.votes: no such key; did you mean reward.vote?"),
        ("steps=many", "steps: must be a whole number, got 'many'"),
        ("steps=0", "steps: must be greater than 0, got 0"),
        ("seed=-1", "seed: must be at least 0, got -1"),
        ("responses_per_prompt=1", "responses_per_prompt: must be greater than 1, got 1"),
        ("name=a/b", "name: must match the pattern ^[A-Za-z0-9._-]{1,100}$, got 'a/b'"),
        (
            "reward.vote=most",
            "reward.vote: must be one of intersection, majority, strict_majority, union, average, greedy, or "
            "module:name of your own, got 'most'",
        ),
        ("rollout.top_p=0", "rollout.top_p: must be greater than 0, got 0"),
        (
            "data.operations=[4,2]",
            "data: `operations` must be [fewest, most] with 1 <= fewest <= most <= 50, got [4, 2]",
        ),
        (
            "data.kind=math",
            "data: `path` must name a file or a data set when `kind` is math; pass data.path=FILE_OR_ID",
        ),
        (
            "data.path=x.jsonl",
            "data: `path` would not be read: `kind` arithmetic makes its own problems; begin with data=plain (or "
            "another of conf/data: gsm8k, math, verl) for problems of a file, or leave it out",
        ),
        (
            "critic=null algorithm=grpo critic.critiques=3",
            "critic.critiques: critic=null leaves the whole block out; give one of the two",
        ),
        (
            "data.answer_boxed=true data.answer_pattern='(.+)'",
            "data: `answer_boxed` and `answer_pattern` both say where the gold answer is; leave one out",
        ),
        (
            "data.answer_pattern='('",
            "data.answer_pattern: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        (
            "reward.format_pattern='('",
            "reward.format_pattern: '(' is not a regular expression: missing ), unterminated subpattern at position 0",
        ),
        ("reward.segmenter_pattern=x", "reward: `segmenter_pattern` goes with `segmenter` regex, and it is blank_line"),
        ("data.answer_pattern='.+'", "data: `answer_pattern` '.+' has no group; put the answer in one: (...)"),
        ("reward.segmenter=regex", "reward: `segmenter_pattern` must be set when `segmenter` is regex"),
        (
            "rollout.top_p=0.9 algorithm.old_logprobs=sampler",
            "`algorithm.old_logprobs` must be trainer when the sampler is cut off (rollout.top_p 0.9, rollout.top_k "
            "-1): the sampler's log-probabilities are off by the kept mass",
        ),
        (
            "algorithm.max_staleness=1",
            "`algorithm.max_staleness` 1 needs `algorithm.old_logprobs` sampler or an `algorithm.importance_cap`: with "
            "the trainer's log-probabilities alone stale samples look on-policy",
        ),
        (
            "rollout.temperature=0",
            "`rollout.temperature` must be > 0 for training: a group of equal responses teaches nothing",
        ),
        (
            "trainer.responses_per_update=100",
            "`trainer.responses_per_update` 100 must divide the 256 responses of a step (prompts_per_step 16 x "
            "responses_per_prompt 16)",
        ),
        (
            "trainer.tokens_per_micro_batch=100",
            "`trainer.tokens_per_micro_batch` 100 must hold one sequence: data.max_prompt_tokens + "
            "rollout.max_response_tokens = 128",
        ),
        (
            "critic=truth data=math data.path=x.jsonl",
            "`critic.kind` truth is for data.kind arithmetic, whose steps can be checked, and data.kind is math; "
            "critic=placebo, which flags at random, takes any data",
        ),
        (
            "critic=truth critic.workers=2",
            "critic: `model`, `workers`, `endpoints`, `served_model` and `leave_out` have no meaning where `kind` is "
            "truth; start from critic=truth",
        ),
        (
            "algorithm.kl_gradient=true algorithm.kl_place=reward",
            "`algorithm.kl_gradient` is of the ratio that weighs the KL in the loss, and there is none: "
            "algorithm.kl_weight is 0, algorithm.kl_place reward; leave it out",
        ),
        (
            "algorithm.kl_cap=0",
            "algorithm.kl_cap: must be greater than 0, got 0",
        ),
        (
            "algorithm.surrogate=gspo",
            "`algorithm.surrogate` gspo gives a response one ratio and one advantage, and advantage capo has one per "
            "token; use gspo_token",
        ),
        (
            "algorithm.kl_estimator=k1 algorithm.kl_weight=0.1",
            "`algorithm.kl_estimator` k1 has a gradient of 0 on average, so it does nothing in the loss; set "
            "algorithm.kl_place=reward, or use k2 or k3",
        ),
        (
            "algorithm.surrogate=cispo algorithm.clip_dual=2",
            "`algorithm.clip_dual` has no meaning with surrogate cispo, which clips no token's loss",
        ),
        (
            "algorithm.advantage=reinforce_pp algorithm.refills=2",
            "`algorithm.refills` 2 replaces groups that teach nothing by themselves, and advantage reinforce_pp "
            "compares over the whole batch, where every group teaches; set refills to 0, or use an advantage that "
            "compares within the group",
        ),
        (
            "algorithm.old_logprobs=sampler algorithm.importance_cap=2",
            "`algorithm.importance_cap` 2 bounds old log-probabilities over the sampler's, and with "
            "`algorithm.old_logprobs` sampler they are the same; leave one of the two out",
        ),
        (
            "algorithm.advantage=grpo reward.outcome_weight=0",
            "`reward.outcome_weight` is 0, and so is every other weight that `algorithm.advantage` grpo looks at: "
            "nothing can be learnt; set one above 0",
        ),
        (
            "algorithm.advantage=capo_channels reward.process_weight=0.1",
            "`reward.process_weight` 0.1 would change nothing: `algorithm.advantage` capo_channels divides penalties "
            "by their own spread; leave it at 1, or at 0 to leave them out, or use advantage capo",
        ),
        (
            "algorithm.advantage=grpo reward.error_set=first",
            "`reward.error_set` first and `reward.returns` none shape step penalties, and `algorithm.advantage` grpo "
            "has none; use one of capo, capo_mean, capo_channels, capo_batch",
        ),
        (
            "algorithm.advantage=grpo reward.outcome=critic critic=null",
            "`reward.outcome` critic needs a `critic`: it is the critic's Yes or No that is paid",
        ),
        (
            "reward.outcome=critic reward.unjudged=outcome_only",
            "`reward.unjudged` outcome_only has nothing to fall back on where `reward.outcome` is critic; use drop",
        ),
        (
            "reward.outcome=critic critic.on_outage=outcome_only",
            "`critic.on_outage` outcome_only has nothing to fall back on where `reward.outcome` is critic; use wait",
        ),
        (
            "reward.outcome=critic critic.adaptive=true",
            "`critic.adaptive` stops when the steps are decided, and `reward.outcome` critic pays the Yes or No of all "
            "critiques; use one of the two",
        ),
        (
            "reward.overlong_tokens=65",
            "`reward.overlong_tokens` 65 must be at most rollout.max_response_tokens 64",
        ),
        (
            "critic=null",
            "`algorithm.advantage` capo needs a `critic`: without critiques it has no process rewards; set `critic`, "
            "or use advantage grpo",
        ),
        (
            "reward.vote=greedy",
            "`reward.vote` greedy needs critic.critiques 1 and critic.temperature 0, got 4 and 0.7",
        ),
        (
            "critic=http",
            "critic: `endpoints` and `served_model` must be set when `kind` is http; pass "
            "'critic.endpoints=[http://HOST:8000/v1]' critic.served_model=NAME",
        ),
        (
            "critic.kind=http critic.endpoints=[http://h:1/v1] critic.served_model=m",
            "critic: `model`, `workers` and `tensor_parallel` are for kind vllm, and `kind` is http, whose servers run "
            "the model; leave them out, or start from critic=http",
        ),
        (
            f"{HTTP} critic.workers=2",
            "critic: `model`, `workers` and `tensor_parallel` are for kind vllm, and `kind` is http, whose servers run "
            "the model; leave them out, or start from critic=http",
        ),
        (
            "critic.endpoints=[http://h:1/v1]",
            "critic: `endpoints`, `served_model` and `leave_out` are for kind http, and `kind` is vllm; start from "
            "critic=http",
        ),
        (
            f"{HTTP} critic.kind=vllm critic.endpoints=[] critic.served_model=null",
            "critic: `model` must be set when `kind` is vllm; pass model.path=FOLDER_OR_ID, or kind: http; an "
            "experiment without a critic, such as GRPO, takes no setting of one",
        ),
        (
            f"{HTTP} critic.endpoints=[h:8000/v1]",
            "critic: `endpoints` must be base addresses such as http://host:8000/v1, got 'h:8000/v1'",
        ),
        (
            f"{HTTP} critic.endpoints=['http://me:secret@h/v1']",
            "critic: `endpoints` must hold no credentials (h has some): the key goes into the environment, see "
            "`api_key_env`",
        ),
        (
            f"{HTTP} critic.leave_out=[max_tokens]",
            "critic.leave_out.0: must be one of seed, temperature, top_p, got 'max_tokens'",
        ),
        (
            f"{HTTP} critic.endpoints=[http://h:99999/v1]",
            "critic: `endpoints` must be base addresses such as http://host:8000/v1, got 'http://h:99999/v1'",
        ),
        (
            f"{HTTP} critic.endpoints=['http://h:8000/v1?key=sk-secret']",
            "critic: `endpoints` must be base addresses such as http://host:8000/v1, got 'http://h:8000/v1'",
        ),
        (
            f"{HTTP} critic.endpoints=[http://h/v1,http://h/v1]",
            "critic: `endpoints` names a server twice: ['http://h/v1', 'http://h/v1']",
        ),
        (
            "critic.critiques=1 critic.others=[{kind:http,endpoints:[http://h/v1],served_model:m}]",
            "critic: `others` makes 2 critics and `critiques` is 1: some would never be asked; raise `critiques` or "
            "name fewer",
        ),
        (
            "critic.same_critic=true",
            "critic: `same_critic` is for `others`: there is no critic before the first",
        ),
        (
            "critic.others=[{kind:http,endpoints:[http://h/v1],served_model:m,same_critic:true,max_sequences:8}]",
            "critic: `others`: engines of one critic must have the same `max_sequences`, got 256 and, with "
            "`same_critic`, 8",
        ),
        (
            "critic.others=[{kind:http}]",
            "critic.others.0: `endpoints` and `served_model` must be set when `kind` is http; pass "
            "'critic.endpoints=[http://HOST:8000/v1]' critic.served_model=NAME",
        ),
        (
            "critic.others=[{kind:http,endpoints:[http://h/v1],served_model:m,window:100}]",
            "the critic's window of 100 tokens cannot hold a question and a response (128) and "
            "critic.max_critique_tokens 96; lower one or set a larger critic.others[0].window",
        ),
        (
            "reward.min_valid_critiques=5",
            "`reward.min_valid_critiques` 5 can never be reached with critic.critiques 4",
        ),
        (
            "critic.tokens_per_step=6143",
            "`critic.tokens_per_step` 6143 must hold one group: responses_per_prompt 16 x critic.critiques 4 x "
            "critic.max_critique_tokens 96 = 6144, what it is taken to cost before any was judged; raise it, or ask "
            "for fewer or shorter critiques",
        ),
        (
            "critic.tokens_per_step=9999 reward.outcome=critic",
            "`critic.tokens_per_step` leaves groups unjudged, and `reward.outcome` critic has nothing to pay them by; "
            "use one of the two",
        ),
        (
            "critic.canaries.rate=0",
            "critic.canaries.rate: must be greater than 0, got 0",
        ),
        (
            "critic.window=100",
            "the critic's window of 100 tokens cannot hold a question and a response (128) and "
            "critic.max_critique_tokens 96; lower one or set a larger critic.window",
        ),
        (
            "trainer.lora.dropout=0.1",
            "`trainer.lora.dropout` 0.1 is for supervised training: in a run two passes over the same tokens must "
            "agree, or the ratio to the old policy is noise; leave it out",
        ),
        (
            "trainer.lora.rank=513",
            "`trainer.lora.rank` 513 is more than vLLM holds as an adapter (512): lower it, or set "
            "cluster.lora_sync=merged",
        ),
        (
            "critic=base critic.window=null cluster.sharing=turns",
            "`critic.kind` base is the model that an adapter leaves as it is, on engines that sample and judge in "
            "turns: it wants trainer.lora, cluster.lora_sync adapter and cluster.sharing turns, and they are null, "
            "adapter and turns; or take the same model by kind vllm",
        ),
        (
            "critic=base critic.window=null trainer.lora.rank=8 cluster.lora_sync=merged cluster.sharing=turns",
            "`critic.kind` base is the model that an adapter leaves as it is, on engines that sample and judge in "
            "turns: it wants trainer.lora, cluster.lora_sync adapter and cluster.sharing turns, and they are set, "
            "merged and turns; or take the same model by kind vllm",
        ),
        (
            "critic=base critic.window=null trainer.lora.rank=8",
            "`critic.kind` base is the model that an adapter leaves as it is, on engines that sample and judge in "
            "turns: it wants trainer.lora, cluster.lora_sync adapter and cluster.sharing turns, and they are set, "
            "adapter and apart; or take the same model by kind vllm",
        ),
        (
            "critic=base critic.window=null trainer.lora.rank=8 cluster.sharing=turns critic.others=[{kind:base}]",
            "`critic.kind` base is one critic, and its engines judge alone: beside it `critic.others` may have those "
            "of kind http and the like, and none of kind base or vllm",
        ),
        (
            "critic=base trainer.lora.rank=8 cluster.sharing=turns critic.window=100",
            "the critic's window of 100 tokens cannot hold a question and a response (128) and "
            "critic.max_critique_tokens 2048; lower one or set a larger critic.window",
        ),
        (
            "trainer.zero_stage=0 trainer.offload=optimizer",
            "trainer: `offload` optimizer wants `zero_stage` 1 at least, and it is 0; raise it",
        ),
        (
            "trainer.zero_stage=2 trainer.offload=all",
            "trainer: `offload` all wants `zero_stage` 3 at least, and it is 2; raise it",
        ),
        (
            "cluster.weight_transfer=ipc",
            "cluster: `weight_transfer` follows from cluster.sharing and cluster.device; set cluster.sharing=pairs",
        ),
        (
            "cluster.weight_transfer=nccl",
            "cluster: `weight_transfer` follows from cluster.sharing and cluster.device; leave it out",
        ),
        (
            "cluster.sharing=pairs",
            "`cluster.sharing` pairs is about GPUs, and on cluster.device cpu there are none to share; use apart",
        ),
        (
            "trainer.lora.targets=[]",
            "trainer.lora.targets: must name a layer, such as [q_proj,v_proj], or be null: every linear layer but the "
            "head",
        ),
        (
            "cluster.sharing=turns algorithm.max_staleness=1",
            "`algorithm.max_staleness` 1 samples while the policy learns, and with `cluster.sharing` turns nobody "
            "samples then; set it to 0, or use apart or pairs",
        ),
        (
            "cluster.sharing=turns cluster.weight_transfer=ipc",
            "cluster: `weight_transfer` follows from cluster.sharing and cluster.device; leave it out",
        ),
        (
            "cluster.sharing=turns algorithm.max_staleness=1 algorithm.importance_cap=2",
            "`algorithm.max_staleness` 1 samples while the policy learns, and with `cluster.sharing` turns nobody "
            "samples then; set it to 0, or use apart or pairs",
        ),
        (
            "cluster=gpu cluster.sharing=turns rollout.workers=6 trainer.ranks=6 critic.tensor_parallel=3 "
            "critic.others=[{model:${critic.model},tensor_parallel:2}]",
            "`tensor_parallel` 2 and 3: with `cluster.sharing` turns rollout workers and critics share GPUs, and an "
            "engine must lie within those of a larger one; choose numbers that divide one another",
        ),
        (
            "cluster=gpu cluster.sharing=turns rollout.workers=2 critic.workers=2 critic.tensor_parallel=2",
            "`critic.workers`: with `cluster.sharing` turns critics of 4 GPUs together would share those of 2 trainer "
            "ranks; lower critic.workers or critic.tensor_parallel, or raise trainer.ranks and rollout.workers",
        ),
        (
            "cluster=gpu cluster.sharing=turns",
            "`cluster.sharing` turns puts each rollout worker on the GPUs of trainer ranks, and there are 1 workers of "
            "1 GPUs and 2 ranks: let rollout.workers x rollout.tensor_parallel be trainer.ranks, or set "
            "cluster.sharing=apart",
        ),
        (
            "cluster=gpu cluster.sharing=pairs rollout.tensor_parallel=2 trainer.ranks=4",
            "`cluster.sharing` pairs puts each rollout worker on the GPUs of trainer ranks, and there are 1 workers of "
            "2 GPUs and 4 ranks: let rollout.workers x rollout.tensor_parallel be trainer.ranks, or set "
            "cluster.sharing=apart",
        ),
    ],
)
def test_a_fault_names_field_value_and_remedy(override: str, message: str) -> None:
    assert fault(*override.split(" ")).removeprefix("configuration: ") == message


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-abcdefghijklmnop",
        "sk_live_51abcdefgh",
        "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567",
        "gsk_abc",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "a3f5c2d4e6f708192a3b4c5d6e7f8091",
        "abcdefghijklmnopqrstuvwxyzABCDEFGH",
        "Bearer x",
    ],
)
def test_a_key_in_place_of_a_variables_name_is_refused_and_not_repeated(key: str) -> None:
    said = fault(*HTTP.split(), f"critic.api_key_env={key}")
    assert said.startswith("critic.api_key_env: must be the name of an environment variable, such as OPENAI_API_KEY")
    assert key not in said
    assert fault(*HTTP.split(), "critic.api_key_env=''").startswith("critic.api_key_env: must not be empty")


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "MY_KEY_2", "_k", "null", "AZURE_OPENAI_API_KEY_PROJECT_2026"])
def test_names_of_variables_are_taken(name: str) -> None:
    assert compose([TINY, *HTTP.split(), f"critic.api_key_env={name}"]).critic is not None


def test_the_policys_window() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(
            ["+experiment=tiny_cpu_text", "rollout.max_response_tokens=2000", "trainer.tokens_per_micro_batch=9999"]
        )
    assert str(caught.value).removeprefix("configuration: ") == (
        "the policy's window of 2048 tokens cannot hold data.max_prompt_tokens 512 + rollout.max_response_tokens 2000; "
        "lower one"
    )


def test_the_papers_critic_window() -> None:
    """Question, reference, wrapped response and critique must fit Llama-3-70B's 8,192 tokens."""
    with pytest.raises(ConfigError, match=re.escape("the critic's window of 8192 tokens cannot hold a question and")):
        compose(["+experiment=llama3b_intersection", "rollout.max_response_tokens=6000"])


def test_all_faults_are_told_at_once() -> None:
    lines = fault("steps=0", "+reward.votes=union", "trainer.zero_stage=4").splitlines()
    assert [line.split(":")[0] for line in lines] == ["steps", "reward.votes", "trainer.zero_stage"]


def test_an_unknown_experiment_and_none() -> None:
    with pytest.raises(ConfigError, match="tiny_cpuu"):
        compose(["+experiment=tiny_cpuu"])
    for given in ([], ["steps=3"]):
        with pytest.raises(
            ConfigError, match=r"^no experiment is named: pass \+experiment=NAME, one of smollm2_cpu, tin"
        ):
            compose(given)


def test_a_field_that_no_file_names_can_be_set() -> None:
    config = compose([TINY, "data.limit=7", "trainer.betas=[0.9,0.95]", "run_dir=/somewhere", "critic.window=400"])
    assert (config.data.limit, config.trainer.betas, config.run_dir) == (7, (0.9, 0.95), "/somewhere")
    assert config.critic is not None and config.critic.window == 400


@pytest.mark.parametrize("overrides", [["+experiment"], ["steps==="], ["+experiment=tiny_cpu", "steps=${nothing}"]])
def test_what_hydra_refuses_is_a_config_error(overrides: list[str]) -> None:
    with pytest.raises(ConfigError):
        compose(overrides)


def test_process_weight_above_outcome_weight_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"reward.process_weight P = 5 >= reward.outcome_weight C = 2: .* Use P < C\."):
        compose([TINY, "reward.process_weight=5"])
    with pytest.warns(UserWarning, match="P = 2 >= reward"):
        compose([TINY, "reward.process_weight=2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose([TINY, "reward.process_weight=1.9"])


@pytest.mark.parametrize("left_out", ["critic=null", "~critic"])
def test_grpo_needs_no_critic(left_out: str) -> None:
    config = compose([TINY, left_out, "algorithm=grpo"])
    assert config.critic is None and config.algorithm.advantage == "grpo"


def test_a_config_is_frozen() -> None:
    config = compose([TINY])
    assert isinstance(config, Config)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]


def test_conf_is_found_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (conf_dir() / "config.yaml").is_file()
    compose([TINY])


def test_checkpoints_at_once() -> None:
    """The newest two, the best and the one being written; and those of every so many steps."""
    assert compose([TINY]).checkpoints_at_once == 4
    assert compose([TINY, "keep_best=null", "keep_checkpoints=1"]).checkpoints_at_once == 2
    assert compose([TINY, "steps=20", "keep_every=5"]).checkpoints_at_once == 8


def test_models_written() -> None:
    assert compose([TINY]).models_written == 1
    assert compose([TINY, "steps=20", "export_every=6"]).models_written == 4
