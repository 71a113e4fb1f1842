"""What is given on the command line: what follows from it follows it, and what has no effect is said."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.idle import IDLE
from capo_ray.config.model import Model
from capo_ray.config.run import Config
from capo_ray.evaluate.settings import configuration, options_of
from capo_ray.planning.machine import shape_of
from capo_ray.planning.plan import plan_for
from capo_ray.sft.settings import parse

TINY = "+experiment=tiny_cpu"
LLAMA = "+experiment=llama1b_intersection"


def of(model: Model | None) -> tuple[str, int | None, str | None]:
    """(path, parameters, first mark of the chat template)"""
    assert model is not None
    template = model.chat_template or ""
    mark = next((mark for mark in ("im_start", "begin_of_text") if mark in template), None)
    return model.path, model.shape.parameters if model.shape else None, mark


def critic_of(config: Config) -> Model | None:
    return config.critic.model if config.critic else None


# ---- derived values follow their source ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parameters", "mark"),
    [
        ("Qwen/Qwen2.5-14B-Instruct", None, None),
        ("Qwen/Qwen2.5-72B-Instruct", 72_706_203_648, "im_start"),
        ("/far/away/Qwen2.5-72B-Instruct", 72_706_203_648, "im_start"),
        ("meta-llama/Meta-Llama-3-70B-Instruct", 70_553_706_496, "begin_of_text"),
        ("asset:tiny_critic", None, None),
    ],
)
def test_shape_and_template_are_those_of_the_path(path: str, parameters: int | None, mark: str | None) -> None:
    assert of(critic_of(compose([LLAMA, f"critic.model.path={path}"]))) == (path, parameters, mark)
    assert of(compose([LLAMA, f"policy.path={path}"]).policy) == (path, parameters, mark)
    config = compose([LLAMA, f"policy={{path:'{path}'}}"])
    assert of(config.policy) == (path, parameters, mark)
    assert config.policy.system_prompt  # a choice of the experiment's, no property of the model


def test_another_critic_is_planned_by_its_own_files() -> None:
    """Its memory was that of the 70B before, and its chat template too."""
    config = compose([LLAMA, "critic.model.path=asset:tiny_critic", "critic.tensor_parallel=1"])
    critic = critic_of(config)
    assert critic is not None and critic.chat_template is None
    shape = shape_of(critic)
    (role,) = (r for r in plan_for(config, {"critic": shape}).roles if r.role == "critic")
    assert role.memory["weights"] < 1


def test_a_folder_that_is_here_says_its_own_shape(tmp_path: Path) -> None:
    folder = tmp_path / "Qwen2.5-7B"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert of(compose([LLAMA, f"policy.path={folder}"]).policy) == (str(folder), None, "im_start")


def test_what_is_set_beside_the_path_stays() -> None:
    shape = "{parameters:7,layers:1,hidden_size:2,key_value_size:2,vocabulary:9,window:9999}"
    given = compose([LLAMA, "policy.path=a/b", f"policy.shape={shape}", "policy.chat_template=messages"]).policy
    assert (given.path, given.shape and given.shape.parameters, given.chat_template) == ("a/b", 7, "messages")
    assert of(compose([LLAMA, "policy.path=random", "policy.tokenizer=x"]).policy)[1] == 1_235_814_400


def test_a_model_of_a_group_is_not_lost_to_an_experiments_path() -> None:
    """qwen1_5b names a folder of its own, which another model's shape and template do not fit."""
    config = compose(["+experiment=qwen1_5b_grpo", "model@policy=llama3_2_1b_instruct"])
    assert of(config.policy) == ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400, "begin_of_text")
    own = compose(["+experiment=qwen1_5b_grpo", "policy.path=./models/qwen1_5b_sft"])
    assert own == compose(["+experiment=qwen1_5b_grpo"])


def test_other_critics_too() -> None:
    config = compose([LLAMA, "critic.others=[{model:{path:Qwen/Qwen2.5-7B}},{model:{path:a/b}}]"])
    assert config.critic is not None
    assert [of(voter.model) for voter in config.critic.others] == [
        ("Qwen/Qwen2.5-7B", 7_615_616_512, "im_start"),
        ("a/b", None, None),
    ]


def test_supervised_training_too() -> None:
    sft = ["+experiment=llama3b_sft", "data=x.jsonl"]
    assert of(parse([*sft, "model=a/b"]).model) == ("a/b", None, None)
    assert of(parse([*sft, "model=Qwen/Qwen2.5-7B"]).model) == ("Qwen/Qwen2.5-7B", 7_615_616_512, "im_start")
    assert of(parse(sft).model)[1] == 3_212_749_824


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(json.dumps(compose([TINY, "policy.path=a/b"]).model_dump(mode="json")))
    return tmp_path


def test_a_runs_directory_is_its_policy(run_dir: Path) -> None:
    (run_dir / "policy").mkdir()
    (run_dir / "policy/config.json").write_text("{}")
    policy = str(run_dir / "policy")
    assert compose([TINY, f"policy.path={run_dir}"]).policy.path == policy
    assert parse([f"model={run_dir}", "data=x", "out=o"]).model.path == policy
    asked = options_of([f"model={run_dir}", "suite=arithmetic"])
    assert (asked.model, configuration(asked).policy.path) == (policy, policy)


def test_a_run_without_a_policy_says_why(run_dir: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        options_of([f"model={run_dir}", "suite=arithmetic"])
    assert str(caught.value) == (
        f"{run_dir} is the directory of a run that has written no policy/ yet, which it does when it ends; "
        f"python -m capo_ray.export {run_dir} writes that of its last checkpoint"
    )


# ---- no setting without an effect ------------------------------------------------------------------------------------

HELD = ["data=verl", "data.path=x.jsonl"]
WITHOUT_EFFECT = {
    **{f"data.{name}": ([], "x") for name in ("subset", "split", "question_field", "answer_field", "solution_field")},
    "data.answer_boxed": ([], "true"),
    "data.answer_pattern": ([], "'(x)'"),
    "data.id_field": ([], "x"),
    "data.evaluation": ([], "{split:test}"),
    "data.operations": (HELD, "[2,3]"),
    "data.evaluation_responses": (["data.evaluation_prompts=0"], "2"),
    "evaluate_every": (["data.evaluation_prompts=0"], "2"),
    "critic.first_round": ([], "3"),
    "critic.full_share": ([], "0.1"),
    "critic.flag_share": ([], "0.1"),
    "critic.api_key_env": ([], "MY_KEY"),
    "critic.kv_cache_gib": (["critic=truth"], "2"),
    "critic.gpu_memory_share": (["critic=truth"], "0.5"),
    "critic.eager": (["critic=truth"], "true"),
    "critic.outage_limit_s": (["critic.on_outage=outcome_only"], "9"),
    "rollout.gpu_memory_share": ([], "0.5"),
    "rollout.kv_cache_gib": (["cluster=gpu"], "2"),
    "reward.process_weight": (["algorithm=grpo"], "0.5"),
    "reward.format_pattern": ([], "x"),
    "reward.overlong_weight": ([], "0.5"),
    "algorithm.kl_estimator": ([], "k2"),
    "algorithm.kl_place": ([], "reward"),
    "algorithm.kl_cap": ([], "3"),
    "trainer.final_lr_share": (["trainer.schedule=constant"], "0.1"),
    "cluster.cpus": (["cluster.address=auto"], "2"),
    "cluster.object_store_gib": (["cluster.address=auto"], "2"),
    "cluster.dashboard": (["cluster.address=auto"], "false"),
    "cluster.lora_sync": ([], "merged"),
    "tracking.wandb_project": (["tracking.wandb=off"], "x"),
    "tracking.wandb_samples": (["tracking.wandb=off"], "2"),
}


@pytest.mark.parametrize("key", sorted(IDLE))
def test_what_changes_nothing_is_said(key: str) -> None:
    beside, value = WITHOUT_EFFECT[key]
    with pytest.warns(UserWarning, match=rf"^{key} has no effect: "):
        compose([TINY, *beside, f"{key}={value}"])


def test_what_an_experiment_sets_is_not_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compose([TINY])
        compose([LLAMA])


def test_settings_that_may_be_idle_exist() -> None:
    fields: dict[str, Any] = Config.model_json_schema()
    blocks = {name.lower(): spec["properties"] for name, spec in fields["$defs"].items()}
    for key in IDLE:
        block, _, field = key.rpartition(".")
        assert field in (blocks[block] if block else fields["properties"])


# ---- values that mean nothing ----------------------------------------------------------------------------------------

HTTP = ["critic=http", "critic.served_model=m"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *((f"{key}=inf", f"{key}: must be a finite number, got inf") for key in (
            "algorithm.kl_weight", "trainer.weight_decay", "trainer.max_grad_norm", "algorithm.clip_dual",
            "cluster.object_store_gib", "critic.deadline_s",
        )),
        *((f"{key}=1e300", f"{key}: must be a number that means something, at most 1e+15") for key in (
            "trainer.learning_rate", "reward.outcome_weight", "rollout.temperature",
        )),
        *((f"{key}=true", f"{key}: must be a number, got true") for key in (
            "steps", "trainer.responses_per_update", "trainer.warmup_steps", "max_dropped_share", "trainer.zero_stage",
        )),
        *((f"{key}=1000000000", f"{key}: must be at most 4096, got 1000000000") for key in (
            "rollout.workers", "critic.workers", "trainer.ranks", "reward.aggregators", "rollout.tensor_parallel",
        )),
        ("trainer.learning_rate=nan", "trainer.learning_rate: must be a finite number, got nan"),
        ("trainer.betas=[true,0.1]", "trainer.betas: must be a number, got true"),
        ("trainer.betas=[0.1]", "trainer.betas: must be a longer list: number 2 is missing"),
        ("reward.min_valid_critiques=-5", "reward.min_valid_critiques: must be at least 1, got -5"),
        ("algorithm=[1,2]", "algorithm: takes one name of conf/algorithm, got [1, 2]"),
        ("algorithm=[[[]]]", "algorithm: takes one name of conf/algorithm, got [[[]]]"),
        ("algorithm={a:1}", "algorithm: takes one name of conf/algorithm, got {'a': 1}"),
        ("rollout.engine=3", "rollout.engine: must be a block of keys, got 3"),
        ("policy=3", "policy: must be a block of keys, or null; got 3"),
        ("policy.path=''", "policy.path: must not be empty; leave it out, or null where there is to be none"),
        ("policy.path=' '", "policy.path: must match the pattern \\S, "),
        ("policy.system_prompt='\udcff'", "policy.system_prompt: must be a text: it holds bytes that are no UTF-8"),
        ("policy.chat_template=hello", "configuration: `policy.chat_template` must be a Jinja template that wri"),
        ("cluster.address=h:99999", "cluster.address: must be auto, or HOST:PORT with a port below 65536, got "),
        ("cluster.address='h h:9'", "cluster.address: must be auto, or HOST:PORT with a port below 65536, got "),
        ("data.operations=[1,1000000]", "data: `operations` must be [fewest, most] with 1 <= fewest <= most <= 50"),
        ("critic.critiques=1000000000", "critic.critiques: must be at most 1000, got 1000000000"),
        ("policy.path=${nothing}", "policy.path: Interpolation key 'nothing' not found"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(given: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, given])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("endpoint", ["http://h:99999/v1", "http://h:abc/v1", "http://h h/v1"])
def test_servers_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="`endpoints` must be base addresses such as http://host:8000/v1"):
        compose([TINY, *HTTP, f"critic.endpoints=['{endpoint}']"])


def test_a_rate_that_nobody_uses_is_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"^trainer.learning_rate 10000 is far above what anybody trains"):
        compose([TINY, "trainer.learning_rate=1e4"])
    with pytest.warns(UserWarning, match=r"^learning_rate 0.5 is far above"):
        parse(["model=m", "data=d", "out=o", "learning_rate=0.5"])


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("trainer.learning_rte=1", "trainer.learning_rate"),
        ("trainer.lr=1", "trainer.learning_rate"),
        ("learning_rate=1", "trainer.learning_rate"),
        ("actor.lr=1", "trainer.learning_rate"),
        ("rollout.n=4", "responses_per_prompt"),
        ("kl_coef=0.1", "algorithm.kl_weight"),
        ("total_epochs=2", "epochs"),
        ("model=x", None),
        ("critics=paper", "critic"),
        ("critic.canaries.min_precison=1", "critic.canaries.min_precision"),
        ("zzz=1", None),
    ],
)
def test_a_misspelt_key_is_told_the_nearest(given: str, meant: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, given])
    said = str(caught.value)
    if meant:
        assert said.endswith(f"no such key; did you mean {meant}?") or given.startswith("actor")
    else:
        assert "see --help" in said or "model@policy=NAME" in said


def test_a_misspelt_name_too() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([TINY, "critic=paperx"])
    assert str(caught.value) == "critic: there is no 'paperx' in conf/critic; did you mean paper or paper_qwen?"
    with pytest.raises(ConfigError, match=r"^foo: there is no such group; there are algorithm, "):
        compose([TINY, "+foo@bar=x"])


@pytest.mark.parametrize(
    "key", ["policy.system_prompt", "name", "rollout", "reward.vote", "steps", "critic.api_key_env"]
)
def test_long_values_are_shortened_and_keys_not_shown(key: str) -> None:
    for value in ("x" * 200_000, "sk-live0123456789abcdefghij", "[sk-live0123456789abcdefghij]"):
        with pytest.raises(ConfigError) as caught:
            compose([TINY, *HTTP, "critic.endpoints=[http://h/v1]", f"{key}={value}", "seed=no"])
        assert len(str(caught.value)) < 1200 and "0123456789" not in str(caught.value)


def test_a_key_is_not_shown_where_the_equals_sign_is_left_out() -> None:
    with pytest.raises(ConfigError, match=r"^critic.api_key_env[*]{3}: arguments are key=value"):
        compose([TINY, "critic.api_key_envsk-live0123456789abcdefghij"])
    with pytest.raises(ConfigError, match=r"^task-20241126-run: arguments are key=value"):
        compose([TINY, "task-20241126-run"])


def test_advice_on_quotes_is_what_a_shell_reads() -> None:
    import shlex

    for value in ("a=b", "it's, so", '"', "[a b,c=d]"):
        with pytest.raises(ConfigError) as caught:
            compose([TINY, f"wandb_project={value}"])
        advised = shlex.split(str(caught.value).rpartition("once for that: ")[2])
        assert len(advised) == 1
        with pytest.raises(ConfigError, match="no such key"):  # so it was read
            compose([TINY, *advised])
