"""What is wrong with a model's files, told before anything is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.lora import Lora
from capo_ray.config.model import Model
from capo_ray.engines.lora import identity_of
from capo_ray.models.files import tensor_shapes
from capo_ray.models.find import ASSETS, check_trained, find_model

POLICY = ASSETS / "tiny_policy"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The shipped policy, to be broken."""
    return Path(shutil.copytree(POLICY, tmp_path / "model"))


def mend(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def fault(tmp_path: Path, **model: Any) -> str:
    with pytest.raises(ConfigError) as error:
        find_model(Model(**model), "policy", tmp_path / "run", seed=0)
    return str(error.value)


def test_a_shipped_model_is_whole(tmp_path: Path) -> None:
    found = find_model(Model(path="asset:tiny_policy"), "policy", tmp_path, seed=0)
    assert found.folder == found.tokenizer == POLICY and found.window == 512
    assert found.encoder(None)("Start with 17. Add 5.")


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "~/no/such/model", "model"])
def test_no_such_folder(tmp_path: Path, path: str) -> None:
    remedy = "is no folder here; name a folder or a Hugging Face id (owner/name)"
    assert fault(tmp_path, path=path) == f"policy.path: '{path}' {remedy}"
    assert fault(tmp_path, path="asset:tiny_policy", tokenizer=path) == (f"policy.tokenizer: '{path}' {remedy}")


def test_an_id_that_the_hub_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = fault(tmp_path, path="nobody/no-such-model")
    assert message.startswith(
        "policy.path: 'nobody/no-such-model' is no folder here, and the Hugging Face hub did not "
    )
    assert "`hf auth login` for gated models; or download it and name its folder" in message


def test_no_such_asset(tmp_path: Path) -> None:
    assert fault(tmp_path, path="asset:huge") == (
        "policy.path: no model 'asset:huge' ships with this package; there are: tiny_critic, tiny_policy"
    )


def test_a_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = fault(tmp_path, path=str(tmp_path / "empty"))
    assert message.startswith(f"policy.path: {tmp_path}/empty/config.json cannot be read as a model's configuration: ")


def test_a_random_model_needs_a_shape(tmp_path: Path) -> None:
    assert fault(tmp_path, path="random") == ("policy.path: a random model needs policy.shape and policy.tokenizer")


def test_a_folder_that_an_experiment_makes(tmp_path: Path) -> None:
    assert fault(tmp_path, path="./models/qwen7b_sft") == (
        "policy.path: './models/qwen7b_sft' is no folder here; name a folder or a Hugging Face id (owner/name). python "
        "-m capo_ray.sft +experiment=qwen7b_sft makes it"
    )


def test_a_chat_template_of_another_model(tmp_path: Path, copy: Path) -> None:
    llama = compose(["+experiment=llama3b_majority"]).policy.chat_template
    assert fault(tmp_path, path=str(copy), chat_template=llama) == (
        "policy.chat_template: it writes <|begin_of_text|>, which is no token of this model's tokenizer: the template "
        "belongs to another model. Pass policy.chat_template=null for the tokenizer's own"
    )


def test_a_tokenizer_of_another_model(tmp_path: Path, copy: Path) -> None:
    mend(copy / "config.json", vocab_size=50)
    largest = max(json.loads((copy / "tokenizer.json").read_text())["model"]["vocab"].values())
    message = fault(tmp_path, path=str(copy))
    assert message.startswith(f"policy.tokenizer: {copy} has ids up to ")
    assert message.endswith("the model's vocabulary ends at 49: this tokenizer belongs to another model")
    assert int(message.split("ids up to ")[1].split(",")[0]) >= largest


def test_a_folder_without_a_tokenizer(tmp_path: Path, copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert fault(tmp_path, path=str(copy)).startswith(f"policy.tokenizer: no tokenizer.json in {copy}")


def test_a_tokenizer_without_a_chat_template(tmp_path: Path, copy: Path) -> None:
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError) as error:
        find_model(Model(path=str(copy)), "policy", tmp_path, seed=0).encoder(None)
    assert str(error.value) == (
        f"policy.tokenizer: {copy} has no chat template; use an instruction-tuned model's tokenizer, or set "
        "policy.chat_template"
    )


def test_the_policys_own_window(tmp_path: Path) -> None:
    found = find_model(Model(path="asset:tiny_policy"), "policy", tmp_path, seed=0)
    lengths = {"data.max_prompt_tokens": 64, "rollout.max_response_tokens": 448}
    found.check_window("the policy", lengths)
    with pytest.raises(ConfigError) as error:
        found.check_window("the policy", lengths | {"rollout.max_response_tokens": 449})
    assert str(error.value) == (
        f"the policy at {POLICY} has a window of 512 tokens; data.max_prompt_tokens + rollout.max_response_tokens = "
        "513 do not fit. Lower one of them."
    )


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    """Names and shapes, as the trainer writes them beside its checkpoint."""
    own = tensor_shapes(POLICY)
    found = find_model(Model(path="asset:tiny_policy"), "policy", tmp_path, seed=0)
    (tmp_path / "trainer.json").write_text(json.dumps({"shapes": own}))
    found.check_continues(tmp_path)
    wider = own | {"model.embed_tokens.weight": [495, 256]}
    for shapes, fault in (
        (wider, "model.embed_tokens.weight is [495, 256] there and [495, 128] here"),
        ({"transformer.wte.weight": [495, 128]}, "no tensor in common"),
    ):
        (tmp_path / "trainer.json").write_text(json.dumps({"shapes": shapes}))
        with pytest.raises(ConfigError) as error:
            found.check_continues(tmp_path)
        assert str(error.value) == (
            f"policy.path: the checkpoint {tmp_path} is of another model than {POLICY}: {fault}. Resume with the model "
            "that the run began with"
        )


def test_a_checkpoint_of_an_adapter(tmp_path: Path) -> None:
    found = find_model(Model(path="asset:tiny_policy"), "policy", tmp_path, seed=0)
    adapter = Lora(rank=4)
    said = {"lora": adapter.shape(), "base": identity_of(str(POLICY)), "shapes": {"base_model.model.a": [4, 8]}}
    (tmp_path / "trainer.json").write_text(json.dumps(said))
    found.check_continues(tmp_path, adapter)
    found.check_continues(tmp_path, Lora(rank=4, dropout=0.1))
    there = f"trainer.lora: the checkpoint {tmp_path} is of "
    for other, fault in (
        (None, "another training: LoRA of rank 4 and alpha 32 on all linear layers there, all weights learn here. "),
        (Lora(rank=4, alpha=8), "another training: LoRA of rank 4 and alpha 32 on all linear layers there, LoRA of "),
        (Lora(rank=4, targets=("q_proj",)), "another training: LoRA of rank 4 and alpha 32 on all linear layers there"),
    ):
        with pytest.raises(ConfigError) as error:
            found.check_continues(tmp_path, other)
        assert str(error.value).startswith(there + fault)
    (tmp_path / "trainer.json").write_text(json.dumps({**said, "base": "0"}))
    with pytest.raises(ConfigError) as error:
        found.check_continues(tmp_path, adapter)
    assert str(error.value).startswith(f"{there}an adapter to other weights than those in {POLICY}. ")
    (tmp_path / "trainer.json").write_text(json.dumps({"shapes": tensor_shapes(POLICY)}))
    with pytest.raises(ConfigError, match=r"all weights learn there, LoRA of rank 4"):
        found.check_continues(tmp_path, adapter)


def test_an_adapter_is_no_model_and_layers_that_it_has_not_are_named(tmp_path: Path) -> None:
    for name in ("config.json", "adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError) as error:
        find_model(Model(path=str(tmp_path)), "policy", tmp_path, seed=0)
    assert str(error.value) == (
        f"policy.path: {tmp_path} is an adapter and no model; python -m capo_ray.export {tmp_path} merge=true "
        "out=MODEL makes one of it"
    )
    check_trained(POLICY, "policy", lora=Lora(targets=("q_proj", "down_proj")))
    with pytest.raises(ConfigError, match=r"^policy\.path: .*lora\.targets: .* no linear layer 'lm_head' beside"):
        check_trained(POLICY, "policy", lora=Lora(targets=("lm_head",)))


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


def _with(folder: Path, tensor: torch.Tensor) -> None:
    """A second file of weights, after the model's own."""
    quantized = torch.full((4,), -1, dtype=torch.int32)  # all bits are set, and it is a number
    save_file({"scale": tensor, "packed": quantized}, folder / "more.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_critic_whose_weights_are_no_numbers(
    tmp_path: Path, copy: Path, kind: torch.dtype, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the last place of several pieces; the largest number there is is one."""
    monkeypatch.setattr("capo_ray.models.files._BYTES_AT_ONCE", 64)
    numbers = torch.ones(100)
    largest = torch.full((1,), torch.finfo(kind).max, dtype=torch.float64)
    sound = torch.cat([numbers.double(), -largest, largest]).to(kind)
    _with(copy, sound)
    find_model(Model(path=str(copy)), "critic.model", tmp_path / "run", seed=0)
    broken = torch.cat([sound.double(), torch.full((1,), value, dtype=torch.float64)]).to(kind)
    if kind == torch.float8_e4m3fn:  # it has no infinity
        broken[-1] = float("nan")
    _with(copy, broken)
    with pytest.raises(ConfigError) as error:
        find_model(Model(path=str(copy)), "critic.model", tmp_path / "run", seed=0)
    assert str(error.value) == (
        f"critic.model.path: {copy}: its tensor scale holds numbers that are not finite: get it again"
    )
