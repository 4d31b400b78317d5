"""Which policy a command speaks to: a shipped one, a model or adapter folder, a Hub name, or the newest of a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import UserError

if TYPE_CHECKING:
    from sightline.policy.load import Policy

__all__ = ["DEFAULT", "check_options", "open_policy", "source", "token_limit"]

DEFAULT = "embedded:qwen3_vl"


def source(name: str) -> str:
    """`name` as `load_policy` takes it; a run folder stands for its newest checkpoint.

    Raises:
        UserError: a run folder without a checkpoint, or one that holds arms.
    """
    path = Path(name)
    if not path.is_dir() or (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return name
    arms = sorted(p.name for p in (path / "arms").iterdir() if p.is_dir()) if (path / "arms").is_dir() else []
    if arms:
        raise UserError("this run has arms", where=name, hint=f"name one: {path / 'arms' / arms[0]}")
    from sightline.train.checkpoint import Checkpoints

    found = Checkpoints(path).all()
    if not found:
        is_run = (path / "recipe.yaml").is_file()
        raise UserError("this folder holds neither a model nor a checkpoint", where=name,
                        hint=f"sightline train {shlex.quote(name)}" if is_run else "")  # fmt: skip
    return str(found[-1])


def open_policy(name: str, *, device: str = "cpu", dtype: str = "float32", threads: int = 1) -> Policy:
    """Loads the policy for inference."""
    import torch

    from sightline.policy.load import load_policy

    torch.set_num_threads(threads)
    return load_policy(source(name), device=device, dtype=dtype)


def check_options(
    *, temperature: float, max_new_tokens: int | None, limit: int | None, seed: int, batch: int = 1
) -> None:
    """Options that `ask` and `eval` share, before anything is loaded.

    Raises:
        UserError: names the first option that is out of range.
    """
    from sightline.sampling.base import SamplingSettings

    SamplingSettings(temperature=temperature, max_new_tokens=1 if max_new_tokens is None else max_new_tokens)
    for name, value, least in (("limit", limit, 1), ("batch", batch, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"must be at least {least}, got {value}", where=f"--{name}")


def token_limit(policy: Policy, wanted: int | None) -> int:
    """Longest reply: what was asked for, else 64 for the embedded policy and 1024 for full-size ones."""
    return wanted if wanted is not None else 64 if policy.style == "compact" else 1024
