"""A model whose every response is known, behind the protocol that evaluations see."""

from collections.abc import AsyncIterator, Callable, Mapping

from capo_ray.types import Prompt, Rollout, Sampling


class Scripted:
    def __init__(self, answer: Callable[[str, Sampling, int], str]) -> None:
        """`answer(question, sampling, index)`."""
        self.asked: list[tuple[str, float, int]] = []
        self._answer = answer

    async def generate(self, prompt: Prompt, sampling: Sampling, seeds: Mapping[int, int]) -> AsyncIterator[Rollout]:
        for index in seeds:
            self.asked.append((prompt.id, sampling.temperature, index))
            text = self._answer(prompt.question, sampling, index)
            yield Rollout(
                prompt_id=prompt.id,
                index=index,
                text=text,
                finish="stop",
                token_ids=(1,),
                logprobs=(0.0,),
                char_ends=(len(text),),
                versions=(-1,),
            )


def encode(question: str, system: str | None = None) -> tuple[int, ...]:
    return (1, 2, 3)
