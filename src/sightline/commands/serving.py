"""Servers for a command that answers: given the policy's weights once, let go of afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.policy.load import Policy
    from sightline.sampling.base import Sampler

__all__ = ["opened_servers"]


@contextmanager
def opened_servers(urls: Sequence[str], policy: Policy) -> Iterator[Sampler | None]:
    """The sampler on these servers, None without any.

    Raises:
        UserError: an address that is none; later, what `ServerSampler` raises.
    """
    if not urls:
        yield None
        return
    from pydantic import ValidationError

    from sightline.config.sampling import Server
    from sightline.errors import UserError
    from sightline.sampling.build import server_sampler

    try:
        settings = Server(urls=tuple(urls))
    except ValidationError:
        raise UserError("an address looks like http://127.0.0.1:8000", where="--sampling.server.urls") from None
    with TemporaryDirectory(prefix="sightline-weights-") as folder:
        sampler = server_sampler(settings, policy, Path(folder))
        try:
            yield sampler
        finally:
            sampler.close()
