"""Where the name of a policy leads: a shipped one, a folder, or a model on the Hub."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sightline.errors import UserError
from sightline.policy.processors import read_json
from sightline.policy.weights import INDEX, SINGLE
from sightline.progress import is_first_process

__all__ = ["checkpoint_folder"]

SHIPPED = Path(__file__).parent.parent / "scenes" / "checkpoints"

FETCHED = ("*.json", "*.safetensors", "*.txt", "*.jinja")
"""What is fetched: weights as safetensors, and text files; neither pickles nor code."""


def checkpoint_folder(name: str) -> Path:
    """Resolves a model name to a local folder.

    A model on the Hub is `owner/name`, or `owner/name@revision` for a branch, tag or commit. What is whole in the local
    cache is used as it is, without a look at the network, so that a run that goes on has the weights it began with.

    Raises:
        UserError: an unknown embedded policy, or a name that is neither a folder nor to be had from the Hub.
    """
    if name.startswith("embedded:"):
        return _embedded(name.removeprefix("embedded:"))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(f"no such folder: {name}", where="model.name", hint="a model on the Hub goes by owner/name")
    repository, _, revision = name.partition("@")
    return _cached(repository, revision or None) or _fetched(repository, revision or None)


def _embedded(family: str) -> Path:
    shipped = {p.parent.name: p.parent for p in SHIPPED.glob("*/config.json")}
    if family not in shipped:
        raise UserError(
            f"no embedded policy '{family}'", where="model.name",
            hint="use " + " or ".join(f"embedded:{f}" for f in sorted(shipped))
            + f", or build one: sightline scenes build-policy --family {family} --out DIR",
        )  # fmt: skip
    return shipped[family]


def _cached(repository: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if all its weights are there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(FETCHED)}
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **wanted))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise UserError(
            f"'{repository}' is neither a folder here nor the name of a model on the Hub", where="model.name",
            hint="give a local folder, owner/name, or embedded:qwen3_vl",
        ) from error  # fmt: skip
    return folder if _is_whole(folder) else None


def _is_whole(folder: Path) -> bool:
    """Whether a snapshot has its config and every weight file; a download that was cut short leaves some out."""
    if not (folder / INDEX).exists():
        return (folder / "config.json").exists() and (folder / SINGLE).exists()
    try:
        files = set(read_json(folder / INDEX).get("weight_map", {}).values())
    except (UserError, AttributeError, TypeError):
        return False
    return (folder / "config.json").exists() and all((folder / name).exists() for name in files)


def _fetched(repository: str, revision: str | None) -> Path:
    """Downloads what is not there yet; a second call goes on where the first was cut short."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    size = _size(repository, revision)
    told = f"fetching {repository} ({size / 1e9:.1f} GB) from the Hub into {constants.HF_HUB_CACHE}"
    if is_first_process():
        print(f"{told}; if it is cut short, the same command goes on", file=sys.stderr)
    transport: Any = HfHubHTTPError.__mro__[1]  # base class of the HTTP client; which client depends on the version
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED)))
    except (OSError, transport) as error:
        raise UserError(
            f"the download of {repository} was cut short: {_reason(error)}", where="model.name",
            hint="the same command goes on where it stopped",
        ) from error  # fmt: skip


def _size(repository: str, revision: str | None) -> int:
    """Bytes of what a download fetches; the first question to the Hub, which tells whether there is a way at all."""
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    transport: Any = HfHubHTTPError.__mro__[1]
    try:
        files = model_info(repository, revision=revision, files_metadata=True).siblings or ()
    except GatedRepoError:
        what = "asks for its terms to be accepted first"
        hint = f"https://huggingface.co/{repository}, then: hf auth login"
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" with a revision '{revision}'" if revision else ""
        what, hint = f"is no model on the Hub{at}", "for a private one: hf auth login; for your own: give its folder"
    except HfHubHTTPError as error:
        what, hint = f"cannot be had from the Hub: {_reason(error)}", "the same command tries again"
    except (OSError, transport):  # no network, or told to do without
        off = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        what = f"is neither a folder here nor whole in the cache, and the Hub cannot be reached{off}"
        hint = f"where there is network: hf download {repository}; then copy the folder here and give its path"
    else:
        return sum(f.size or 0 for f in files if any(fnmatch(f.rfilename, pattern) for pattern in FETCHED))
    raise UserError(f"'{repository}' {what}", where="model.name", hint=hint)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
