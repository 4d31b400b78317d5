"""Configuration of a judge; importing it costs pydantic and nothing else."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["JudgeConfig"]


class JudgeConfig(BaseModel):
    """Who decides where rules cannot: about open answers and about the consistency of two reasoning texts."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Literal["rules", "offline", "http"] = Field(
        default="offline",
        description="rules: answers only; offline: deterministic, no network; http: an OpenAI-compatible server",
    )
    lexicon: str = Field(
        default="english",
        description="word lists of the offline judge: english, or package.module:NAME of a Lexicon",
    )
    url: str = Field(default="", description="http: base address of the server, ending in /v1")
    model: str = Field(default="", description="http: name of the model on the server")
    key_file: str = Field(default="", description="http: file holding the API key; the key never enters the run folder")
    samples: int = Field(default=1, ge=1, le=64, description="http: replies averaged per consistency verdict")
    temperature: float = Field(default=0.0, ge=0.0, le=2.0, description="http: sampling temperature for consistency")
    reading: Literal["strict", "release"] = Field(
        default="strict",
        description="http: strict: rules decide answers first, a reply must be a level and nothing else; release: as "
        "the released iVGR code, which sends every answer and takes a number found in the reply (with samples 4, "
        "temperature 0.5)",
    )
    max_tokens: int = Field(default=16, ge=1, le=65536, description="http: tokens a reply may have")
    timeout: float = Field(default=60.0, gt=0, description="http: seconds for one request")
    total_timeout: float = Field(default=600.0, gt=0, description="http: seconds for all requests of one call")
    retries: int = Field(default=3, ge=0, le=20, description="http: further attempts after a failed request")
    concurrency: int = Field(default=32, ge=1, le=1024, description="http: requests in flight at once")
    cache_path: str = Field(
        default="", description="http: JSONL file of verdicts; empty: judge.jsonl of the run folder"
    )
    math_timeout: float = Field(default=5.0, gt=0, description="seconds for one mathematical comparison")

    @model_validator(mode="after")
    def _http_needs_a_server(self) -> JudgeConfig:
        if self.kind == "http" and not (self.url and self.model):
            raise ValueError(
                "kind http needs url and model, e.g. --judge.url http://localhost:8000/v1 --judge.model NAME"
            )
        return self

    @model_validator(mode="after")
    def _release_reads_replies(self) -> JudgeConfig:
        if self.reading == "release" and self.kind != "http":
            raise ValueError(f"reading release reads the replies of a model: it needs kind http, not {self.kind}")
        return self
