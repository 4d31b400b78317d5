"""The section `sampling` of a recipe: how rollouts are drawn, and the servers that may draw them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from sightline.config.sections import Section

__all__ = ["Sampling", "Server"]


class Server(Section):
    """vLLM servers that sample in place of this process. `sightline serve-help RECIPE` prints how to start them."""

    urls: Annotated[tuple[Annotated[str, Field(pattern=r"^https?://[^/\s]+/?$")], ...], Field(strict=False)] = Field(
        min_length=1, description="addresses of the servers, e.g. http://127.0.0.1:8000, without a path"
    )
    api: Literal["auto", "tokens", "chat"] = Field(
        default="auto",
        description="how a server is asked: tokens takes token ids with images (every turn), chat renders the prompt "
        "itself (one turn only); auto: tokens where the server offers it",
    )
    timeout: float = Field(default=600.0, gt=0, le=86400, description="seconds in which a request is answered")
    retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="further attempts after an error, with growing pauses, before a server counts as dead",
    )
    concurrency: int = Field(default=64, ge=1, le=4096, description="requests in flight per server")
    refresh: Literal["auto", "folder", "lora", "transfer", "none"] = Field(
        default="auto",
        description="how new weights reach the servers: saved to `folder` and reloaded, a LoRA adapter alone, vLLM's "
        "weight transfer over NCCL, or none (they serve the right weights already); auto: lora for an adapter that "
        "vLLM can hold, else folder",
    )
    folder: str | None = Field(
        default=None,
        min_length=1,
        description="folder for weights that this process writes and the servers read under the same path; null for "
        "`weights` in the run folder",
    )
    tolerance: float | None = Field(
        default=None,
        gt=0,
        description="largest mean difference between log-probs of server and learner on a probe after each refresh, "
        "nats; null for 1e-4 in float32 and 0.05 in half precision",
    )
    importance_cap: float | None = Field(
        default=2.0,
        gt=0,
        description="C: each token's loss is weighted by min(pi_learner / pi_server, C); null for no correction",
    )
    key_file: str = Field(default="", description="file holding the servers' API key; it never enters the run folder")

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        """One address, or several with commas between, may be typed without brackets."""
        return [url.strip() for url in value.split(",")] if isinstance(value, str) else value


class Sampling(Section):
    """How rollouts are sampled. The number of rollouts per stream belongs to the method."""

    temperature: float = Field(
        default=1.0, gt=0, le=10, description="softmax temperature of sampling and of every log-prob"
    )
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="nucleus share; below 1 the learner's log-probs no longer match"
    )
    max_new_tokens: int = Field(
        default=64, ge=1, le=131072, description="longest reply, in tokens, turns of the user excluded"
    )
    batch: int = Field(default=256, ge=1, le=65536, description="rollouts generated side by side, in rows")
    server: Server | None = Field(
        default=None, description="vLLM servers that sample; null samples with the training weights in this process"
    )
