"""Loading takes the memory of one model and one shard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from released import shrunk_config, write_released, write_weights
from sightline.policy.architecture import architecture
from sightline.policy.layouts import tensor_shapes

SCRIPT = """
import sys, torch
from pathlib import Path
from sightline.policy.load import load_policy

def told(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(l for l in lines if l.startswith(key)).split()[1]) * 1024

torch.set_num_threads(1)
load_policy(sys.argv[1])
Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
before = told("VmRSS")
policy = load_policy(sys.argv[2])
print(sum(p.nbytes for p in policy.model.parameters()), told("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from /proc")
def test_the_peak_is_one_model_and_one_shard(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    write_released(small, "Qwen/Qwen3-VL-8B-Instruct", depth=2)
    write_released(large, "Qwen/Qwen3-VL-8B-Instruct", depth=2)
    config = shrunk_config("Qwen/Qwen3-VL-8B-Instruct", depth=2)
    config["text_config"] |= {"num_hidden_layers": 16, "hidden_size": 256, "intermediate_size": 3072}
    config["vision_config"] |= {"out_hidden_size": 256}
    (large / "config.json").write_text(json.dumps(config))
    for old in large.glob("model*"):
        old.unlink()
    write_weights(large, {n: torch.ones(s) for n, s in tensor_shapes(architecture(config)).items()}, files=8)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(small), str(large)], capture_output=True, text=True, check=True
    )
    model, peak = map(int, done.stdout.split())
    shard = model / 2 / 8  # files hold bf16, memory holds fp32
    assert model > 150 * 2**20
    assert model <= peak + 2**20 * 8, "or the measure is wrong"
    assert peak < model + 2 * shard + 8 * 2**20
