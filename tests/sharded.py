"""One of two processes that read attention through a sharded policy; started by tests/policy/test_readout_parallel.py.

    python tests/sharded.py RANK MEETING_FILE OUT CHECKPOINT...

Writes the maps and gradients it finds to OUT/RANK.pt, per family and kind of run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from eager import anchoring, batch_of, visual_keys
from sightline.policy.load import Policy, load_policy
from sightline.policy.readout import MapReadout, MassReadout, Readouts

PROCESSES = 2
LAYERS = (0, 1)


def sharded_policy(folder: Path) -> Policy:
    policy = load_policy(folder, checkpointing=True)
    policy.model.train()
    # a number format for parameters makes the wrapper rebuild the arguments of every layer
    rules = {
        "mesh": init_device_mesh("cpu", (PROCESSES,)),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.float32),
    }
    for layer in [*policy.model.model.language_model.layers, *policy.model.model.visual.blocks, policy.module]:
        fully_shard(layer, **rules)  # type: ignore[arg-type]
    return policy


def run(policy: Policy, rank: int, stops_at: int | None) -> dict[str, object]:
    """Forward and backward of a loss on maps (and on log-probs, unless the forward stops below the head)."""
    policy.module.zero_grad()
    batch = batch_of(policy, seed=rank)
    maps = MapReadout(batch.predictor[None], visual_keys(policy, batch), LAYERS)
    segments = torch.ones(1, 2, batch.ids.shape[1])
    masses = MassReadout(batch.predictor[None], segments, LAYERS)
    outputs = policy.module(batch, readout=Readouts([maps, masses]), stops_at=stops_at)
    (anchoring(list(maps.maps.values())) - outputs.logprobs.sum()).backward()
    found = {n: p.grad.full_tensor() for n, p in policy.model.named_parameters() if p.grad is not None}
    return {"maps": maps.maps, "masses": masses.masses, "gradients": found}


def main() -> None:
    rank, meeting, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    found = {}
    for folder in map(Path, sys.argv[4:]):
        policy = sharded_policy(folder)
        for stops_at in (None, max(LAYERS)):
            found[folder.name, stops_at] = run(policy, rank, stops_at)
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
