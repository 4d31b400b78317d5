"""A server that speaks as much of vLLM's HTTP as the sampler needs: random ids, true log-probs, faults on demand."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from sightline.images import image_ref
from sightline.policy.load import Policy
from sightline.sampling.server_refresh import learner_logprobs
from sightline.types import ImageRef, ImageSlot, Message, Prompt, Record, Rollout

Fault = Callable[[str, dict[str, Any]], Any]


class Status(Exception):
    """Answers with a status in place of a reply."""

    def __init__(self, code: int, message: str = "broken on purpose") -> None:
        self.code, self.message = code, message


@dataclass
class FakeVllm:
    """One server.

    Attributes:
        policy: its own copy of the weights, which a reload changes.
        fault: called with the path and body of every request; raises `Status`, sleeps, or returns a function that
            changes the reply.
        calls: paths in the order in which they came.
    """

    policy: Policy
    fault: Fault | None = None
    takes_tokens: bool = True
    adapters: bool = False
    version: str = "default"
    model: str = "served"
    calls: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any]) -> Any:
        with self.lock:
            self.calls.append(path)
            self.bodies.append(body)
        change = self.fault(path, body) if self.fault else None
        reply = self._answer(path, body)
        return change(reply) if change else reply

    def _answer(self, path: str, body: dict[str, Any]) -> Any:
        if path in ("/health", "/reset_mm_cache", "/reset_encoder_cache"):
            return None
        if path == "/v1/models":
            return {"data": [{"id": self.model, "parent": None}]}
        if path == "/reset_prefix_cache":
            return {"success": True}
        if path == "/weight_info":
            return {"weight_version": self.version}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return {"success": True}
        if path == "/get_world_size":
            return {"world_size": 2}
        if path == "/collective_rpc":
            self.load(Path(body["kwargs"]["weights_path"]))
            return {"results": [None]}
        if path == "/inference/v1/generate":
            return self._generate(body)
        if path == "/v1/chat/completions":
            return self._chat(body)
        if path in TRANSFER or (path == "/v1/load_lora_adapter" and self.adapters):
            return {"message": "ok"}
        raise Status(404, "Not Found")

    def load(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        found = load_file(folder / "model.safetensors")
        with self.lock, torch.no_grad():
            for name, parameter in self.policy.model.named_parameters():
                parameter.copy_(found[name])

    def _generate(self, body: dict[str, Any]) -> Any:
        if not self.takes_tokens:
            raise Status(403, "Scale-out endpoints are disabled.")
        if "token_ids" not in body:
            raise Status(400, "token_ids is missing")
        images = tuple(_image(part["url"]) for part in body["content_parts"])
        ids: list[int] = []
        waiting = iter(images)
        for token in body["token_ids"]:
            grid = self.policy.pixels.grid(next(waiting)) if token == self.policy.image_token else (1, 1)
            ids += [token] * math.prod(grid)
        return {"prompt_token_ids": ids, "choices": self.choices(ids, images, body["sampling_params"], named=True)}

    def _chat(self, body: dict[str, Any]) -> Any:
        images: list[ImageRef] = []
        messages = []
        for message in body["messages"]:
            parts: list[Any] = []
            for part in message["content"]:
                if part["type"] == "image_url":
                    parts.append(ImageSlot(len(images)))
                    images.append(_image(part["image_url"]["url"]))
                else:
                    parts.append(part["text"])
            messages.append(Message(message["role"], tuple(parts)))
        record = Record(id="chat", question="", answer="")
        shown = Prompt(record=record, stream="chat", messages=tuple(messages), images=tuple(images))
        ids = self.policy.encode(shown).ids.tolist()
        return {"prompt_token_ids": ids, "choices": self.choices(ids, tuple(images), body, named=False)}

    def choices(self, ids: list[int], images: tuple[ImageRef, ...], asked: dict[str, Any], *, named: bool) -> list[Any]:
        if asked["n"] > 1 and asked["temperature"] == 0:
            raise Status(400, "n must be 1 when using greedy sampling")
        banned = {int(i) for i in asked["logit_bias"]}
        allowed = np.array([i for i in range(256) if i not in banned])
        found = []
        for i in range(asked["n"]):
            drawn = np.random.default_rng(asked["seed"] + i if asked["temperature"] else 0)
            count = int(drawn.integers(1, asked["max_tokens"] + 1))
            reply = [int(t) for t in drawn.choice(allowed, count)]
            finish = "length" if count == asked["max_tokens"] else "stop"
            if finish == "stop":
                reply[-1] = asked["stop_token_ids"][0]
            with self.lock:
                logprobs = self._score(ids, images, reply, asked["temperature"] or 1.0)
            content = [{"logprob": float(lp), **({"token_id": t} if named else {})} for t, lp in zip(reply, logprobs)]  # noqa: B905
            found.append(
                {"index": i, "token_ids": reply, "finish_reason": finish, "logprobs": {"content": content},
                 **({"weight_versions": [{"version": self.version, "start": 0, "end": count}]} if named else {})}
            )  # fmt: skip
        return found[::-1]  # in no particular order

    def _score(self, ids: list[int], images: tuple[ImageRef, ...], reply: list[int], temperature: float) -> Any:
        record = Record(id="fake", question="", answer="", images=images)
        rollout = Rollout(
            prompt=Prompt(record=record, stream="fake", messages=(), images=images), branch=(0,),
            prompt_ids=np.array(ids), ids=np.array(reply), sampled=np.ones(len(reply), bool),
            logprobs=np.zeros(len(reply), np.float32), text="", finish="stop",
        )  # fmt: skip
        return learner_logprobs(self.policy, [rollout], temperature)[0]


TRANSFER = (
    "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update",
)  # fmt: skip


@contextmanager
def serving(fake: FakeVllm, port: int = 0) -> Iterator[FakeVllm]:
    """Answers on a port of this machine until the block ends; connections are refused from then on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send({})

        def do_POST(self) -> None:
            size = int(self.headers.get("content-length") or 0)
            self._send(json.loads(self.rfile.read(size) or b"{}") or {})

        def _send(self, body: dict[str, Any]) -> None:
            status, reply = 200, None
            try:
                reply = fake.answer(urlsplit(self.path).path, body)
            except Status as error:
                status, reply = error.code, {"error": {"message": error.message}}
            data = reply.encode() if isinstance(reply, str) else b"" if reply is None else json.dumps(reply).encode()
            try:
                self.send_response(status)
                self.send_header("content-type", "application/json" if reply is not None else "text/plain")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has given up

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", port), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _image(uri: str) -> ImageRef:
    return image_ref(base64.b64decode(uri.split(",", 1)[1]))
