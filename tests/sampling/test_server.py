"""The server sampler against a server of a few lines: what is asked, what is kept, and every way to fail."""

from __future__ import annotations

import copy
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_record
from conversations import Crops, ends_often, prompts
from fake_vllm import FakeVllm, Status, serving
from sightline.config.sections import Sampling, Server
from sightline.errors import UserError
from sightline.language.prompts import prompt
from sightline.policy.load import Policy
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.build import build_sampler
from sightline.sampling.local import LocalSampler
from sightline.sampling.server import ServerSampler
from sightline.sampling.server_refresh import learner_logprobs
from sightline.sampling.server_requests import request_seed
from sightline.types import Rollout

SETTINGS = SamplingSettings(temperature=0.8, max_new_tokens=8)
GENERATE = "/inference/v1/generate"
ONE_FAMILY = pytest.mark.parametrize("policy", ["qwen3_vl"], indirect=True, scope="session")
"""For what does not depend on the model."""


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)


def twin(policy: Policy) -> Policy:
    """The same weights in other tensors."""
    from sightline.policy.forward import PolicyModule

    adapter = type(policy.adapter)(copy.deepcopy(policy.model))
    return replace(policy, adapter=adapter, module=PolicyModule(adapter, policy.banned))


class Stage:
    """Fake servers and the sampler on them."""

    def __init__(self, policy: Policy, folder: Path, stack: ExitStack) -> None:
        self.policy, self.folder, self.stack = policy, folder, stack
        self.fakes: list[FakeVllm] = []
        self.told: list[str] = []

    def serve(self, **options: Any) -> FakeVllm:
        self.fakes.append(self.stack.enter_context(serving(FakeVllm(twin(self.policy), **options))))
        return self.fakes[-1]

    def sampler(self, *, policy: Policy | None = None, urls: Sequence[str] = (), **options: Any) -> ServerSampler:
        given = {"timeout": 20.0, "retries": 1, "concurrency": 4, **options}
        server = Server(urls=tuple(urls or [fake.url for fake in self.fakes]), **given)
        found = build_sampler(Sampling(server=server), policy or self.policy, self.folder)
        assert isinstance(found, ServerSampler)
        found.pool._tell = found.refresher._tell = self.told.append
        self.stack.callback(found.close)
        return found


@pytest.fixture
def stage(policy: Policy, tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        yield Stage(twin(policy), tmp_path, stack)


def ask(sampler: ServerSampler, n: int = 2, settings: SamplingSettings = SETTINGS) -> list[list[Rollout]]:
    return sampler.sample([Request(p, (n,)) for p in prompts()], settings, seed=0, step=0)


def same(a: Sequence[Sequence[Rollout]], b: Sequence[Sequence[Rollout]]) -> bool:
    return all(
        np.array_equal(x.ids, y.ids) and x.branch == y.branch
        for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )  # fmt: skip


# -- what is asked and what comes of it -----------------------------------------------------------------------------


def test_ids_logprobs_and_finish_are_the_servers(stage: Stage) -> None:
    stage.serve()
    groups = ask(stage.sampler(), n=3)
    assert [[r.branch for r in group] for group in groups] == [[(0,), (1,), (2,)]] * 6
    everyone = [r for group in groups for r in group]
    for rollout, want in zip(everyone, learner_logprobs(stage.policy, everyone, 0.8), strict=True):
        np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)
        assert (rollout.finish == "stop") == (rollout.ids[-1] in stage.policy.eos)
        assert rollout.sampled.all()
    assert {r.finish for r in everyone} == {"stop", "length"}
    local = LocalSampler(stage.policy).sample([Request(p) for p in prompts()], SETTINGS, seed=0, step=0)
    for (mine, *_), (other,) in zip(groups, local, strict=True):
        np.testing.assert_array_equal(mine.prompt_ids, other.prompt_ids)


def test_nothing_is_left_to_the_servers_defaults(stage: Stage) -> None:
    fake = stage.serve()
    ask(stage.sampler())
    body = fake.bodies[-1]
    asked = body["sampling_params"]
    assert asked["stop_token_ids"] == list(stage.policy.eos)
    assert asked["ignore_eos"] is True
    assert {int(i) for i in asked["logit_bias"]} == set(stage.policy.banned)
    assert set(asked["logit_bias"].values()) == {-1e9}
    neutral = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}
    assert {name: asked[name] for name in neutral} == neutral
    assert (asked["temperature"], asked["max_tokens"], asked["logprobs"], body["model"]) == (0.8, 8, 0, "served")


def test_images_arrive_as_the_learner_sees_them(stage: Stage) -> None:
    """At their final size: the server's own resize has nothing to do."""
    from fake_vllm import _image

    record = make_record("big", ((50, 90), (333, 47)))
    shown = prompt(record, "grounded", "grounded", "compact")
    fake = stage.serve()
    stage.sampler().sample([Request(shown)], SETTINGS, seed=0, step=0)
    arrived = [_image(part["url"]) for part in fake.bodies[-1]["content_parts"]]
    assert [i.size for i in arrived] == [stage.policy.frame.resized(i.size) for i in record.images]
    for mine, its in zip(record.images, arrived, strict=True):
        assert torch.equal(stage.policy.pixels.patches(mine), stage.policy.pixels.patches(its))


@ONE_FAMILY
def test_seeds_belong_to_the_rollout_not_to_the_server_or_the_order(stage: Stage) -> None:
    stage.serve()
    alone = ask(stage.sampler())
    stage.serve()
    two = stage.sampler(concurrency=1)
    assert same(alone, ask(two))
    backwards = two.sample([Request(p, (2,)) for p in reversed(prompts())], SETTINGS, seed=0, step=0)
    assert same(alone, backwards[::-1])
    assert not same(alone, two.sample([Request(p, (2,)) for p in prompts()], SETTINGS, seed=0, step=1))
    more = ask(two, n=4)
    assert same(alone, [group[:2] for group in more])
    keys = {request_seed(a, b, c, d, e) for a in (0, 1) for b in (0, 1) for c in "ab" for d in "xy" for e in ((), (1,))}
    assert len(keys) == 32
    assert max(keys) < 2**62


@ONE_FAMILY
def test_a_record_keeps_to_one_server(stage: Stage) -> None:
    homes: dict[str, set[int]] = {}
    for number in range(2):

        def note(path: str, body: dict[str, Any], number: int = number) -> None:
            if path == GENERATE and body and body["sampling_params"]["temperature"] == 0.8:
                homes.setdefault(str(body["content_parts"]), set()).add(number)

        stage.serve(fault=note)
    ask(stage.sampler())
    assert all(len(servers) == 1 for servers in homes.values())
    assert {n for servers in homes.values() for n in servers} == {0, 1}


@ONE_FAMILY
def test_greedy_replies_are_asked_once(stage: Stage) -> None:
    fake = stage.serve()
    (group,) = stage.sampler().sample(
        [Request(prompts()[0], (3,))], SamplingSettings(temperature=0.0, max_new_tokens=8), seed=0, step=0
    )
    assert len(group) == 3
    assert all(np.array_equal(r.ids, group[0].ids) for r in group)
    assert fake.bodies[-1]["sampling_params"]["n"] == 1


@pytest.mark.parametrize("branches", [(3,), (2, 2)])
def test_conversations_are_token_exact(stage: Stage, branches: tuple[int, ...]) -> None:
    policy = ends_often(stage.policy)
    stage.serve()
    stage.serve()
    requests = [Request(p, branches, Crops()) for p in prompts()]
    groups = stage.sampler(policy=policy).sample(requests, SETTINGS, seed=0, step=0)
    everyone = [r for group in groups for r in group]
    assert [[r.branch for r in group] for group in groups] == [list(np.ndindex(*branches))] * 6
    assert any(len(r.turns) > 1 for r in everyone)
    assert any(r.images for r in everyone)
    for rollout, want in zip(everyone, learner_logprobs(policy, everyone, 0.8), strict=True):
        np.testing.assert_allclose(rollout.logprobs, want, atol=1e-5)
        for turn in rollout.turns:
            assert rollout.sampled[slice(*turn.span)].all() == (turn.role == "assistant")


def test_the_chat_form_asks_the_same(stage: Stage) -> None:
    stage.serve(takes_tokens=False)
    chat = stage.sampler()
    groups = ask(chat)
    assert "/v1/chat/completions" in stage.fakes[0].calls
    stage.serve()
    assert same(groups, ask(stage.sampler(urls=[stage.fakes[1].url])))
    with pytest.raises(
        UserError, match=r"several turns need servers that take token ids with images.*enable-scale-out"
    ):
        chat.sample([Request(prompts()[0], turns=Crops())], SETTINGS, seed=0, step=0)


# -- refresh ---------------------------------------------------------------------------------------------------------


def moved(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_new_weights_arrive_and_are_verified(stage: Stage) -> None:
    fake = stage.serve()
    sampler = stage.sampler()
    ask(sampler)
    assert "verified on 1 server (folder)" in stage.told[0]
    moved(stage.policy)
    at = len(fake.calls)
    sampler.refresh(stage.policy)
    for name, parameter in fake.policy.model.named_parameters():
        assert torch.equal(parameter, dict(stage.policy.model.named_parameters())[name]), name
    later = [path for path in fake.calls[at:] if path != "/v1/models"]
    assert later[:6] == [
        "/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/update_weight_version",
        GENERATE,
    ]  # fmt: skip
    assert sampler.metrics()["server/difference"] < 1e-5
    assert [p.name for p in (stage.folder / "weights").iterdir()] == [sampler.refresher.version]


def test_a_server_on_other_weights_is_found_out(stage: Stage) -> None:
    fake = stage.serve()
    moved(fake.policy)
    with pytest.raises(UserError, match=r"log-probs differ from the learner's by .* more than 0\.0001"):
        ask(stage.sampler(refresh="none"))
    forgetful = stage.serve()
    moved(stage.policy, 3)
    forgetful.load = forgetful.calls.append  # type: ignore[assignment,method-assign]
    with pytest.raises(UserError, match="differ from the learner's"):
        ask(stage.sampler(urls=[forgetful.url]))


def test_the_probe_tells_raw_from_processed_logprobs(stage: Stage) -> None:
    """A server without `--logprobs-mode processed_logprobs` reports log-probs at temperature 1."""
    fake = stage.serve()
    score = fake._score
    fake._score = lambda ids, images, reply, _: score(ids, images, reply, 1.0)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="serve-help"):
        ask(stage.sampler())


def test_transfer_is_refused_where_there_is_no_gpu(stage: Stage) -> None:
    stage.serve()
    with pytest.raises(UserError, match=r"the policy is on cpu.*use folder"):
        stage.sampler(refresh="transfer")
    with pytest.raises(UserError, match="the policy has no adapter"):
        stage.sampler(refresh="lora")


# -- faults ----------------------------------------------------------------------------------------------------------


def generating(fault: Any, *, after: int = 1) -> Any:
    """The fault on the requests after the first ones, which the probe takes."""
    lock, seen = threading.Lock(), [0]

    def wrapped(path: str, body: dict[str, Any]) -> Any:
        if path != GENERATE or not body:
            return None
        with lock:
            seen[0] += 1
            if seen[0] <= after:
                return None
        return fault(path, body)

    return wrapped


def failing(code: int) -> Any:
    def fault(*_: Any) -> None:
        raise Status(code)

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
    "timeout": (late, r"no reply within 1 s, 2 times"),
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
    "other end": (edited(lambda reply: _write(reply, -1, 65, "stop")), "ended a turn with id 65 for reason 'stop'"),
    "400": (failing(400), "answered 400: broken on purpose"),
    "401": (failing(401), r"answered 401.*set sampling\.server\.key_file"),
    "404": (failing(404), "answered 404.*serve-help"),
}  # fmt: skip


def _write(reply: Any, at: int, token: int, finish: str) -> None:
    choice = reply["choices"][0]
    choice["token_ids"][at] = choice["logprobs"]["content"][at]["token_id"] = token
    choice["finish_reason"] = finish


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
def test_nobody_there_from_the_start(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"no server is left: http://127\.0\.0\.1:9: no connection"):
        ask(stage.sampler(urls=["http://127.0.0.1:9"], retries=0))
    good = stage.serve()
    sampler = stage.sampler(urls=["http://127.0.0.1:9", good.url], retries=0)
    ask(sampler)
    assert [c.url for c in sampler.pool.alive] == [good.url]


@ONE_FAMILY
def test_a_server_started_anew_gets_the_weights_again(stage: Stage) -> None:
    """In the middle of a step: replies under another weight version are not used."""
    fake = stage.serve()
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
