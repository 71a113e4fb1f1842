"""Servers of critics are looked at before a run starts: is one there, does it take the key, does it serve the model?"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from openai_server import chat, serving_in_thread, unused_endpoint

from capo_ray.config.compose import compose
from capo_ray.config.fault import ConfigError
from capo_ray.config.run import Config
from capo_ray.credit.critique import Reference, render_reply
from capo_ray.credit.template import shipped
from capo_ray.training.build_critics import check_servers, make_critics


async def answer(body: dict[str, Any], request: web.Request) -> web.Response:
    return chat([render_reply([1])] * body.get("n", 1))


def models(*names: str, key: str = "") -> Callable[[web.Request], web.Response]:
    def handle(request: web.Request) -> web.Response:
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            return web.Response(status=401)
        return web.json_response({"data": [{"id": name} for name in names]})

    return handle


def config(*endpoints: str) -> Config:
    given = f"[{','.join(repr(endpoint) for endpoint in endpoints)}]"
    return compose(["+experiment=tiny_cpu", "critic=http", f"critic.endpoints={given}", "critic.served_model=judge"])


def nobody() -> str:
    return asyncio.run(unused_endpoint())


def test_one_that_serves_the_model_or_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    monkeypatch.setenv("http_proxy", nobody())
    for list_models in (models("other", "judge"), models("judge", key="right"), None, lambda _: web.Response(text="<")):
        with serving_in_thread(answer, list_models) as endpoint:
            check_servers(config(endpoint))


def test_what_cannot_be_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    dead = nobody()
    with pytest.raises(ConfigError, match=r"critic.endpoints: no server can be used: .*/v1/models: .*refused"):
        check_servers(config(dead))
    refused = [
        (models("a", "b"), r"critic.served_model: http://.*/v1 serves a, b, not 'judge'"),
        (models("judge", key="right"), "401: it wants another key; see environment variable OPENAI_API_KEY"),
    ]
    for list_models, message in refused:
        with serving_in_thread(answer, list_models) as endpoint, pytest.raises(ConfigError, match=message):
            check_servers(config(endpoint))
    with serving_in_thread(answer, models("judge")) as endpoint, caplog.at_level(logging.WARNING):
        check_servers(config(endpoint, dead))
    assert "/v1/models" in caplog.text and "it is tried again during the run" in caplog.text
    assert "wrong" not in caplog.text


def test_several_critics_write_in_turn() -> None:
    """As configured: two servers of one critic and one of another, four critiques."""

    async def scene(first: str, second: str) -> list[str]:
        other = f"{{kind:http,endpoints:['{second}'],served_model:other}}"
        made = compose(
            [
                *("+experiment=tiny_cpu", "critic=http", f"critic.endpoints=['{first}']", "critic.served_model=judge"),
                f"critic.others=[{other}]",
            ]
        )
        service = make_critics(made, shipped("paper"), [])
        assert service is not None
        critiques = await service.judge("?", Reference("none"), ["a", "b"], response_key="p/0", seed=0, k=3)
        assert [critique.wrong_steps for critique in critiques] == [(1,)] * 3
        return [critique.critic for critique in critiques]

    with serving_in_thread(answer) as first, serving_in_thread(answer) as second:
        names = asyncio.run(scene(first, second))
        hosts = [endpoint.removeprefix("http://").removesuffix("/v1") for endpoint in (first, second)]
    assert names == [f"judge at {hosts[0]}", f"other at {hosts[1]}", f"judge at {hosts[0]}"]


def test_engines_of_one_critic_share_its_critiques() -> None:
    """A server that is down is made up for by an engine of another kind; a second critic votes beside the two."""

    async def flag_the_first(body: dict[str, Any], request: web.Request) -> web.Response:
        return chat([render_reply([0])] * body.get("n", 1))

    async def scene(voting: str) -> list[str]:
        other = f"{{kind:http,endpoints:['{voting}'],served_model:other}}"
        made = compose(
            [
                *("+experiment=tiny_cpu", "critic=http", f"critic.endpoints=['{dead}']", "critic.served_model=judge"),
                *(f"critic.others=[{{kind:truth,same_critic:true}},{other}]", "critic.critiques=4"),
            ]
        )
        service = make_critics(made, shipped("paper"), [])
        assert service is not None
        question, wrong = "Start with 2. Add 3.", ["2 + 3 = 6"]
        critiques = await service.judge(question, Reference("none"), wrong, response_key="p/0", seed=0)
        assert [critique.wrong_steps for critique in critiques] == [(0,)] * 4
        return [critique.critic for critique in critiques]

    dead = nobody()
    with serving_in_thread(flag_the_first) as voting:
        names = asyncio.run(scene(voting))
    assert names == ["truth", f"other at {voting.removeprefix('http://').removesuffix('/v1')}"] * 2
