"""Probes of the machine: library versions, the device, room for checkpoints."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sightline.doctor.finding import Finding

__all__ = ["device_probe", "disk_probe", "installed", "required", "version_probe"]

SHOWN = ("torch", "transformers", "safetensors", "peft", "numpy", "pillow")


def installed() -> dict[str, str]:
    """Versions of the libraries that decide results."""
    found = {}
    for name in SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def required() -> dict[str, str]:
    """What this package asks of its libraries, as `name: specifier`."""
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requires("sightline") or ()]
    return {one.name: str(one.specifier) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})}


def version_probe(found: Mapping[str, str], wanted: Mapping[str, str]) -> Finding:
    """Compares installed versions with what the package asks for."""
    from packaging.specifiers import SpecifierSet

    import sightline

    wrong = [
        f"{name} {found[name]}, needs {asked}"
        for name, asked in wanted.items()
        if name in found and not SpecifierSet(asked).contains(found[name], prereleases=True)
    ]
    listed = ", ".join(f"{name} {number}" for name, number in found.items())
    said = f"sightline {sightline.__version__}, python {platform.python_version()}, {listed}"
    values: dict[str, Any] = {"sightline": sightline.__version__, "python": platform.python_version(), **found}
    if wrong:
        return Finding(
            level="fail", what="; ".join(wrong), values=values, details=(said,),
            meaning="the contracts with these libraries are tested for other versions; some break silently",
            command="pip install " + " ".join(f"'{line.split()[0]}{line.split('needs ')[1]}'" for line in wrong),
        )  # fmt: skip
    return Finding(level="pass", what=said, meaning="versions this library is tested with", values=values)


def device_probe(device: str, dtype: str, threads: int) -> Finding:
    """Whether the device is there and computes in the number format."""
    import torch

    from sightline.errors import UserError
    from sightline.policy.devices import device_named

    try:
        target = device_named(device)
    except UserError as error:
        there = "cuda" if torch.cuda.is_available() else "cpu"
        return Finding(level="fail", what=error.what, meaning="the run could not start here",
                       command=f"--model.device {there}")  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values: dict[str, Any] = {"device": str(target), "dtype": dtype, "threads": threads, "cores": cores}
    if target.type == "cuda":
        card = torch.cuda.get_device_properties(target)
        free, total = torch.cuda.mem_get_info(target)
        values |= {"name": card.name, "free_gib": free / 2**30, "total_gib": total / 2**30}
        said = f"{target}: {card.name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, {dtype}"
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
            return Finding(level="fail", what=f"{said}: this card does not compute in bfloat16", values=values,
                           meaning="the update would be emulated or fail", command="--model.dtype float32")  # fmt: skip
        if free < 0.9 * total:
            return Finding(level="warn", what=said, values=values, command="nvidia-smi",
                           meaning="something else holds memory of this card")  # fmt: skip
        return Finding(level="pass", what=said, meaning="the device is there", values=values)
    said = f"{target}, {dtype}, {threads} of {cores} threads"
    if threads > cores:
        return Finding(level="warn", what=said, values=values, command=f"--model.threads {cores}",
                       meaning="more threads than cores wait for one another: often several times slower")  # fmt: skip
    if dtype != "float32" and target.type == "cpu":
        return Finding(level="warn", what=said, values=values, command="--model.dtype float32",
                       meaning="this number format is slow and coarse on a CPU")  # fmt: skip
    return Finding(level="pass", what=said, meaning="the device is there", values=values)


def disk_probe(folder: Path, *, weights: float, states: float, keep: int) -> Finding:
    """Whether the checkpoints fit beside each other where runs are written.

    Args:
        folder: where the run folder is made; the nearest existing folder above it counts.
        weights: bytes of the weights of one checkpoint.
        states: bytes of its optimiser state.
        keep: checkpoints that stay, beside the best; one more exists while it is written.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = (keep + 2) * (weights + states)
    said = f"{keep + 2} checkpoints of {_size(weights + states)} need {_size(needed)}, {_size(free)} free at {there}"
    values = {"needed": needed, "free": free}
    if needed > free:
        return Finding(level="fail", what=said, values=values,
                       command="train with --out DIR on another disk, or with --train.keep 1",
                       meaning="saving would fail in the middle of the run")  # fmt: skip
    return Finding(level="pass", what=said, meaning="every checkpoint can be written", values=values)


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
