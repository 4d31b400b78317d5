"""The sampler that a recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.config.sampling import Sampling, Server
    from sightline.policy.load import Policy
    from sightline.sampling.base import TrainingSampler
    from sightline.sampling.server import ServerSampler
    from sightline.sampling.server_refresh import Everyone
    from sightline.sampling.server_weights import Carrier, State

__all__ = ["build_sampler", "server_sampler"]


def build_sampler(
    sampling: Sampling, policy: Policy, folder: Path, *, world: Everyone | None = None,
    state: State | None = None,
) -> TrainingSampler:  # fmt: skip
    """The local sampler, or servers.

    Args:
        sampling: section of the recipe.
        policy: what samples.
        folder: run folder; weights for servers go into its `weights` unless the recipe names another place.
        world: the processes of the run; None for one.
        state: the policy's full tensors by name, for policies that are spread over processes.
    """
    from sightline.sampling.local import LocalSampler

    if sampling.server is None:
        return LocalSampler(policy, rows=sampling.batch)
    return server_sampler(sampling.server, policy, folder, world=world, state=state)


def server_sampler(
    server: Server, policy: Policy, folder: Path, *, world: Everyone | None = None,
    state: State | None = None,
) -> ServerSampler:  # fmt: skip
    """The sampler of a section `sampling.server`.

    Raises:
        UserError: the refresh that is asked for cannot be done with this policy here.
    """
    from sightline.sampling.server import ServerSampler
    from sightline.sampling.server_client import ServerClient, read_key
    from sightline.sampling.server_pool import ServerPool
    from sightline.sampling.server_refresh import Refresher

    key = read_key(server.key_file)
    clients = [
        ServerClient(url, timeout=server.timeout, retries=server.retries, key=key)
        for url in dict.fromkeys(url.rstrip("/") for url in server.urls)
    ]
    refresher = Refresher(_carrier(server, policy, folder, state), tolerance=server.tolerance, world=world)
    return ServerSampler(policy, ServerPool(clients, concurrency=server.concurrency), refresher, api=server.api)


def _carrier(server: Server, policy: Policy, folder: Path, state: State | None) -> Carrier:
    from sightline.sampling.server_nccl import NcclCarrier
    from sightline.sampling.server_weights import AdapterCarrier, FolderCarrier, NoCarrier, adapter_obstacle

    obstacle = adapter_obstacle(policy)
    if server.refresh == "lora" and obstacle:
        raise UserError(f"the adapter cannot be sent: {obstacle}", where="sampling.server.refresh", hint="use folder")
    place = Path(server.folder) if server.folder else folder / "weights"
    if server.refresh == "none":
        return NoCarrier()
    if server.refresh == "transfer":
        return NcclCarrier(policy.device, state)
    if server.refresh == "lora" or (server.refresh == "auto" and not obstacle):
        return AdapterCarrier(place, state, is_own=server.folder is None)
    return FolderCarrier(place, state, is_own=server.folder is None)
