"""Ways in which weights reach a server. Each leaves the server on the new weights with empty caches, or raises.

The order is that of vLLM's engine: weights first, then prefix cache, processed images, and last the encoder cache *of
the engine*: the reload empties the worker's own, and a scheduler that still believes in it would ask the worker for
features that are gone.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError

from sightline.errors import UserError
from sightline.sampling.server_client import ServerClient, ServerDown

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.policy.load import Policy

__all__ = [
    "ADAPTER",
    "AdapterCarrier",
    "Carrier",
    "FolderCarrier",
    "NoCarrier",
    "adapter_obstacle",
    "full_state",
    "merged_state",
    "reset_caches",
]

ADAPTER = "sightline-adapter"
"""Name of the adapter on the servers."""

PAUSES = (0.1, 0.4, 1.5)
"""Seconds between attempts to empty the prefix cache."""

_VERSION = re.compile(r"[0-9a-f]{8}-\d+(\.draft)?")

State = Callable[["Policy"], "Mapping[str, Tensor]"]
"""The full tensors of a policy by name; empty in processes that do not write."""


class Carrier(Protocol):
    """Brings weights to servers.

    Attributes:
        kind: the recipe's word for it.
    """

    kind: str

    def prepare(self, policy: Policy, version: str, *, is_main: bool) -> None:
        """Makes the present weights ready to go. Every process of a run calls it; the main one writes."""
        ...

    def deliver(self, client: ServerClient) -> None:
        """Puts the prepared weights onto one server.

        Raises:
            ServerDown: the server failed.
            UserError: it refuses.
        """
        ...

    def model(self, served: str) -> str:
        """The name under which the weights answer, given the name that the server serves."""
        ...

    def finish(self) -> None:
        """All servers have what was prepared."""
        ...

    def close(self) -> None:
        """Nothing is delivered any more."""
        ...


class NoCarrier:
    """The servers hold the right weights already; they are verified, never changed."""

    kind = "none"

    def prepare(self, policy: Policy, version: str, *, is_main: bool) -> None:
        pass

    def deliver(self, client: ServerClient) -> None:
        pass

    def model(self, served: str) -> str:
        return served

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Versions:
    """A folder with one folder per version, of which only the newest stays.

    Args:
        folder: where; it may serve several runs.
        is_own: it belongs to this run alone, so that what a killed one left there can go.
    """

    def __init__(self, folder: Path, *, is_own: bool = False) -> None:
        self.folder, self._is_own = folder.expanduser().resolve(), is_own
        self.path: Path | None = None
        self._old: list[Path] = []

    def write(self, version: str, fill: Callable[[Path], None]) -> None:
        """Fills the folder of a version, which appears under its name once it is whole.

        Raises:
            UserError: it cannot be written.
        """
        draft, path = self.folder / f"{version}.draft", self.folder / version
        try:
            if self._is_own and self.path is None and self.folder.is_dir():
                for left in self.folder.iterdir():
                    if _VERSION.fullmatch(left.name):
                        shutil.rmtree(left)
            draft.mkdir(parents=True, exist_ok=True)
            fill(draft)
            draft.rename(path)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            raise UserError(
                f"weights for the servers cannot be written: {error}", where=str(self.folder),
                hint="set sampling.server.folder to a place with room that the servers see too",
            ) from None  # fmt: skip
        self._old += [self.path] if self.path else []
        self.path = path

    def finish(self) -> None:
        """Drops the versions before the newest, which this object wrote itself."""
        for path in self._old:
            shutil.rmtree(path, ignore_errors=True)
        self._old = []

    def close(self) -> None:
        """Drops the newest too."""
        self._old += [self.path] if self.path else []
        self.path = None
        self.finish()


class FolderCarrier:
    """Saves all weights to a folder that the servers see under the same path, and has them reloaded layer by layer.

    Args:
        folder: holds one folder per version, of which only the newest stays.
        state: the policy -> its full tensors by published name, where they are spread over processes, all of which
            call it. An adapter is merged.
        is_own: the folder belongs to this run alone.
    """

    kind = "folder"

    def __init__(self, folder: Path, state: State | None = None, *, is_own: bool = False) -> None:
        self._versions, self._state = _Versions(folder, is_own=is_own), state

    def prepare(self, policy: Policy, version: str, *, is_main: bool) -> None:
        state = full_state(policy) if policy.lora or self._state is None else dict(self._state(policy))
        if not is_main:
            return
        from sightline.policy.save import write_weights

        self._versions.write(version, lambda path: write_weights(_with_head(policy, state), path))

    def deliver(self, client: ServerClient) -> None:
        if self._versions.path is None:
            raise UserError("no weights are ready", where=str(self._versions.folder))
        wanted = {"method": "reload_weights", "kwargs": {"weights_path": str(self._versions.path)}}
        client.post("/collective_rpc", wanted, retries=0)
        reset_caches(client)

    def model(self, served: str) -> str:
        return served

    def finish(self) -> None:
        self._versions.finish()

    def close(self) -> None:
        self._versions.close()


class AdapterCarrier:
    """Saves a LoRA adapter alone and has it loaded in place of the one before.

    Args:
        folder, state, is_own: as for `FolderCarrier`; the state holds the adapter's tensors.
    """

    kind = "lora"

    def __init__(self, folder: Path, state: State | None = None, *, is_own: bool = False) -> None:
        self._versions, self._state = _Versions(folder, is_own=is_own), state

    def prepare(self, policy: Policy, version: str, *, is_main: bool) -> None:
        state = None if self._state is None else self._state(policy)
        if not is_main:
            return
        from sightline.policy.lora import save_adapter

        self._versions.write(version, lambda path: save_adapter(policy, path, state))

    def deliver(self, client: ServerClient) -> None:
        if self._versions.path is None:
            raise UserError("no adapter is ready", where=str(self._versions.folder))
        body = {"lora_name": ADAPTER, "lora_path": str(self._versions.path), "load_inplace": True}
        client.post("/v1/load_lora_adapter", body, retries=0)
        reset_caches(client)

    def model(self, served: str) -> str:  # noqa: ARG002
        return ADAPTER

    def finish(self) -> None:
        self._versions.finish()

    def close(self) -> None:
        self._versions.close()


def reset_caches(client: ServerClient) -> None:
    """Empties what was computed with other weights: keys and values, processed images, image features.

    Raises:
        ServerDown: keys and values are still held.
    """
    for pause in (*PAUSES, None):  # requests that were given up a moment ago may still hold some
        answer: Any = client.post("/reset_prefix_cache")
        if not (isinstance(answer, Mapping) and answer.get("success") is False):
            break
        if pause is None:
            raise ServerDown("the prefix cache cannot be emptied: requests of somebody else are running")
        time.sleep(pause)
    client.post("/reset_mm_cache")
    client.post("/reset_encoder_cache")


def full_state(policy: Policy) -> dict[str, Tensor]:
    """Parameters under the names of the published layout, a tied one once; adapters and trained rows added."""
    return merged_state(policy) if policy.lora else dict(policy.model.named_parameters())


def merged_state(policy: Policy) -> dict[str, Tensor]:
    """The weights with the adapter in them, what it changes on the CPU; the policy's own stay as they are, to the bit.

    Raises:
        UserError: the weights are stored in four bits.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    if getattr(policy.model, "is_loaded_in_4bit", False):
        raise UserError("weights in four bits cannot be sent whole", where="sampling.server.refresh", hint="use lora")
    if any(hasattr(p, "full_tensor") for p in policy.model.parameters()):
        raise UserError("an adapter on sharded weights cannot be merged", where="sampling.server.refresh",
                        hint="set train.parallel to ddp")  # fmt: skip
    stock = policy.model.get_base_model()
    tuned = {name: module for name, module in stock.named_modules() if isinstance(module, BaseTunerLayer)}
    found = {n: p for n, p in stock.named_parameters() if not any(n.startswith(f"{layer}.") for layer in tuned)}
    seen: set[int] = set()
    for name, module in tuned.items():
        base: Any = module.get_base_layer()
        own = {n: p for n, p in base.named_parameters() if p.data_ptr() not in seen}
        seen |= {p.data_ptr() for p in own.values()}
        kept = {n: p.detach().clone() for n, p in own.items()}
        with torch.no_grad():
            module.merge()
            layer = name.removesuffix(".token_adapter")  # what peft puts around trained rows
            found |= {f"{layer}.{n}": p.detach().cpu().clone() for n, p in base.named_parameters() if n in own}
            module.unmerge()
            for n, p in base.named_parameters():
                if n in own:
                    p.copy_(kept[n])
    return found


def _with_head(policy: Policy, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """On a CPU, a tied output head as a tensor of its own.

    There vLLM packs the head into a copy for its matrix product, which a reload of the embedding alone does not reach;
    on a GPU both are one tensor.
    """
    if policy.device.type != "cpu" or "lm_head.weight" in state:
        return state
    shared = next((t for name, t in state.items() if name.endswith("embed_tokens.weight")), None)
    return state if shared is None else {**state, "lm_head.weight": shared.detach().clone()}


def adapter_obstacle(policy: Policy) -> str:
    """Why vLLM cannot hold this policy's adapter, "" if it can."""
    if not policy.lora:
        return "the policy has no adapter"
    config = policy.model.peft_config["default"]
    if config.use_dora:
        return "vLLM has no DoRA"
    if config.trainable_token_indices:
        return "rows of the embedding are trained, which vLLM does not take with an adapter"
    if any(".lora_" in name and "visual." in name for name, _ in policy.model.named_parameters()):
        return "the adapter reaches into the vision tower"
    return ""
