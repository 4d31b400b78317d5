"""`sightline serve-help RECIPE`: the commands that start the servers a recipe samples on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tyro.conf import Positional, Suppress

if TYPE_CHECKING:
    from sightline.config import Recipe

__all__ = ["VERSION", "ServeHelp", "serve_command"]

VERSION = "0.32.0"
"""The version of vLLM that is tested."""

PLACE = "http://127.0.0.1:8000"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM makes room."""
PROMPT = 8192
"""Tokens that prompt and images may take, text and all turns of the user."""


@dataclass(frozen=True, kw_only=True)
class ServeHelp:
    """Print the commands that install and start vLLM for a recipe, and the one that trains on it.

    vLLM lives in an environment of its own and pins other versions than this library; nothing of it is imported here.
    """

    recipe: Positional[str]
    """Name of a shipped recipe, a YAML file, or a run folder."""
    overrides: Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        from sightline.config import load_recipe

        print(described(load_recipe(self.recipe, self.overrides), self.recipe, self.overrides))
        return 0


def described(recipe: Recipe, name: str, overrides: tuple[str, ...] = ()) -> str:
    """The whole page."""
    is_cpu = recipe.model.device == "cpu"
    server = recipe.sampling.server
    urls = server.urls if server else (PLACE,)
    lines = [f"# vLLM {VERSION} in an environment of its own, once"]
    if is_cpu:
        lines += ["make vllm-env    # in the source tree of this library; a CPU build, into .vllm"]
    else:
        lines += ["python3 -m venv vllm-env", f"vllm-env/bin/python -m pip install vllm=={VERSION}"]
    lines += [
        "",
        f"# {'one server' if len(urls) == 1 else 'one server each, on devices of their own'}; they must see "
        "the weights' folder under the same path. Dev mode",
        "# opens endpoints that change weights: let nobody else reach the port.",
        *([] if is_cpu else _on_devices(server is not None and server.refresh == "transfer")),
    ]
    trains_on, devices = _devices(recipe, urls)
    for url, device in zip(urls, devices, strict=True):
        lines += [_shown(recipe, url, device), ""]
    words = ["sightline", "train", name, *overrides]
    if server is None:
        words += ["--sampling.server.urls", PLACE]
    return "\n".join([*lines, "# then, in this environment", trains_on + shlex.join(words)])


def _on_devices(is_transfer: bool) -> list[str]:
    """What must be known of a machine's GPUs."""
    if is_transfer:
        return [
            "# Weights go from GPU to GPU: no device is shared, and both environments hold the same version of NCCL."
        ]
    return [
        "# With one GPU in all, leave out CUDA_VISIBLE_DEVICES and add --gpu-memory-utilization 0.35: the",
        "# server takes 0.9 of the device otherwise, and training needs the rest. Training on several GPUs takes the",
        "# first ones: number the servers' devices behind them.",
    ]


def _devices(recipe: Recipe, urls: Sequence[str]) -> tuple[str, list[int | None]]:
    """What stands before the training command, and the GPU of each server; none is given to two of them."""
    if recipe.model.device == "cpu":
        return "", [None for _ in urls]
    number = recipe.model.device.partition(":")[2]
    hosts = [urlsplit(url).hostname or "" for url in urls]
    free = {host: count(1 if _is_here(host) and not number else 0) for host in hosts}
    found: list[int | None] = []
    for host in hosts:
        device = next(free[host])
        if number and _is_here(host) and device == int(number):
            device = next(free[host])
        found.append(device)
    return ("CUDA_VISIBLE_DEVICES=0 " if any(map(_is_here, hosts)) and not number else ""), found


def _is_here(host: str) -> bool:
    return host in ("127.0.0.1", "localhost", "::1", "0.0.0.0")


def serve_command(recipe: Recipe, url: str) -> tuple[dict[str, str], list[str]]:
    """Environment variables and words of the command that serves a recipe's policy at an address."""
    model, server = recipe.model, recipe.sampling.server
    is_cpu = model.device == "cpu"
    executable = ".vllm/bin/vllm" if is_cpu else "vllm-env/bin/vllm"
    place = urlsplit(url)
    variables = {"VLLM_SERVER_DEV_MODE": "1"}
    length = _length(recipe)
    words = [
        executable, "serve", _model(model.name), "--host", place.hostname or "127.0.0.1",
        "--port", str(place.port or 80), "--dtype", model.dtype, "--max-model-len", str(length),
        "--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm",
        "--limit-mm-per-prompt", json.dumps({"image": 16, "video": 0}), "--seed", "0",
    ]  # fmt: skip
    if model.min_pixels or model.max_pixels:
        limits = {"min_pixels": model.min_pixels, "max_pixels": model.max_pixels}
        words += ["--mm-processor-kwargs", json.dumps({k: v for k, v in limits.items() if v})]
    if _sends_adapter(recipe):
        assert model.lora is not None
        rank = next((r for r in RANKS if r >= model.lora.rank), model.lora.rank)
        words += ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", "1"]
        variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    if server is not None and server.refresh == "transfer":
        words += ["--weight-transfer-config", json.dumps({"backend": "nccl"})]
    if is_cpu:
        # a seeded request whose prompt is cut in two ends a CPU server
        words += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(length, 4096)), "--enforce-eager"]
        variables |= {
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(model.threads),
        }  # fmt: skip
    return variables, words


def _shown(recipe: Recipe, url: str, device: int | None) -> str:
    """The command over several lines, ready to paste."""
    variables, words = serve_command(recipe, url)
    if device is not None:
        variables = {"CUDA_VISIBLE_DEVICES": str(device), **variables}
    rows: list[str] = []
    for word in words[3:]:
        if word.startswith("--") or not rows:
            rows.append(shlex.quote(word))
        else:
            rows[-1] += " " + shlex.quote(word)
    first = " ".join([*(f"{k}={v}" for k, v in variables.items()), *(shlex.quote(word) for word in words[:3])])
    return " \\\n    ".join([first, *rows])


def _model(name: str) -> str:
    """The folder of a shipped policy, other names as they are."""
    if not name.startswith("embedded:"):
        return name
    import sightline

    return str(Path(sightline.__file__).parent / "scenes" / "checkpoints" / name.removeprefix("embedded:"))


def _length(recipe: Recipe) -> int:
    """Room for prompt, images and replies, at most what the checkpoint allows."""
    turns = recipe.method_config.model_dump().get("turns")
    said = int(turns["max"]) if isinstance(turns, dict) and "max" in turns else 1
    wanted = PROMPT + recipe.sampling.max_new_tokens * said
    wanted = -(-wanted // 1024) * 1024
    config = Path(_model(recipe.model.name)) / "config.json"
    if not config.is_file():
        return wanted
    raw: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    allowed = raw.get("text_config", raw).get("max_position_embeddings", wanted)
    return min(wanted, int(allowed))


def _sends_adapter(recipe: Recipe) -> bool:
    """Whether an adapter travels by itself; see `sampling/build.py`."""
    lora, server = recipe.model.lora, recipe.sampling.server
    how = server.refresh if server else "auto"
    if lora is None or how not in ("auto", "lora"):
        return False
    return how == "lora" or (not lora.dora and lora.targets == "language")
