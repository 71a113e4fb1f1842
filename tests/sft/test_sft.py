"""Supervised training: what of a conversation carries loss, what is refused, and one run on real ranks."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from capo_ray.config.blocks import Data
from capo_ray.config.compose import compose, conf_dir
from capo_ray.sft.__main__ import main
from capo_ray.sft.conversations import encode, pieces, read, tokenizer_of, write_tokenizer
from capo_ray.sft.examples import located, of_step, prepare
from capo_ray.sft.settings import parse

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MODEL = {
    "model_type": "llama",
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 256,
}


def talk(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return ([{"role": "system", "content": system}] if system else []) + turns


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes, and the marks of a chat."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
    )


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A tokenizer, a model config and a data file."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "config.json").write_text(json.dumps(MODEL | {"eos_token_id": tokenizer.eos_token_id}))
    write(tmp_path / "data.jsonl", [talk(f"say {word}", word) for word in ("one", "two", "three", "four", "five")] * 8)
    return tmp_path


def write(path: Path, conversations: list[Any]) -> None:
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))


def talks(path: Path, messages_field: str | None = "messages", system: str | None = None, **columns: Any) -> Any:
    return read(Data(path=str(path), **columns), messages_field, system)


def settings(folder: Path, *more: str) -> list[str]:
    return [
        f"model={folder / 'config.json'}",
        f"model.tokenizer={folder / 'tokenizer'}",
        "model.dtype=float32",
        f"data={folder / 'data.jsonl'}",
        f"out={folder / 'out'}",
        *more,
    ]


# -- what carries loss


def taught(conversation: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[str]]:
    """The whole text, and the stretches of it that carry loss."""
    (made,) = encode([conversation], tokenizer)
    mask = made.loss_mask or (True,) * len(made.token_ids)
    stretches: list[list[int]] = [[]]
    for token, taken in zip(made.token_ids, mask, strict=True):
        if taken:
            stretches[-1].append(token)
        elif stretches[-1]:
            stretches.append([])
    whole = tokenizer.decode([*made.prompt_ids, *made.token_ids])
    return whole, [tokenizer.decode(stretch) for stretch in stretches if stretch]


def test_only_what_an_assistant_says_carries_loss(tokenizer: Any) -> None:
    whole, stretches = taught(talk("hi", "yes", "and?", "no é"), tokenizer)
    assert stretches == ["yes<|im_end|>", "no é<|im_end|>"]
    assert whole == tokenizer.apply_chat_template(talk("hi", "yes", "and?", "no é"), tokenize=False).rstrip()


def test_one_turn_is_a_prompt_and_a_response(tokenizer: Any) -> None:
    (made,) = encode([talk("hi", "yes", system="be brief")], tokenizer)
    assert not made.loss_mask and tokenizer.decode(made.token_ids) == "yes<|im_end|>"
    prompt = tokenizer.apply_chat_template(
        talk("hi", system="be brief"), add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert list(made.prompt_ids) == prompt["input_ids"]


def test_a_template_that_rewrites_history_is_refused(tokenizer: Any) -> None:
    class Forgetful:
        def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
            return "".join("" if m is not messages[-1] and m["role"] == "assistant" else m["content"] for m in messages)

    with pytest.raises(ValueError, match="renders turn 1 differently when more follows"):
        pieces(talk("a", "b", "c", "d"), Forgetful())


# -- what is refused


def test_settings_are_checked(tmp_path: Path) -> None:
    given = ["model=m", "data=d", "out=o"]
    parsed = parse([*given, "betas=[0.9,0.95]", "steps=3", "data.limit=5"])
    assert (parsed.betas, parsed.model.path, parsed.data.path, parsed.data.limit) == ((0.9, 0.95), "m", "d", 5)
    for more, message in (
        ("learnin_rate=1", "learnin_rate: no such key; did you mean learning_rate?"),
        ("learning_rate=-1", "learning_rate: must be greater than 0, got -1"),
        ("offload=optimizer", "`offload` optimizer wants `zero_stage` 1 at least, and it is 0; raise it"),
        ("zero_stage=4", "zero_stage: must be one of 0, 1, 2, 3, got 4"),
        ("model=x.json", "`model.tokenizer` must be set when `model` is a config"),
        (
            "model=x.json model.tokenizer=t lora.rank=4",
            "`lora` learns beside weights that are kept, and `model` is a config without any",
        ),
        ("messages_field=null", "`data.solution_field` must be set when `messages_field` is null"),
        ("data.kind=arithmetic", "`path` would not be read: `kind` arithmetic makes its own problems"),
        ("+experiment=x_sft", "Could not find 'experiment/x_sft'"),
        ("+experiment=tiny_cpu", "+experiment=tiny_cpu is no supervised training: the names of those end in _sft"),
        ("loud", "loud: arguments are key=value"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            parse([*given, *more.split()])
    with pytest.raises(ValueError, match=r"data: must be given; pass data=\.\.\.\nout: must be given"):
        parse(["model=m"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: not JSON"),
        ("[]", "line 3: a JSON list, must be an object"),
        ('{"text": "hi"}', 'line 3: must be {"messages"'),
        ('{"messages": [{"role": "user"}]}', "with strings"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "line 3: no assistant message"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    write(path, [talk("a", "b")])
    path.write_text(path.read_text() + "\n" + line + "\n")
    with pytest.raises(ValueError, match=re.escape(message)):
        list(talks(path))


def test_data_may_be_missing_or_packed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no file"):
        list(talks(tmp_path / "data.jsonl"))
    with gzip.open(tmp_path / "data.jsonl.gz", "wt") as file:
        file.write(json.dumps({"messages": talk("a", "b", "never answered")}))
    assert list(talks(tmp_path / "data.jsonl.gz")) == [talk("a", "b")]


def test_problems_and_their_solutions(tmp_path: Path) -> None:
    rows = [{"problem": "2 + 2?", "solution": "It is \\boxed{4}."}, {"problem": "Prove it.", "solution": " "}]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question_field": "problem", "answer_field": "solution", "solution_field": "solution"}
    made = list(talks(tmp_path / "data.jsonl", None, "be brief", **columns))
    assert made == [talk("2 + 2?", "It is \\boxed{4}.", system="be brief"), None]
    assert len(list(talks(tmp_path / "data.jsonl", None, None, limit=1, **columns))) == 1
    with pytest.raises(ValueError, match=r"line 1: no field 'text'; there are problem, solution: set data\."):
        list(talks(tmp_path / "data.jsonl", None, None, **columns | {"question_field": "text"}))


EXPERIMENTS = sorted(
    path.stem for path in (conf_dir() / "experiment").glob("*_sft.yaml") if not path.stem.startswith("smollm2")
)
"""The paper's."""


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_shows_its_plan(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"+experiment={name}", "dry_run=true"]) == 0
    printed = capsys.readouterr().out
    config = parse([f"+experiment={name}"])
    assert (config.learning_rate, config.sequences_per_update, config.out) == (1e-5, 80, f"./models/{name}")
    assert config.data.path == "AI-MO/NuminaMath-CoT" and config.model.shape is not None
    assert "4 ranks on one machine, 1 passes over AI-MO/NuminaMath-CoT" in printed and "optimizer" in printed
    assert "final answer within \\boxed{}." in printed and "What is $2 + 3$?" in printed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_starts_where_its_ranks_find_gpus_that_hold_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to where it looks for the model; a stand-in for nvidia-smi, not for what reads it."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\ni=0; while [ $i -lt $GPUS ]; do echo $MIB; i=$((i+1)); done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    named = Path(parse([f"+experiment={name}"]).model.path).name  # its shape is known by this name
    arguments = [f"+experiment={name}", "device=gpu", f"out={tmp_path / 'out'}", f"model={tmp_path / named}"]

    def refusal(gpus: int, mib: int, *more: str) -> str:
        monkeypatch.setenv("GPUS", str(gpus))
        monkeypatch.setenv("MIB", str(mib))
        assert main([*arguments, *more]) == 2
        return capsys.readouterr().err

    assert "is no folder here" in refusal(4, 81559)
    assert refusal(2, 81559).startswith(
        "error: ranks: 4 ranks need a GPU each, and this machine has 2; lower ranks, or pass device=cpu"
    )
    small = refusal(4, 8192)
    assert re.search(
        r"a rank needs about [\d.]+ GiB = weights .*, and a GPU here has 8; pass a tokens_per_micro_batch below 8192, "
        r"a zero_stage above 2 or more ranks",
        small,
    ), small
    assert "gradient_checkpointing=true" in refusal(4, 8192, "gradient_checkpointing=false")


def test_what_is_learnt_is_what_is_trained_on_later() -> None:
    """The supervised policy is the one that the RL experiments of its name start from, asked in the same way."""
    for name in EXPERIMENTS:
        taught = parse([f"+experiment={name}"])
        trained = compose([f"+experiment={name.removesuffix('_sft')}_majority"]).policy
        assert (trained.path == taught.out) == name.startswith("qwen")
        assert taught.model.model_copy(update={"path": trained.path}) == trained


def test_the_end_of_a_turn_becomes_the_end_of_text(folder: Path) -> None:
    """As with Qwen's base models, whose own end of text stands after documents: engines would sample past turns."""
    path = folder / "tokenizer" / "tokenizer_config.json"
    spec = json.loads(path.read_text()) | {"eos_token": "<|pad|>"}
    path.write_text(json.dumps(spec))
    tokenizer = tokenizer_of(parse(settings(folder)).model)
    assert tokenizer.eos_token == "<|im_end|>"
    (folder / "generation_config.json").write_text("{}")
    write_tokenizer(tokenizer, folder)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == tokenizer.eos_token_id
    assert json.loads((folder / "tokenizer_config.json").read_text())["eos_token"] == "<|im_end|>"


def test_what_fits_is_kept_and_the_rest_counted(folder: Path) -> None:
    write(folder / "data.jsonl", [talk("a", "b")] * 9 + [talk("a", "b" * 96)])
    made = prepare(parse(settings(folder, "evaluation_share=0.34")))
    assert (len(made.training), len(made.held_out), made.num_dropped) == (6, 3, 1)
    with pytest.raises(ValueError, match=r"none of the 10 conversations in .* fits 5 tokens"):
        prepare(parse(settings(folder, "max_tokens=5")))


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 200}))
    with pytest.raises(ValueError, match=r"model.tokenizer: .* has ids up to 258, the model's vocabulary ends at 199"):
        located(parse(settings(folder)))


def test_a_token_without_an_embedding_is_refused_where_it_is_learnt(folder: Path) -> None:
    """A special token beyond the embedding is no fault of a model, as Gemma 3 has one."""
    (folder / "config.json").write_text(json.dumps(MODEL | {"vocab_size": 258}))
    with pytest.raises(ValueError, match=r"data.jsonl has '<\|im_start\|>' in it, a token for which the model has no"):
        prepare(located(parse(settings(folder))))


def test_every_epoch_visits_everything_once() -> None:
    visited = [index for step in range(7) for index in of_step(step, 10, 4, seed=1)]
    first, second = visited[:10], visited[10:20]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert of_step(3, 10, 4, seed=1) == visited[12:16] != of_step(3, 10, 4, seed=2)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere", "model.path: '/nowhere' is no folder here; name a folder or a Hugging Face id (owner/name)"),
        ("/nowhere.json model.tokenizer=x", "model.path: there is no model config /nowhere.json"),
        ("asset:tiny_policy data=/nowhere.jsonl", "data.path: there is no file /nowhere.jsonl; pass data.path=FILE ("),
        ("asset:tiny_policy model.chat_template=<|begin_of_text|>", "model.chat_template: it writes <|begin"),
    ],
)
def test_what_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str], model: str, message: str) -> None:
    given = [f"data={folder / 'data.jsonl'}", f"out={folder / 'out'}", *f"model={model}".split()]
    assert main(given) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_nothing_is_written_over(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "config.json").write_text("{}")
    assert main([f"data={folder / 'data.jsonl'}", f"out={made}", "model=asset:tiny_policy", "-v"]) == 2
    assert capsys.readouterr().err == (
        f"error: out: {made / 'config.json'} is there already, and nothing is written over: name another folder, "
        "remove that one, or pass resume=true to go on from its checkpoint\n"
    )


# -- a look at it


def verdict(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    """Exit code, and the lines of the verdict."""
    code = main([*arguments, "dry_run=true"])
    lines = capsys.readouterr().out.splitlines()
    start = max(n for n, line in enumerate(lines) if line.startswith("this machine: "))
    return code, lines[start + 1 :]


def test_a_dry_run_reads_what_the_training_would(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert verdict(capsys, *settings(folder)) == (
        0,
        ["verdict: this run can start on this machine; everything was looked at"],
    )
    assert verdict(capsys, *settings(folder, "model=asset:tiny_policy", "model.tokenizer=null"))[0] == 0
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ("data=/none.jsonl", "data.path: there is no file /none.jsonl; pass data.path="),
        ("data={folder}/bad.jsonl", "bad.jsonl, line 1: no assistant message, so nothing to learn"),
        ("max_tokens=5", "none of the 40 conversations in {folder}/data.jsonl fits 5 tokens"),
        ("model=/nowhere model.tokenizer=null", "model.path: '/nowhere' is no folder here; name a folder or"),
        ("model={folder}/none.json", "model.path: there is no model config {folder}/none.json"),
        ("model.tokenizer=/nowhere", "model.tokenizer: '/nowhere' is no folder here; name a folder or"),
        ("model={folder}/broken.json", "{folder}/broken.json is not JSON (Expecting "),
        ("resume=true", "nothing to resume: there is no {folder}/out/checkpoint"),
        ("resume=true out={folder}/older", "out: the checkpoint {folder}/older/checkpoint is of format 1, which"),
        ("out={folder}", "out: {folder}/config.json is there already, and nothing is written over"),
        ("model.path=random model.tokenizer=asset:tiny_policy", "model.path: a random model needs model.shape and"),
    ],
)
def test_a_dry_run_says_why_it_could_not_start(
    folder: Path, given: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder / "bad.jsonl", [[{"role": "user", "content": "say one"}]])
    (folder / "broken.json").write_text("{")
    (folder / "older" / "checkpoint").mkdir(parents=True)
    (folder / "older" / "checkpoint" / "trainer.json").write_text("{}")
    code, lines = verdict(capsys, *settings(folder), *given.format(folder=folder).split())
    assert code == 2 and lines[-1] == "verdict: this run cannot start (1 fault)"
    assert lines[-2].startswith(f"fault: {fault.format(folder=folder)}")


def test_a_dry_run_for_elsewhere_says_what_is_not_here(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verdict(capsys, *settings(folder), "model=/there", "model.tokenizer=null", "device=gpu", "ranks=2")
    assert (code, lines) == (
        0,
        [
            "not looked at: model.path /there: no folder here; it must be one where the run is",
            "verdict: this run can start where there are 2 such GPUs; as far as it could be looked at from here",
        ],
    )
    (folder / "data.jsonl").write_text("{}\n")
    code, lines = verdict(capsys, *settings(folder), "model=/there", "model.tokenizer=null", "device=gpu", "ranks=2")
    assert code == 2 and lines[-2].startswith("fault: data.jsonl, line 1: must be ")


# -- a run


def run(folder: Path, *more: str) -> str:
    command = [sys.executable, "-m", "capo_ray.sft", *settings(folder, *more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"loss (\d\.\d+)  rate", output)]


@pytest.mark.engine
def test_it_learns_and_goes_on_where_it_stopped(folder: Path) -> None:
    """6 steps and 6 resumed on one rank == 12 on two; after 78 more it says what it was taught."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    common = [
        "learning_rate=0.01",
        "schedule=constant",
        "sequences_per_update=10",
        "report_every=6",
        "max_grad_norm=10",
        "device=cpu",
        "checkpoint_every=6",
    ]
    begun = run(folder, *common, "steps=6")
    resumed = run(folder, *common, "steps=12", "resume=true", "evaluation_share=0")
    straight = run(folder, *common, "steps=12", "ranks=2", "zero_stage=2", f"out={folder / 'straight'}")
    assert "40 conversations to learn from, 0 held out, 0 too long or without a" in begun and "tokens/s" in begun
    assert losses(begun) + losses(resumed) == pytest.approx(losses(straight), abs=2e-3)
    # Soon after the stop: Adam makes other weights of other roundings, 2e-5 apart after 12 steps, over 0.01 after 90.
    models = [AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("out", "straight")]
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(one, other, atol=1e-3)

    went_on = losses(run(folder, *common, "steps=90", "resume=true", "evaluation_share=0"))
    assert went_on[-1] < 0.2 < 3 < losses(begun)[0]
    model = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "out")
    prompt = tokenizer.apply_chat_template(
        talk("say three"), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(reply) == "three<|im_end|>"


@pytest.mark.engine
def test_an_adapter_learns_beside_a_model_and_is_merged_into_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from capo_ray.export import main as export

    common = ["learning_rate=0.01", "schedule=constant", "sequences_per_update=10", "report_every=6", "device=cpu"]
    run(folder, *common, "steps=36", f"out={folder / 'base'}")
    adapted = [*common, f"model={folder / 'base'}", "model.tokenizer=null", "lora.rank=4", "lora.dropout=0.1"]
    begun = losses(run(folder, *adapted, "steps=6", "checkpoint_every=6"))
    gone_on = losses(run(folder, *adapted, "steps=60", "resume=true", "ranks=2", "zero_stage=2"))
    assert gone_on[-1] < 0.7 * begun[0], (begun, gone_on)
    given = settings(folder, *adapted, "lora.rank=5", "steps=61", "resume=true")
    for more in ([], ["dry_run=true"]):
        assert main([*given, *more]) == 2
        said = capsys.readouterr()
        assert "lora: the checkpoint" in said.err + said.out and "LoRA of rank 4 and alpha 32" in said.err + said.out
    assert export([str(folder / "out"), "merge=true", f"out={folder / 'merged'}"]) == 0
    names = {path.name for path in (folder / "merged").iterdir()}
    assert names == {path.name for path in (folder / "base").iterdir()} - {"checkpoint"}
    models = [AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32) for name in ("base", "merged")]
    changed = [
        name
        for (name, one), (_, other) in zip(*(model.named_parameters() for model in models), strict=True)
        if not torch.equal(one, other)
    ]
    assert len(changed) == 14 and all(name.endswith("proj.weight") for name in changed)
    for name in ("config.json", "generation_config.json"):
        said_by = [json.loads((folder / place / name).read_text())["eos_token_id"] for place in ("base", "merged")]
        assert said_by[0] == said_by[1]


@pytest.mark.engine
def test_a_fault_ends_with_one_message(folder: Path) -> None:
    command = [sys.executable, "-m", "capo_ray.sft", *settings(folder, "resume=true")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.endswith(
        f"nothing to resume: there is no {folder / 'out/checkpoint'}\n"
    )
    assert "Traceback" not in done.stderr
    wild = ["learning_rate=1e14", "schedule=constant", "steps=4", "device=cpu"]
    done = subprocess.run([*command[:3], *settings(folder, *wild)], capture_output=True, text=True, timeout=100)
    assert (
        done.returncode == 1
        and "error: the gradient of step 2 is not finite: try a lower learning_rate\n" in done.stderr
    )
    assert "Traceback" not in done.stderr and not (folder / "out" / "config.json").exists()
