"""Where the name of a policy leads: a shipped one, a folder, or a model on the Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from sightline.errors import UserError
from sightline.policy.processors import read_json
from sightline.policy.weights import INDEX, SINGLE

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
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not constants.HF_HUB_OFFLINE:
        told = (
            f"fetching {repository} from the Hub into {constants.HF_HUB_CACHE}; if cut short, the same command goes on"
        )
        print(told, file=sys.stderr)
    transport: Any = HfHubHTTPError.__mro__[1]  # base class of the HTTP client; which client depends on the version
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(FETCHED)))
    except GatedRepoError as error:
        what, hint = (
            "asks for its terms to be accepted first",
            f"https://huggingface.co/{repository}, then: hf auth login",
        )
        raise UserError(f"'{repository}' {what}", where="model.name", hint=hint) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"no model '{repository}'" + (f" with a revision '{revision}'" if revision else "")
        hint = "for a private one: hf auth login; for your own: give its folder"
        raise UserError(f"{what} on the Hub", where="model.name", hint=hint) from error
    except LocalEntryNotFoundError as error:  # no network, or told to do without
        hint = f"where there is network: hf download {repository}; then copy the folder here and give its path"
        what = f"'{repository}' is neither a folder here nor whole in the cache, and the Hub cannot be reached"
        raise UserError(what, where="model.name", hint=hint) from error
    except (OSError, transport) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        hint = "the same command goes on where it stopped"
        raise UserError(
            f"the download of {repository} was cut short: {reason}", where="model.name", hint=hint
        ) from error
