"""The server sampler against a server of a few lines: what is asked, what is kept, and the refresh of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from conftest import make_record
from conversations import Crops, ends_often, prompts
from server_stage import GENERATE, ONE_FAMILY, SETTINGS, Stage, ask, moved, nudged, same
from sightline.errors import UserError
from sightline.language.prompts import prompt
from sightline.sampling.base import Request, SamplingSettings
from sightline.sampling.local import LocalSampler
from sightline.sampling.server_pool import ServerPool
from sightline.sampling.server_refresh import learner_logprobs
from sightline.sampling.server_requests import request_seed

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


def test_records_of_servers_that_are_well_stay_where_they_are() -> None:
    """A dead server's records are spread over the others, whose caches keep what they hold."""

    @dataclass
    class Client:
        url: str

    clients = [Client(str(i)) for i in range(3)]
    pool = ServerPool(clients, tell=lambda _: None)  # type: ignore[arg-type]

    def at() -> list[str]:
        return [pool.submit(lambda client: client.url, home=home).result(10) for home in range(12)]

    before = at()
    assert before == ["0", "1", "2"] * 4
    pool.drain(clients[1], "gone")  # type: ignore[arg-type]
    after = at()
    assert all(a == b for a, b in zip(after, before, strict=True) if b != "1")
    assert {a for a, b in zip(after, before, strict=True) if b == "1"} == {"0", "2"}


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


@ONE_FAMILY
def test_a_server_that_keeps_its_weights_is_found_out_within_the_tolerance(stage: Stage) -> None:
    """In half precision an update moves log-probs by less than the tolerance."""
    fake = stage.serve()
    sampler = stage.sampler(tolerance=0.5)
    ask(sampler)
    sampler.refresh(stage.policy)  # nothing moved: nothing to tell
    fake.load = lambda _: None  # type: ignore[method-assign]
    nudged(stage.policy, 1e-4)
    sampler.refresh(stage.policy)  # less than is noticed
    nudged(stage.policy, 3e-2)
    with pytest.raises(UserError, match="to the last bit as it did with earlier weights"):
        sampler.refresh(stage.policy)


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
