"""One vLLM server over HTTP: JSON in, JSON out, retries with growing pauses, and two kinds of failure.

A server that does not answer, answers with a server error or with nonsense is *down*: its work goes to the others. A
request that it refuses would be refused by all of them: that is the user's to mend.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, UserError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

__all__ = ["ServerClient", "ServerDown", "read_key"]

PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds between the first attempts, which double, and at most."""

_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
"""Refusals that are tried again, and that count as failures of the server where they stay."""


class ServerDown(SightlineError):
    """A server that cannot be used for now; the text says why."""


class ServerClient:
    """Sends requests to one server.

    Args:
        url: address without a path.
        timeout: seconds in which a request is answered.
        retries: further attempts after a connection error or a server error.
        key: API key; empty for servers without one.

    Raises:
        UserError: the `openai` package is missing.
    """

    def __init__(self, url: str, *, timeout: float = 600.0, retries: int = 3, key: str = "") -> None:
        if find_spec("openai") is None:
            raise UserError("sampling on servers needs the openai package", hint="pip install 'sightline[server]'")
        self.url = url.rstrip("/")
        self.timeout, self.retries, self._key = timeout, retries, key or "none"
        self._lock = threading.Lock()
        self._client: OpenAI | None = None

    def get(self, path: str, *, timeout: float | None = None, retries: int | None = None) -> Any:
        """What the server answers at `path`; see `post`."""
        return self._send("get", path, {}, timeout, retries)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout: float | None = None,
        retries: int | None = None,
    ) -> Any:  # fmt: skip
        """The decoded answer; text where it is not JSON.

        Raises:
            ServerDown: no answer, or a server error, after all attempts.
            UserError: the server refuses the request.
        """
        return self._send("post", path, {"body": body}, timeout, retries)

    def is_alive(self, timeout: float = 5.0) -> bool:
        """Whether it says that it is well, asked once."""
        try:
            self.get("/health", timeout=timeout, retries=0)
        except (ServerDown, UserError):
            return False
        return True

    def close(self) -> None:
        """Ends the connections; the next request opens new ones."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _send(
        self, verb: str, path: str, sent: dict[str, Any], timeout: float | None, retries: int | None
    ) -> Any:  # fmt: skip
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        seconds = self.timeout if timeout is None else timeout
        left = self.retries if retries is None else retries
        pause = PAUSE
        while True:
            try:
                return getattr(self._opened(), verb)(path, cast_to=object, options={"timeout": seconds}, **sent)
            except APITimeoutError:  # not tried again: whoever is silent for so long will be silent once more
                raise ServerDown(f"no reply within {seconds:g} s") from None
            except APIConnectionError as error:
                down = ServerDown(f"no connection: {error.__cause__ or error}")
            except APIStatusError as error:
                down = self._refused(error, path)
            except ValueError as error:  # a body that calls itself JSON and is none
                raise ServerDown(f"{path} answered with something that is not JSON: {error}") from None
            if not left:
                raise down from None
            time.sleep(pause)
            left, pause = left - 1, min(2 * pause, LONGEST_PAUSE)

    def _opened(self) -> OpenAI:
        from openai import OpenAI

        with self._lock:
            if self._client is None:
                self._client = OpenAI(base_url=self.url, api_key=self._key, max_retries=0)
            return self._client

    def _refused(self, error: APIStatusError, path: str) -> ServerDown:
        """The failure of the server that a status stands for.

        Raises:
            UserError: it is the request's.
        """
        said = _message(error.body) or error.message
        if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or error.status_code in _PASSING:
            return ServerDown(f"{path} answered {error.status_code}: {said}")
        raise UserError(
            f"{path} answered {error.status_code}: {said}", where=self.url, hint=_hint(error.status_code, path, said)
        ) from None


def read_key(path: str) -> str:
    """The API key that a file holds; empty without a file."""
    if not path:
        return ""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise UserError(f"the key cannot be read: {error.strerror}", where="sampling.server.key_file") from None


def _message(body: Any) -> str:
    """What the server says, out of the shapes in which vLLM says it."""
    while isinstance(body, Mapping):
        body = next((body[key] for key in ("error", "message", "detail") if key in body), "")
    return " ".join(str(body).split())[:300] if body else ""


def _hint(status: int, path: str, said: str) -> str:
    if status in (HTTPStatus.UNAUTHORIZED,):
        return "set sampling.server.key_file"
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED):
        return f"start it as `sightline serve-help RECIPE` says, so that it offers {path}"
    if any(words in said for words in ("max_model_len", "maximum model length", "context length")):
        return "raise its --max-model-len, or lower model.max_pixels on both sides"
    if "image(s)" in said or "limit-mm-per-prompt" in said:
        return "raise the number in its --limit-mm-per-prompt"
    return ""
