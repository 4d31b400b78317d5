"""Weights on their way to servers: whole, merged, as an adapter, and over NCCL as far as a CPU goes."""

from __future__ import annotations

import base64
import copy
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from fake_vllm import FakeVllm, Status, serving
from sightline.config.sections import Lora
from sightline.errors import UserError
from sightline.policy.load import Policy, load_policy
from sightline.sampling.server_client import ServerClient, ServerDown
from sightline.sampling.server_nccl import NcclCarrier
from sightline.sampling.server_weights import (
    ADAPTER,
    AdapterCarrier,
    FolderCarrier,
    adapter_obstacle,
    full_state,
    merged_state,
)

ONE_FAMILY = pytest.mark.parametrize("policy", ["qwen3_vl"], indirect=True, scope="session")


@pytest.fixture
def adapted(policy: Policy) -> Policy:
    """A policy with an adapter that has learnt something."""
    found = load_policy(policy.source, lora=Lora(rank=4, alpha=8))
    randomised(found)
    return found


def randomised(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _name, parameter in policy.model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


@contextmanager
def server(policy: Policy, **options: Any) -> Iterator[tuple[FakeVllm, ServerClient]]:
    with ExitStack() as stack:
        fake = stack.enter_context(serving(FakeVllm(policy, **options)))
        client = ServerClient(fake.url, timeout=10.0, retries=0)
        stack.callback(client.close)
        yield fake, client


# -- merged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dora", [False, True])
def test_merged_weights_are_pefts_and_the_policys_stay(policy: Policy, dora: bool) -> None:
    tuned = load_policy(policy.source, lora=Lora(rank=4, alpha=8, dora=dora))
    randomised(tuned)
    before = {name: p.detach().clone() for name, p in tuned.model.named_parameters()}
    found = merged_state(tuned)
    after = dict(tuned.model.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    want = dict(copy.deepcopy(tuned.model).merge_and_unload().named_parameters())
    assert set(found) == set(want) == {n for n, _ in policy.model.named_parameters()}
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    changed = {name for name, p in policy.model.named_parameters() if not torch.equal(p, found[name])}
    assert changed
    assert all("language_model" in name for name in changed)


@ONE_FAMILY
def test_trained_rows_are_merged_too(policy: Policy) -> None:
    from sightline.policy.lora import train_rows

    tuned = load_policy(policy.source, lora=Lora(rank=4, alpha=8))
    train_rows(tuned, [5, 9])
    randomised(tuned)
    found = full_state(tuned)
    embedding = next(name for name in found if name.endswith("embed_tokens.weight"))
    own = dict(policy.model.named_parameters())[embedding]
    changed = (found[embedding] != own).any(-1).nonzero().flatten().tolist()
    assert changed == [5, 9]
    assert "rows of the embedding" in adapter_obstacle(tuned)


@ONE_FAMILY
def test_what_vllm_cannot_hold_of_an_adapter(policy: Policy) -> None:
    assert adapter_obstacle(policy) == "the policy has no adapter"
    assert not adapter_obstacle(load_policy(policy.source, lora=Lora(rank=4)))
    assert "DoRA" in adapter_obstacle(load_policy(policy.source, lora=Lora(rank=4, dora=True)))
    assert "vision tower" in adapter_obstacle(load_policy(policy.source, lora=Lora(rank=4, targets="all")))


# -- folder and adapter ----------------------------------------------------------------------------------------------


def test_a_folder_holds_all_weights_and_the_head(policy: Policy, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    carrier = FolderCarrier(tmp_path / "w")
    carrier.prepare(policy, "v1", is_main=True)
    found = load_file(tmp_path / "w" / "v1" / "model.safetensors")
    own = dict(policy.model.named_parameters())
    assert set(found) == {*own, "lm_head.weight"}
    assert all(torch.equal(found[name], p) for name, p in own.items())
    assert torch.equal(found["lm_head.weight"], policy.model.get_output_embeddings().weight)
    carrier.prepare(policy, "v2", is_main=True)
    assert {p.name for p in (tmp_path / "w").iterdir()} == {"v1", "v2"}
    carrier.finish()
    assert [p.name for p in (tmp_path / "w").iterdir()] == ["v2"]
    FolderCarrier(tmp_path / "other").prepare(policy, "v1", is_main=False)
    assert not (tmp_path / "other").exists()


@ONE_FAMILY
def test_what_a_killed_run_left_goes_and_nothing_else(policy: Policy, tmp_path: Path) -> None:
    left = ("0123abcd-7", "0123abcd-8.draft")
    for folder in (tmp_path / "own", tmp_path / "shared"):
        for name in (*left, "notes"):
            (folder / name).mkdir(parents=True)
    own, shared = FolderCarrier(tmp_path / "own", is_own=True), FolderCarrier(tmp_path / "shared")
    for carrier in (own, shared):
        carrier.prepare(policy, "89abcdef-1", is_main=True)
    assert {p.name for p in (tmp_path / "own").iterdir()} == {"notes", "89abcdef-1"}
    assert {p.name for p in (tmp_path / "shared").iterdir()} == {*left, "notes", "89abcdef-1"}
    shared.close()
    assert {p.name for p in (tmp_path / "shared").iterdir()} == {*left, "notes"}


@ONE_FAMILY
def test_no_room_for_weights_is_one_line(
    policy: Policy, adapted: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*sampling\.server\.folder"):
        FolderCarrier(tmp_path / "file").prepare(policy, "v1", is_main=True)

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    for carrier, tuned in ((FolderCarrier(tmp_path / "w"), policy), (AdapterCarrier(tmp_path / "w"), adapted)):
        with pytest.raises(UserError, match="No space left on device"):
            carrier.prepare(tuned, "v1", is_main=True)
    assert not list((tmp_path / "w").iterdir())


@ONE_FAMILY
def test_an_adapter_is_loaded_in_place_and_caches_emptied(adapted: Policy, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    bodies: list[dict[str, Any]] = []

    def loads(path: str, body: dict[str, Any]) -> Any:
        if path == "/v1/load_lora_adapter":
            bodies.append(body)
        return None

    with server(adapted, fault=loads) as (fake, client):
        carrier = AdapterCarrier(tmp_path)
        assert carrier.model("served") == ADAPTER
        carrier.prepare(adapted, "v1", is_main=True)
        with pytest.raises(UserError, match=r"load_lora_adapter answered 404.*serve-help"):
            carrier.deliver(client)
        fake.adapters = True
        carrier.deliver(client)
        assert bodies[-1] == {"lora_name": ADAPTER, "lora_path": str(tmp_path / "v1"), "load_inplace": True}
        assert fake.calls[-3:] == ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
        saved = load_file(tmp_path / "v1" / "adapter_model.safetensors")
        assert saved
        assert all(".lora_" in name for name in saved)


@ONE_FAMILY
def test_keys_that_are_held_a_little_longer_are_waited_for(policy: Policy, tmp_path: Path) -> None:
    answers = iter([False, False, True])

    def held(path: str, _: dict[str, Any]) -> Any:
        return (lambda _: {"success": next(answers)}) if path == "/reset_prefix_cache" else None

    with server(load_policy(policy.source), fault=held) as (fake, client):
        carrier = FolderCarrier(tmp_path)
        carrier.prepare(policy, "v1", is_main=True)
        carrier.deliver(client)
        assert fake.calls[-5:] == ["/reset_prefix_cache"] * 3 + ["/reset_mm_cache", "/reset_encoder_cache"]


@ONE_FAMILY
def test_keys_that_cannot_be_emptied_drain_the_server(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.sampling.server_weights.PAUSES", (0.01,))
    held = {"success": False}
    with server(
        load_policy(policy.source), fault=lambda path, _: (lambda _: held) if path == "/reset_prefix_cache" else None
    ) as (_, client):
        carrier = FolderCarrier(tmp_path)
        carrier.prepare(policy, "v1", is_main=True)
        with pytest.raises(ServerDown, match="somebody else"):
            carrier.deliver(client)


# -- NCCL ------------------------------------------------------------------------------------------------------------


@dataclass
class Wire:
    """In place of NCCL: notes what goes over it, and in which state the server was."""

    fake: FakeVllm
    joined: list[tuple[bytes, int]] = field(default_factory=list)
    sent: list[torch.Tensor] = field(default_factory=list)
    during: list[str] = field(default_factory=list)
    left: list[Any] = field(default_factory=list)

    def unique_id(self) -> bytes:
        return bytes([len(self.joined)]) * 128

    def join(self, unique_id: bytes, size: int) -> Any:
        self.joined.append((unique_id, size))
        self.during.append(self.fake.calls[-1])
        return f"group {len(self.joined)}"

    def broadcast(self, group: Any, tensor: torch.Tensor) -> None:
        self.sent.append(tensor)
        self.during.append(f"{self.fake.calls[-1]} {group}")

    def wait(self) -> None:
        pass

    def leave(self, group: Any) -> None:
        self.left.append(group)


@ONE_FAMILY
def test_transfer_goes_by_the_book(policy: Policy) -> None:
    with server(replace(policy)) as (fake, client):
        wire = Wire(fake)
        carrier = NcclCarrier(policy.device, nccl=wire)
        carrier.prepare(policy, "v1", is_main=True)
        carrier.deliver(client)
        fake.version = "v1"  # what the refresher says to the server next
        paths = [p for p in fake.calls if p not in ("/weight_info", "/get_world_size")]
        assert paths == [
            "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update",
            "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache",
        ]  # fmt: skip
        info = next(b["init_info"] for p, b in zip(fake.calls, fake.bodies, strict=True) if p.startswith("/init_"))
        assert info == {
            "nccl_unique_id_b64": base64.b64encode(bytes(128)).decode(), "world_size": 3, "rank_offset": 1,
            "packed": False,
        }  # fmt: skip
        update = next(b["update_info"] for p, b in zip(fake.calls, fake.bodies, strict=True) if p == "/update_weights")
        own = dict(policy.model.named_parameters())
        assert update["names"] == list(own)
        assert update["shapes"] == [list(p.shape) for p in own.values()]
        assert set(update["dtype_names"]) == {"float32"}
        assert all(torch.equal(a, b) for a, b in zip(wire.sent, own.values(), strict=True))
        assert wire.during == ["/init_weight_transfer_engine", *["/update_weights group 1"] * len(own)]
        carrier.prepare(policy, "v2", is_main=True)
        carrier.deliver(client)
        assert len(wire.joined) == 1
        fake.version = "default"  # started anew: it has left the group
        carrier.prepare(policy, "v3", is_main=True)
        carrier.deliver(client)
        assert wire.left == ["group 1"]
        assert len(wire.joined) == 2


@ONE_FAMILY
@pytest.mark.parametrize("path", ["/init_weight_transfer_engine", "/update_weights"])
def test_a_refused_transfer_is_told_before_anybody_waits(policy: Policy, path: str) -> None:
    def refuses(asked: str, _: dict[str, Any]) -> None:
        if asked == path:
            raise Status(500, "only CUDA")

    with server(replace(policy), fault=refuses) as (fake, client):
        wire = Wire(fake)
        carrier = NcclCarrier(policy.device, nccl=wire)
        carrier.prepare(policy, "v1", is_main=True)
        with pytest.raises(ServerDown, match="only CUDA"):
            carrier.deliver(client)
        assert not wire.sent
        assert len(wire.joined) == len(wire.left) == (path == "/update_weights")


@ONE_FAMILY
@pytest.mark.parametrize("path", ["/init_weight_transfer_engine", "/update_weights"])
def test_a_server_that_fails_while_nccl_waits_is_told(policy: Policy, path: str) -> None:
    """Long after the request went out: nobody ever joins, or reads, and NCCL itself would wait for ever."""
    release = threading.Event()

    def fails(asked: str, _: dict[str, Any]) -> None:
        if asked == path:
            time.sleep(1.0)
            raise Status(500, "a worker died")

    class Stuck(Wire):
        def join(self, unique_id: bytes, size: int) -> Any:
            if path.startswith("/init"):
                release.wait(60)
            return super().join(unique_id, size)

        def broadcast(self, group: Any, tensor: torch.Tensor) -> None:
            release.wait(60)
            super().broadcast(group, tensor)

    with server(replace(policy), fault=fails) as (fake, client):
        wire = Stuck(fake)
        carrier = NcclCarrier(policy.device, nccl=wire)
        carrier.prepare(policy, "v1", is_main=True)
        started = time.monotonic()
        with pytest.raises(ServerDown, match="a worker died"):
            carrier.deliver(client)
        assert time.monotonic() - started < 20
        assert wire.left == (["group 1"] if path == "/update_weights" else [])
        release.set()
