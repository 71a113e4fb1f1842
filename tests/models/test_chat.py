"""Chat templates: those of conf/model render what the models were trained on, and what is shown is what is sampled."""

import json
import shutil
from pathlib import Path

import pytest

from capo_ray.config.compose import compose, conf_dir
from capo_ray.config.fault import ConfigError
from capo_ray.config.model import Model
from capo_ray.models.chat import conversation, render, template_in
from capo_ray.models.find import ASSETS, find_model, shown

TALK = [
    {"role": "user", "content": " 1 + 1? "},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "Sure?"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
LLAMA_3 = (
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n1 + 1?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n2<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
)
SYSTEM_HEADER = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
CHATML = (
    "<|im_start|>user\n 1 + 1? <|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
)
EXPECTED = {
    "llama3_70b_instruct": (LLAMA_3, LLAMA_3.replace("<|begin_of_text|>", f"{SYSTEM_HEADER}Be brief.<|eot_id|>")),
    **dict.fromkeys(
        ("llama3_2_1b_instruct", "llama3_2_3b_instruct"),
        tuple(
            LLAMA_3.replace("<|begin_of_text|>", f"{SYSTEM_HEADER}{DATES}{system}<|eot_id|>")
            for system in ("", "Be brief.")
        ),
    ),
    **{
        name: (
            f"<|im_start|>system\n{usual}You are a helpful assistant.<|im_end|>\n{CHATML}",
            f"<|im_start|>system\nBe brief.<|im_end|>\n{CHATML}",
        )
        for name, usual in {
            **dict.fromkeys(("qwen2_5_1_5b", "qwen2_5_7b"), ""),
            **dict.fromkeys(
                ("qwen2_5_7b_instruct", "qwen2_5_7b_instruct_awq", "qwen2_5_72b_instruct", "qwen2_5_72b_instruct_awq"),
                "You are Qwen, created by Alibaba Cloud. ",
            ),
        }.items()
    },
}
"""Without a system message, and with one."""


def template(name: str) -> str:
    found = compose(["+experiment=tiny_cpu", f"model@policy={name}"]).policy.chat_template
    assert found is not None
    return found


def test_every_model_that_is_not_here_has_a_template() -> None:
    named = {path.stem for path in (conf_dir() / "model").glob("*.yaml")}
    assert named - {"random_tiny", "tiny_policy", "tiny_critic", "smollm2"} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_template_renders_as_the_model_was_trained(name: str) -> None:
    without, with_system = EXPECTED[name]
    assert render(template(name), TALK) == without
    assert render(template(name), [SYSTEM, *TALK]) == with_system
    unended = render(template(name), TALK[:2], add_generation_prompt=False)
    assert without.startswith(unended) and unended.rstrip().endswith(("2<|eot_id|>", "2<|im_end|>"))


@pytest.fixture
def qwen2(test_data: Path, tmp_path: Path) -> Path:
    """A folder with a full-size tokenizer, whose own template always has a system message and asks for no prompt."""
    import gzip

    folder = tmp_path / "qwen2"
    folder.mkdir()
    there = test_data / "tokenizers" / "qwen2"
    (folder / "tokenizer.json").write_bytes(gzip.decompress((there / "tokenizer.json.gz").read_bytes()))
    shutil.copy(there / "tokenizer_config.json", folder)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = shape | {"vocab_size": 151936, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(ASSETS / "tiny_policy" / "model.safetensors", folder / "pytorch_model.bin")  # not looked into here
    return folder


@pytest.mark.parametrize("own", [True, False], ids=["own template", "set template"])
def test_what_is_shown_is_what_is_sampled(qwen2: Path, tmp_path: Path, own: bool) -> None:
    from transformers import AutoTokenizer

    model = Model(path=str(qwen2), chat_template=None if own else template("qwen2_5_7b"))
    encode = find_model(model, "policy", tmp_path, seed=0).encoder("Be brief.", model.chat_template)
    tokenizer = AutoTokenizer.from_pretrained(qwen2)
    for question in ("1 + 1?", " é\n\nx ", "<|im_end|>"):
        talk = conversation(question, "Be brief.")
        as_there = {"chat_template": model.chat_template, "add_generation_prompt": True}
        assert tokenizer.apply_chat_template(talk, **as_there, return_dict=False) == list(encode(question))
        there = tokenizer.apply_chat_template(talk, **as_there, tokenize=False)
        assert there == shown(talk, model, add_generation_prompt=True)
    assert encode("1?", "Be long.") != encode("1?") == encode("1?", "Be brief.")


def test_special_tokens_and_the_places_of_templates(tmp_path: Path) -> None:
    spec = {"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}A"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(spec))
    found = template_in(tmp_path)
    assert found.text is not None and render(found.text, TALK, special=found.special) == "<s>A"
    (tmp_path / "chat_template.jinja").write_text("B{{ messages | length }}")
    assert shown(TALK, Model(path=str(tmp_path)), add_generation_prompt=True) == "B3"
    tiny = shown(TALK, Model(path="asset:tiny_policy"), add_generation_prompt=True)
    assert tiny.startswith("<|im_start|>user\n 1 + ")
    nothing = template_in(ASSETS / "nothing")
    assert nothing.text is None and not nothing.special


def test_a_template_that_is_wrong_or_refuses() -> None:
    with pytest.raises(ConfigError, match="chat_template: it does not render these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}", TALK)
    with pytest.raises(ConfigError, match="chat_template: it does not render these messages: "):
        render("{% for %}", TALK)
    unknown = shown(TALK, Model(path="owner/name"), add_generation_prompt=True)
    assert unknown == "(not known: the chat template of owner/name is not here; chat_template sets one)"


def test_a_template_with_todays_date_is_warned_of(
    qwen2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    find_model(Model(path=str(qwen2)), "policy", tmp_path, seed=0).encoder(None, "{{ strftime_now('%d') }}")
    assert "writes today's date into every prompt: tomorrow they are others. Set policy.chat_template" in caplog.text
