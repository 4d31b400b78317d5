"""The server sampler on servers that fail: whose work moves, who is told, and what ends a run."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import pytest
import torch

from conversations import prompts
from fake_vllm import Status
from server_stage import GENERATE, ONE_FAMILY, Stage, ask, generating, moved, same
from sightline.errors import UserError
from sightline.sampling.server_client import ServerClient, ServerDown


def failing(code: int, message: str = "broken on purpose") -> Any:
    def fault(*_: Any) -> None:
        raise Status(code, message)

    return fault


def late(*_: Any) -> None:
    time.sleep(2.5)


def saying(reply: Any) -> Any:
    """Answers this, whatever was asked."""
    return lambda *_: lambda _: reply


def edited(change: Any) -> Any:
    def edit(reply: Any) -> Any:
        change(reply)
        return reply

    return lambda *_: edit


DRAINING = {
    "500": (failing(500), r"answered 500: broken on purpose"),
    "503": (failing(503), r"answered 503"),
    "timeout": (late, r"no reply within 1 s"),
    "no json": (saying("{not json"), r"not JSON|no choices"),
    "no choices": (saying({"error": "?"}), r"no choices"),
    "short": (edited(lambda reply: reply["choices"].pop()), r"1 replies in place of 2"),
    "fewer log-probs": (edited(lambda reply: reply["choices"][0]["logprobs"]["content"].pop()), r"with \d+ log-probs"),
    "no ids": (edited(lambda reply: reply["choices"][0].update(token_ids=[])), r"0 tokens"),
    "nan": (edited(lambda reply: reply["choices"][0]["logprobs"]["content"][0].update(logprob=-9999.0)), "-9999"),
    "aborted": (edited(lambda reply: reply["choices"][0].update(finish_reason="abort")), "ended by 'abort'"),
    "no index": (edited(lambda reply: reply["choices"][0].pop("index")), "cannot be read"),
    "other ids": (edited(lambda reply: reply["choices"][0]["logprobs"]["content"][0].update(token_id=99999)),
                  "other tokens"),
}  # fmt: skip


@ONE_FAMILY
@pytest.mark.parametrize("name", DRAINING)
def test_the_work_of_a_failing_server_moves_to_the_other(stage: Stage, name: str) -> None:
    fault, why = DRAINING[name]
    good = stage.serve()
    want = ask(stage.sampler())
    bad = stage.serve()
    sampler = stage.sampler(timeout=1.0) if name == "timeout" else stage.sampler()
    sampler.refresh(stage.policy)
    bad.fault = generating(fault, after=0)
    assert same(ask(sampler), want)
    assert [c.url for c in sampler.pool.alive] == [good.url]
    (drained,) = sampler.alarms()
    assert bad.url in drained
    assert re.search(why, drained), drained
    assert sampler.metrics()["server/moved"] >= 1
    assert sum("is drained" in line for line in stage.told) == 1
    bad.fault = None
    sampler.refresh(stage.policy)
    assert len(sampler.pool.alive) == 2
    assert any("is back" in line for line in stage.told)


REFUSING = {
    "echo": (edited(lambda reply: reply["prompt_token_ids"].__setitem__(3, 7)),
             r"record \w, stream \w+: the server read another prompt than ours: at position 3 it has 7, we have \d+"),
    "short echo": (edited(lambda reply: reply["prompt_token_ids"].pop()), r"it has nothing, we have \d+"),
    "no echo": (edited(lambda reply: reply.pop("prompt_token_ids")), "does not say which prompt ids it read"),
    "no log-probs": (edited(lambda reply: reply["choices"][0].update(logprobs=None)), "recorded no log-probs"),
    "other end": (edited(lambda reply: _write(reply, -1, 65, "stop")), "ended with id 65, for reason 'stop'"),
    "cut": (edited(lambda reply: _cut(reply)), r"cut a reply at 1 of 8 tokens.*--max-model-len"),
    "400": (failing(400), "answered 400: broken on purpose"),
    "long": (failing(400, "longer than the maximum model length of 9216"), r"raise its --max-model-len"),
    "many": (failing(400, "At most 16 image(s) may be provided"), r"--limit-mm-per-prompt"),
    "401": (failing(401), r"answered 401.*set sampling\.server\.key_file"),
    "404": (failing(404), "answered 404.*serve-help"),
}  # fmt: skip


def _write(reply: Any, at: int, token: int, finish: str) -> None:
    choice = reply["choices"][0]
    choice["token_ids"][at] = choice["logprobs"]["content"][at]["token_id"] = token
    choice["finish_reason"] = finish


def _cut(reply: Any) -> None:
    """As vLLM ends a reply where the model length is full."""
    for choice in reply["choices"]:
        choice["token_ids"], choice["finish_reason"] = [65], "length"
        choice["logprobs"]["content"] = [{"logprob": -1.0, "token_id": 65}]


@ONE_FAMILY
@pytest.mark.parametrize("name", REFUSING)
def test_what_every_server_would_do_wrong_ends_the_run(stage: Stage, name: str) -> None:
    fault, why = REFUSING[name]
    fake = stage.serve()
    sampler = stage.sampler()
    sampler.refresh(stage.policy)
    fake.fault = generating(fault, after=0)
    with pytest.raises(UserError, match=why):
        ask(sampler)


@ONE_FAMILY
@pytest.mark.parametrize(("at", "why"), [(-1, r"ended with id \d+, for reason 'length'"), (0, r"went on after id \d+")])
def test_a_turn_ends_with_its_end_and_nowhere_else(stage: Stage, at: int, why: str) -> None:
    fake = stage.serve()
    sampler = stage.sampler()
    sampler.refresh(stage.policy)

    def change(reply: Any) -> None:
        for choice in reply["choices"]:
            if len(choice["token_ids"]) > 1 and (at == 0 or choice["finish_reason"] == "length"):
                entry = choice["logprobs"]["content"][at]
                choice["token_ids"][at] = entry["token_id"] = stage.policy.eos[0]

    fake.fault = generating(edited(change), after=0)
    with pytest.raises(UserError, match=why):
        ask(sampler, n=8)


@ONE_FAMILY
def test_what_is_banned_is_never_taken(stage: Stage) -> None:
    fake = stage.serve()
    sampler = stage.sampler()
    sampler.refresh(stage.policy)
    fake.fault = generating(edited(lambda reply: _write(reply, -1, stage.policy.banned[0], "length")), after=0)
    with pytest.raises(UserError, match="which is banned"):
        ask(sampler)


@ONE_FAMILY
def test_a_passing_fault_is_tried_again(stage: Stage) -> None:
    fake = stage.serve()
    want = ask(stage.sampler())
    count = [0]

    def sometimes(*_: Any) -> None:
        count[0] += 1
        if count[0] % 3 == 0:
            raise Status(503)

    fake.fault = sometimes
    sampler = stage.sampler(retries=6)
    assert same(ask(sampler), want)
    assert not sampler.alarms()


@ONE_FAMILY
def test_silence_is_not_tried_again(stage: Stage) -> None:
    """A server that hangs would otherwise hold the run for its time-out, times the attempts."""
    asked: list[str] = []

    def silent(path: str, _: dict[str, Any]) -> None:
        asked.append(path)
        time.sleep(1.5)

    fake = stage.serve(fault=silent)
    client = ServerClient(fake.url, timeout=0.3, retries=5)
    with pytest.raises(ServerDown, match=r"no reply within 0\.3 s"):
        client.get("/v1/models")
    time.sleep(0.2)
    assert asked == ["/v1/models"]
    client.close()


@ONE_FAMILY
def test_all_dead_is_one_clear_error(stage: Stage) -> None:
    stage.serve(fault=generating(failing(500)))
    stage.serve(fault=generating(failing(500)))
    sampler = stage.sampler(retries=0)
    with pytest.raises(UserError) as caught:
        ask(sampler)
    text = str(caught.value)
    assert all(fake.url in text for fake in stage.fakes)
    assert "no server is left" in text
    assert "type the same command again" in text
    assert "\n" not in text


@ONE_FAMILY
def test_a_request_that_no_server_survives_ends_the_run(stage: Stage) -> None:
    """Every server comes back and passes its probe each time; the request is not asked for ever."""
    poison = prompts()[0].record.id

    def dies(path: str, body: dict[str, Any]) -> None:
        if path == GENERATE and body and body["sampling_params"]["temperature"] == 0.8:
            raise Status(500, f"died of {poison}")

    stage.serve(fault=dies)
    stage.serve(fault=dies)
    with pytest.raises(UserError, match=r"no server is left: .*died of .*died of"):
        ask(stage.sampler(retries=0))
    assert stage.fakes[0].calls.count("/collective_rpc") <= 3


@ONE_FAMILY
def test_closing_does_not_wait_for_a_silent_server(stage: Stage) -> None:
    release = threading.Event()
    asked = threading.Event()

    def silent(*_: Any) -> None:
        asked.set()
        release.wait(60)

    fake = stage.serve()
    sampler = stage.sampler(retries=0)
    sampler.refresh(stage.policy)
    fake.fault = silent
    future = sampler.pool.submit(lambda client: client.post(GENERATE, {"a": 1}))
    assert asked.wait(20)
    started = time.monotonic()
    sampler.close()
    assert time.monotonic() - started < 10
    assert not list((stage.folder / "weights").iterdir())  # nobody reads them any more
    release.set()
    with pytest.raises((UserError, ServerDown)):
        future.result(timeout=20)
    assert not any("drained" in line for line in stage.told)


@ONE_FAMILY
def test_nobody_there_from_the_start(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"no server is left: http://127\.0\.0\.1:9: no connection"):
        ask(stage.sampler(urls=["http://127.0.0.1:9"], retries=0))
    good = stage.serve()
    sampler = stage.sampler(urls=["http://127.0.0.1:9", good.url], retries=0)
    ask(sampler)
    assert [c.url for c in sampler.pool.alive] == [good.url]


@ONE_FAMILY
@pytest.mark.parametrize("api", ["tokens", "chat"])
def test_a_server_started_anew_gets_the_weights_again(stage: Stage, api: str) -> None:
    """In the middle of a step: replies under another weight version are not used."""
    fake = stage.serve(takes_tokens=api == "tokens")
    want = ask(stage.sampler())
    sampler = stage.sampler()
    ask(sampler)
    moved(fake.policy)
    fake.version = "default"
    assert same(ask(sampler), want)
    assert any("started anew" in line for line in stage.told)
    assert fake.version == sampler.refresher.version
    assert all(
        torch.equal(p, q) for p, q in zip(fake.policy.model.parameters(), stage.policy.model.parameters(), strict=True)
    )
