"""The contract of the engines on vLLM, on small random models with tied and with untied embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from capo_ray.config import blocks
from capo_ray.config.critic import Voter
from capo_ray.config.library import OF_ENGINES, OF_ROLLOUTS
from capo_ray.config.model import Model, Shape
from capo_ray.engines.protocols import PromptTooLong, WeightReceipt
from capo_ray.types import Prompt, Rollout, Sampling

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("vllm_environment")]

SHAPE = Shape(parameters=1, layers=2, hidden_size=64, key_value_size=32, vocabulary=640, window=160)
PROMPT = Prompt(id="p", question="q", token_ids=tuple(range(20, 60)), answer="1")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One event loop for the module: an engine belongs to the loop that it was started on."""
    made = asyncio.new_event_loop()
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer of 320 ids with an end token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet)
    made.train_from_iterator(["Start with 17. Add 5.\n\n17 + 5 = 22.\n\n"] * 20, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>").save_pretrained(folder)
    return folder


def make_model(folder: Path, tokenizer: Path, *, tied: bool, seed: int) -> Path:
    from capo_ray.engines.random_model import make_random_model

    make_random_model(folder, SHAPE, tokenizer=str(tokenizer), dtype="float32", seed=seed, tied=tied)
    return folder


def receivers_of(engine: Any, loop: asyncio.AbstractEventLoop, lie: str = "") -> Any:
    """One engine in this process, as the sender sees it; `lie` is the checksum that it confirms in place of its own."""
    from capo_ray.engines.receivers import Receivers

    async def ask(stage: Any, given: dict[str, Any]) -> WeightReceipt | None:
        receipt = await engine.take_weights(stage, given)
        return replace(receipt, checksum=lie) if lie and receipt else receipt

    return Receivers(
        {engine.name: lambda stage, given: asyncio.run_coroutine_threadsafe(ask(stage, given), loop)}, gpus_each=1
    )


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def rollout(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Path,
    loop: asyncio.AbstractEventLoop,
) -> Iterator[tuple[Any, Path, Path]]:
    """An engine, the folder of its model and that of another model of the same shape. At its end: being eager, it has
    compiled nothing, log-probabilities and samples included."""
    from capo_ray.engines.rollout_vllm import VllmRollout
    from capo_ray.engines.vllm_settings import VllmSettings

    compiled = tmp_path_factory.mktemp("compiled")
    folders = [
        make_model(tmp_path_factory.mktemp("model") / "m", tokenizer, tied=request.param, seed=seed) for seed in (1, 2)
    ]

    async def start() -> Any:
        return VllmRollout(
            VllmSettings(
                block=blocks.Rollout(
                    max_response_tokens=24, eager=True, engine={"block_size": 64, "max_num_batched_tokens": 512}
                ),
                model=str(folders[0]),
                tokenizer=str(folders[0]),
                dtype="float32",
                window=None,
                device="cpu",
                weight_transfer="capo_shm",
            ),
            name="rollout-0",
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
        engine = loop.run_until_complete(start())
    yield engine, folders[0], folders[1]

    async def close() -> None:  # on its loop: elsewhere vLLM leaves sockets open, and some later test waits for them
        engine.close()

    loop.run_until_complete(close())
    assert not list(compiled.iterdir())


def sample(
    engine: Any, loop: asyncio.AbstractEventLoop, *, temperature: float = 0.6, seeds: dict[int, int] | None = None
) -> list[Rollout]:
    async def collect() -> list[Rollout]:
        sampling = Sampling(max_tokens=24, temperature=temperature)
        stream: AsyncIterator[Rollout] = engine.generate(PROMPT, sampling, seeds or {0: 5, 1: 6, 2: 7})
        return sorted([rollout async for rollout in stream], key=lambda rollout: rollout.index)

    return loop.run_until_complete(collect())


def plain_logprobs(folder: Path, rollout: Rollout, temperature: float) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[*PROMPT.token_ids, *rollout.token_ids]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0] / temperature, -1)
    start = len(PROMPT.token_ids)
    return logprobs[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0]


def difference(folder: Path, rollouts: list[Rollout], temperature: float = 0.6) -> float:
    import torch

    return max(
        float((plain_logprobs(folder, rollout, temperature) - torch.tensor(rollout.logprobs)).abs().max())
        for rollout in rollouts
    )


def test_rollouts_are_whole_and_their_text_is_what_the_ids_decode_to(
    rollout: tuple[Any, Path, Path], loop: asyncio.AbstractEventLoop
) -> None:
    from transformers import AutoTokenizer

    engine, folder, _ = rollout
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for index, made in enumerate(sample(engine, loop)):
        assert made.index == index
        assert made.prompt_id == "p"
        assert made.finish == ("stop" if made.token_ids[-1] == tokenizer.eos_token_id else "length")
        assert 1 <= len(made.token_ids) <= 24
        assert made.text == tokenizer.decode(made.token_ids, skip_special_tokens=True)


def test_options_by_vllms_names_arrive(rollout: tuple[Any, Path, Path]) -> None:
    """One that nothing else sets, and one in place of what stands in vllm_engine."""
    config = rollout[0]._engine.vllm_config
    assert (config.scheduler_config.max_num_batched_tokens, config.cache_config.block_size) == (512, 64)


@pytest.mark.parametrize(
    ("name", "given", "made"),
    [
        ("max_num_batched_tokens", 4096, 4096),
        ("cpu_offload_gb", 4, 4.0),
        ("cpu_offload_params", ["a"], {"a"}),
        ("max_num_batched_tokens", "4096", "max_num_batched_tokens: Input should be a valid integer, got '4096'"),
        ("enable_prefix_caching", 1, "enable_prefix_caching: Input should be a valid boolean, got 1"),
        ("attention_backend", "FLASH_ATN", "attention_backend: vLLM knows no 'FLASH_ATN'; did you mean FLASH_ATTN?"),
        ("block_sise", 3, "block_sise: vLLM's EngineArgs has no such option; did you mean block_size?"),
        (
            "compilation_config",
            {"modee": 3},
            "compilation_config: modee: Unexpected keyword argument, got {'modee': 3}",
        ),
    ],
)
def test_vllm_is_asked_for_name_and_type(name: str, given: Any, made: Any) -> None:
    from capo_ray.engines.vllm_options import as_vllm_takes

    try:
        assert as_vllm_takes({name: given}) == {name: made}
    except ValueError as error:
        assert str(error) == made


def test_vllm_has_all_that_is_kept_from_it() -> None:
    """A field that vLLM gave another name would no longer be refused under its new one."""
    from capo_ray.engines.vllm_options import known_options

    known = known_options()
    assert set(OF_ROLLOUTS) <= set(known) and set(OF_ENGINES) < set(OF_ROLLOUTS)
    assert any(name.startswith("data_parallel_") for name in known)


def test_equal_seeds_give_equal_responses_and_other_seeds_others(
    rollout: tuple[Any, Path, Path], loop: asyncio.AbstractEventLoop
) -> None:
    engine = rollout[0]
    first = sample(engine, loop, temperature=1.0)
    again = sample(engine, loop, temperature=1.0)
    other = sample(engine, loop, temperature=1.0, seeds={0: 105, 1: 106, 2: 107})
    assert [r.token_ids for r in first] == [r.token_ids for r in again]
    assert [r.token_ids for r in first] != [r.token_ids for r in other]


def test_an_engine_hands_on_whole_responses_and_waits_in_one_loop(
    rollout: tuple[Any, Path, Path], loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of vLLM's thirteen groups each would have a loop that wakes up a hundred times a second."""
    front, sizes = rollout[0]._engine.output_processor, list[int]()
    take = front.process_outputs

    def counted(outputs: Any, *given: Any, **more: Any) -> Any:
        sizes.extend(len(output.new_token_ids) for output in outputs)
        return take(outputs, *given, **more)

    monkeypatch.setattr(front, "process_outputs", counted)
    responses = sample(rollout[0], loop)
    assert sorted(sizes) == sorted(len(response.token_ids) for response in responses)
    (process,) = rollout[0]._engine.engine_core.resources.engine_manager.processes
    threads = [(task / "comm").read_text() for task in Path(f"/proc/{process.pid}/task").iterdir()]
    assert sum(name.startswith("gloo_tcp_loop") for name in threads) == 1


def test_a_prompt_that_does_not_fit_is_refused(
    rollout: tuple[Any, Path, Path], loop: asyncio.AbstractEventLoop
) -> None:
    async def ask() -> None:
        async for _ in rollout[0].generate(PROMPT, Sampling(max_tokens=150), {0: 1}):
            pass

    with pytest.raises(PromptTooLong, match=r"40 tokens and 150 may be sampled: more than the policy's window of 160"):
        loop.run_until_complete(ask())


def test_a_sync_replaces_the_weights_and_its_version_and_checksum_are_confirmed(
    rollout: tuple[Any, Path, Path], loop: asyncio.AbstractEventLoop
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from capo_ray.engines.receivers import WeightMismatch
    from capo_ray.engines.weights_shm import ShmSender

    def files() -> set[Path]:
        return set(Path("/dev/shm").glob("capo_ray-weights-*"))

    before = files()  # of another run on this machine
    engine, old, new = rollout
    assert difference(old, sample(engine, loop)) < 1e-4
    assert difference(new, sample(engine, loop)) > 1e-2  # the two models can be told apart
    weights = dict(AutoModelForCausalLM.from_pretrained(new, dtype=torch.float32).named_parameters())

    async def sync(version: int, lie: str = "") -> str:
        sender = await asyncio.to_thread(ShmSender, receivers_of(engine, loop, lie))
        return await asyncio.to_thread(sender.send, weights.items(), version)

    checksum = loop.run_until_complete(sync(3))
    made = sample(engine, loop)
    assert difference(new, made) < 1e-4
    assert {rollout.versions for rollout in made} == {(3,)}
    assert (engine.version, len(checksum)) == (3, 16)
    assert files() <= before

    with pytest.raises(
        WeightMismatch, match=r"rollout-0 confirms version 4 with checksum 0123456789abcdef, but version 4"
    ):
        loop.run_until_complete(sync(4, "0123456789abcdef"))


def engine_processes() -> set[psutil.Process]:
    return {child for child in psutil.Process().children(recursive=True) if child.name().startswith("VLLM::")}


def test_an_engine_that_does_not_start_says_why(tmp_path: Path, tokenizer: Path) -> None:
    """vLLM itself says to look above, and above is the file that an actor's output goes to, as pytest's does here."""
    from capo_ray.engines.vllm_engine import open_engine
    from capo_ray.engines.vllm_settings import VllmSettings

    block = blocks.Rollout(max_response_tokens=32, eager=True, engine={"load_format": "sharded_state"})
    model = make_model(tmp_path / "model", tokenizer, tied=True, seed=0)
    settings = VllmSettings(
        block=block, model=str(model), tokenizer=str(tokenizer), dtype="float32", window=160, device="cpu"
    )
    with pytest.raises(RuntimeError, match="vLLM's engine did not start: ValueError: Could not find checkpoint files"):
        open_engine(settings)


def test_marks_of_thoughts_that_are_special_tokens_are_kept_for_the_parser(tokenizer: Path) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    from capo_ray.engines.critic_vllm import has_special_marks

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    assert not has_special_marks(loaded)
    loaded.add_tokens([AddedToken("<think>", special=False)])
    assert not has_special_marks(loaded)  # no decoder leaves it out
    loaded.add_tokens([AddedToken("[THINK]", special=True)])
    assert has_special_marks(loaded)


def test_a_critic_completes_n_times_from_one_seed_refuses_what_does_not_fit_and_says_when_it_is_dead(
    tmp_path: Path, tokenizer: Path, loop: asyncio.AbstractEventLoop
) -> None:
    from capo_ray.engines.critic_vllm import VllmCritic
    from capo_ray.engines.vllm_settings import VllmSettings

    folder = make_model(tmp_path / "critic", tokenizer, tied=False, seed=3)
    settings = VllmSettings(
        block=Voter(model=Model(path=str(folder)), eager=True),
        model=str(folder),
        tokenizer=str(folder),
        dtype="float32",
        window=None,
        device="cpu",
    )

    async def use() -> None:
        others = engine_processes()
        engine = VllmCritic(settings, name="critic-0")
        try:
            messages = [{"role": "user", "content": "17 + 5 = 22. " * 6}]
            sampling = Sampling(max_tokens=8, temperature=1.0)
            first = await engine.complete(messages, sampling, n=4, seed=1)
            again = await engine.complete(messages, sampling, n=4, seed=1)
            assert len(first.completions) == 4
            assert len({completion.text for completion in first.completions}) > 1
            assert first.completions == again.completions
            later = await engine.complete(messages, sampling, n=2, seed=1 + 2)
            assert later.completions == first.completions[2:]  # the same critiques, asked for in two rounds
            assert again.cached_tokens > 0
            assert all(completion.truncated == (completion.num_tokens == 8) for completion in first.completions)
            with pytest.raises(PromptTooLong, match="more than the window of 160 of critic-0"):
                await engine.complete(messages, Sampling(max_tokens=158), n=1, seed=1)
            assert not engine.dead
            (process,) = engine_processes() - others
            process.kill()
            with pytest.raises(RuntimeError, match="vLLM's engine has ended: EngineCore"):
                while True:  # it may answer some more before it is heard of
                    await engine.complete(messages, sampling, n=1, seed=1)
            assert engine.dead
        finally:
            engine.close()
        assert not engine.dead  # it was told to end

    loop.run_until_complete(use())
