"""`sightline scenes build-policy`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["BuildPolicy"]


@dataclass(frozen=True, kw_only=True)
class BuildPolicy:
    """Train an embedded policy from nothing, a few minutes on one core; check its gates and write its card."""

    out: Path
    """Folder to write, in Hugging Face layout; must not hold a checkpoint."""
    family: Literal["qwen3_vl", "qwen2_5_vl"] = "qwen3_vl"
    """Which model class, and with it which coordinates."""
    seed: int = 0
    """Of the initial weights and the training scenes."""

    def run(self) -> int:
        from sightline.scenes.build import build_policy

        built = build_policy(self.family, self.out, self.seed)
        print(json.dumps(built.card, indent=2))
        state = "passed its gate" if built.passed else "missed its gate"
        print(f"kept step {built.step}, {state}: {built.folder}")
        print(f"try it: sightline eval --model {built.folder} --limit 100")
        return 0
