"""Safetensors, read strictly onto a model: every tensor of the model is in the files once, and nothing else is.

Headers are read before any weight, so that whatever does not fit is told at once, by name, and costs no memory. The
tensors are then copied one by one to where they belong: the peak is the model and the shard that is open.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.errors import UserError
from sightline.progress import track

__all__ = ["INDEX", "SINGLE", "Misfit", "Stored", "read_weights", "rows", "stored"]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
"""Number format -> bytes of a number; what is not among them is not read."""
MOST_ROWS = 12
ABSENT, CUT, DAMAGED, ELSEWHERE, UNLISTED = (
    "in a file that is not there",
    "cut off",
    "damaged",
    "not where the index says",
    "not in the index",
)
OF_FILES = (ABSENT, CUT, ELSEWHERE, UNLISTED)
LONGEST_HEADER = 100 * 2**20  # bytes; the format's own limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of a file, as the file's header describes it."""

    key: str
    file: Path
    shape: tuple[int, ...]
    format: str


@dataclass(frozen=True, slots=True)
class Misfit:
    """One row of the table: what is wrong with which tensor, and where."""

    kind: str
    name: str
    detail: str = ""
    file: str = ""


@dataclass(slots=True)
class _Contents:
    tensors: list[Stored] = field(default_factory=list)
    misfits: list[Misfit] = field(default_factory=list)


def read_weights(
    model: nn.Module,
    folder: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    rename: Callable[[str], str] = str,
) -> None:
    """Gives every parameter of a model its tensor from the folder's safetensors files.

    Parameters that share their memory stay shared; either of their names may stand in the files. The model may be on
    the meta device: parameters are made anew on `device`, in `dtype`.

    Args:
        model: the model; its parameters say which names and shapes are expected.
        folder: holds `model.safetensors`, or the index and its shards.
        dtype: number format of the parameters.
        device: where they go.
        rename: from the names of the files to those of the model.

    Raises:
        UserError: with a table of the tensors that are missing, unexpected, cut off or do not fit.
    """
    shared, wanted = _parameters(model)
    contents = _contents(folder)
    sources, misfits = _sources(contents.tensors, wanted, shared, rename)
    lost = {shared.get(rename(m.name), rename(m.name)) for m in contents.misfits}
    misfits = [m for m in misfits if m.kind != "missing" or m.name not in lost]
    _refuse([*contents.misfits, *misfits], folder)
    for entry, value in track(_tensors(sources), "weights", len(sources)):
        name = shared.get(rename(entry.key), rename(entry.key))
        placed = wanted[name]
        if placed.is_meta:
            wanted[name] = placed = nn.Parameter(torch.empty(placed.shape, dtype=dtype, device=device))
            with torch.no_grad():
                placed.copy_(value)
        elif not torch.equal(placed, value.to(placed)):
            twin = next(alias for alias, first in shared.items() if first == name)
            row = Misfit("differs", twin, f"from {name}, to which the configuration ties it", entry.file.name)
            _refuse([row], folder)
    for name in [*wanted, *shared]:
        _place(model, name, wanted[shared.get(name, name)])


def stored(folder: Path) -> list[Stored]:
    """The tensors of a folder's safetensors files; only headers are read.

    Raises:
        UserError: no weights, a damaged file, or an index that does not fit the files.
    """
    contents = _contents(folder)
    _refuse(contents.misfits, folder)
    return contents.tensors


def rows(misfits: Sequence[Misfit], most: int = MOST_ROWS) -> list[str]:
    """The misfits as a table. Where they are many, those of a file or of all layers share a row.

    Example:
        >>> rows([Misfit("missing", f"layers.{i}.up.weight", "8x4") for i in range(30)])
        ['missing  layers.*.up.weight, 30 times  8x4']
    """
    if len(misfits) > most:
        alike: dict[tuple[str, ...], list[Misfit]] = {}
        for m in misfits:
            pattern = re.sub(r"(?<=\.)\d+(?=\.)", "*", m.name)
            alike.setdefault((m.kind, m.file) if m.kind in OF_FILES else (m.kind, pattern, m.detail), []).append(m)
        misfits = [_together(key[1], group) for key, group in alike.items()]
    cells = [(m.kind, m.name, m.detail, m.file) for m in misfits[:most]]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True) if w).rstrip() for row in cells]
    return lines + ([f"and {len(misfits) - most} more rows"] if len(misfits) > most else [])


def _together(pattern: str, group: Sequence[Misfit]) -> Misfit:
    first = group[0]
    if len(group) == 1:
        return first
    if first.kind in OF_FILES:
        return Misfit(first.kind, f"{first.name} and {len(group) - 1} more", "", first.file)
    return Misfit(first.kind, f"{pattern}, {len(group)} times", first.detail)


def _refuse(misfits: Sequence[Misfit], folder: Path) -> None:
    if not misfits:
        return
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(m.kind for m in misfits).items())
    raise UserError(
        f"the weights do not fit the configuration: {kinds}", where=str(folder), rows=rows(misfits),
        hint="is the checkpoint whole, and of this architecture?",
    )  # fmt: skip


def _parameters(model: nn.Module) -> tuple[dict[str, str], dict[str, nn.Parameter]]:
    """Further names of shared parameters -> their first name; and the parameters by first name."""
    wanted = dict(model.named_parameters())
    first = {id(p): n for n, p in wanted.items()}
    every = model.named_parameters(remove_duplicate=False)
    return {n: first[id(p)] for n, p in every if first[id(p)] != n}, wanted


def _place(model: nn.Module, name: str, value: nn.Parameter) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent).register_parameter(leaf, value)


def _sources(
    found: Iterable[Stored], wanted: Mapping[str, Any], shared: Mapping[str, str], rename: Callable[[str], str]
) -> tuple[list[Stored], list[Misfit]]:
    """The tensors to read, and what is wrong with the rest."""
    kept: dict[str, Stored] = {}
    misfits: list[Misfit] = []
    for entry in found:
        name, file = rename(entry.key), entry.file.name
        expected = wanted.get(shared.get(name, name))
        if expected is None:
            misfits.append(Misfit("unexpected", entry.key, _size(entry.shape), file))
        elif entry.shape != tuple(expected.shape):
            detail = f"{_size(entry.shape)} where {_size(expected.shape)} is expected"
            misfits.append(Misfit("of another shape", entry.key, detail, file))
        elif entry.format not in WIDTHS:
            detail = f"{entry.format}; read are {', '.join(WIDTHS)}"
            misfits.append(Misfit("of another number format", entry.key, detail, file))
        elif name in kept:
            misfits.append(Misfit("twice", entry.key, f"also as {kept[name].key}", file))
        if name not in kept:
            kept[name] = entry
    present = {shared.get(name, name) for name in kept}
    misfits += [Misfit("missing", name, _size(p.shape)) for name, p in wanted.items() if name not in present]
    return list(kept.values()), misfits


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "one number"


def _tensors(entries: Iterable[Stored]) -> Iterator[tuple[Stored, torch.Tensor]]:
    """Each tensor in turn, mapped into memory; one file is open at a time."""
    from safetensors import SafetensorError, safe_open

    by_file: dict[Path, list[Stored]] = {}
    for entry in entries:
        by_file.setdefault(entry.file, []).append(entry)
    for file, inside in by_file.items():
        try:
            with safe_open(file, "pt") as opened:
                for entry in inside:
                    yield entry, opened.get_tensor(entry.key)
        except (SafetensorError, OSError) as error:
            raise UserError(f"the weights cannot be read: {error}", where=str(file)) from error


def _contents(folder: Path) -> _Contents:
    """The headers of all files, and what they and the index do not agree on."""
    if (folder / SINGLE).exists():
        return _file(folder / SINGLE)
    if (folder / INDEX).exists():
        return _shards(folder)
    others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".gguf", ".ckpt"))
    raise UserError(
        f"no safetensors weights: neither {SINGLE} nor {INDEX}", where=str(folder),
        hint=f"other formats are not read: {', '.join(others[:4])}" if others else "is the download complete?",
    )  # fmt: skip


def _shards(folder: Path) -> _Contents:
    index = folder / INDEX
    try:
        told: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(told.values()), key=str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"not an index of safetensors files: {error}", where=str(index)) from error
    for name in names:
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise UserError(f"the index names {name!r}, which is no safetensors file", where=str(index))
        if Path(name).name != name:
            raise UserError(f"the index leads out of its folder: {name}", where=str(index))
    all_of = _Contents()
    for name in names:
        mine = [key for key, file in told.items() if file == name]
        if not (folder / name).exists():
            all_of.misfits += [Misfit(ABSENT, key, "", name) for key in mine]
            continue
        part = _file(folder / name)
        here = {t.key for t in part.tensors} | {m.name for m in part.misfits}
        all_of.tensors += part.tensors
        all_of.misfits += part.misfits
        all_of.misfits += [Misfit(ELSEWHERE, k, "", name) for k in mine if k not in here]
        all_of.misfits += [Misfit(UNLISTED, k, "", name) for k in here if told.get(k) != name]
    return all_of


def _file(path: Path) -> _Contents:
    """What the header of one file says, and what cannot be so; the numbers follow it without gaps."""
    start, header = _header(path)
    size, contents = path.stat().st_size, _Contents()
    try:
        found = sorted((_place_of(key, raw), key, raw) for key, raw in header.items() if key != "__metadata__")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the header is damaged: {error}", where=str(path)) from error
    reached = 0
    for (begin, end), key, raw in found:
        shape, kind = tuple(raw["shape"]), raw["dtype"]
        contents.tensors.append(Stored(key=key, file=path, shape=shape, format=kind))
        detail, wanted = "", math.prod(shape) * WIDTHS.get(kind, 0)
        if start + end > size:
            detail = f"needs {start + end} bytes of a file that has {size}"
            contents.misfits.append(Misfit(CUT, key, detail, path.name))
        elif begin != reached:
            detail = f"begins at byte {begin}, where {reached} is the next"
            contents.misfits.append(Misfit(DAMAGED, key, detail, path.name))
        elif kind in WIDTHS and end - begin != wanted:
            detail = f"{end - begin} bytes where {_size(shape)} in {kind} takes {wanted}"
            contents.misfits.append(Misfit(DAMAGED, key, detail, path.name))
        reached = max(reached, end)
    return contents


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Where the numbers of a file begin, and its header: eight bytes of length, then JSON."""
    if not path.is_file():
        raise UserError("this is no file", where=str(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise UserError("this is a pointer of git-lfs, not the weights", where=str(path), hint="git lfs pull")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, LONGEST_HEADER):
            raise UserError(f"the file is cut off or no safetensors file ({size} bytes)", where=str(path),
                            hint="download or copy it again")  # fmt: skip
        try:
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            raise UserError(f"the header is damaged: {error}", where=str(path)) from error
    if not isinstance(header, dict):
        raise UserError("the header is damaged: no table of tensors", where=str(path))
    return 8 + length, header


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} stands in it twice")
    return found


def _place_of(key: str, raw: Any) -> tuple[int, int]:
    """First byte of a tensor and the one behind its last, counted from the end of the header."""
    try:
        shape, (begin, end), kind = raw["shape"], raw["data_offsets"], raw["dtype"]
        is_sound = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (KeyError, TypeError, ValueError):
        is_sound, kind, begin, end = False, "", 0, 0
    if not is_sound or not isinstance(kind, str):
        raise ValueError(f"{key} has no shape, format and place that can be read")
    return begin, end
