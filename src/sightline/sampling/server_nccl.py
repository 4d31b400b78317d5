"""Weights straight from GPU to GPU: vLLM's weight-transfer API, this process being rank 0 of its NCCL group.

The servers join with an id that this process mints (`nccl_unique_id_b64`), so that nothing of vLLM is needed here::

    POST /init_weight_transfer_engine   once, on all servers at the same time as `ncclCommInitRank` here
    one-element all-reduce              vLLM's workers issue it right after joining
    POST /start_weight_update           per server
    POST /update_weights                names, types, shapes; while it runs, each tensor is broadcast in that order
    POST /finish_weight_update          per server

Every server must be started with `--weight-transfer-config '{"backend": "nccl"}'` on devices of their own: NCCL does
not join two processes on one GPU, nor two versions of itself.
"""

from __future__ import annotations

import base64
import ctypes
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sightline.errors import UserError
from sightline.sampling.server_client import ServerClient, ServerDown
from sightline.sampling.server_weights import full_state, reset_caches

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sightline.policy.load import Policy
    from sightline.sampling.server_weights import State

__all__ = ["Nccl", "NcclCarrier", "NcclLibrary"]


Result = TypeVar("Result")

PROMPT = 0.2
"""Seconds in which a request that the server refuses comes back."""


class Nccl(Protocol):
    """What is needed of NCCL; this process is rank 0 of every group."""

    def unique_id(self) -> bytes:
        """128 bytes that name a new group."""
        ...

    def join(self, unique_id: bytes, size: int) -> Any:
        """The group, once all others have joined and the all-reduce that follows is done."""
        ...

    def broadcast(self, group: Any, tensor: Tensor) -> None:
        """Sends a contiguous tensor to the others of a group."""
        ...

    def wait(self) -> None:
        """Until everything is sent."""
        ...

    def leave(self, group: Any) -> None:
        """Gives up a group whose others are gone."""
        ...


class NcclCarrier:
    """Sends all weights over NCCL, in a group of its own per server: the end of one server leaves the others alone.

    Args:
        device: where the policy's weights are.
        state: the policy's full tensors by name, for policies that are spread over processes.
        nccl: the library; None loads the one that torch brings.

    Raises:
        UserError: there is no CUDA device, or no NCCL library.
    """

    kind = "transfer"

    def __init__(self, device: torch.device, state: State | None = None, nccl: Nccl | None = None) -> None:
        if nccl is None and device.type != "cuda":
            raise UserError(
                f"weight transfer goes from GPU to GPU, but the policy is on {device.type}",
                where="sampling.server.refresh", hint="use folder",
            )  # fmt: skip
        self._nccl = nccl or NcclLibrary(device)
        self._state = state
        self._tensors: dict[str, Tensor] = {}
        self._groups: dict[str, Any] = {}
        self._held: dict[str, str] = {}
        self._version = ""

    def prepare(self, policy: Policy, version: str, *, is_main: bool) -> None:
        state = full_state(policy) if policy.lora or self._state is None else self._state(policy)
        self._tensors, self._version = (dict(state) if is_main else {}), version

    def deliver(self, client: ServerClient) -> None:
        try:
            self._check_group(client)
            if client.url not in self._groups:
                self._groups[client.url] = self._joined(client)
            self._send(client, self._groups[client.url])
        except (ServerDown, UserError):
            self._drop(client)
            raise
        self._held[client.url] = self._version
        reset_caches(client)

    def model(self, served: str) -> str:
        return served

    def finish(self) -> None:
        """The weights are the policy's own again."""
        self._tensors = {}

    def close(self) -> None:
        pass

    def _check_group(self, client: ServerClient) -> None:
        """A server that was started anew left its group: whoever sent into it would wait for ever."""
        answer = client.get("/weight_info")
        if not isinstance(answer, Mapping) or answer.get("weight_version") != self._held.get(client.url):
            self._drop(client)

    def _drop(self, client: ServerClient) -> None:
        if client.url in self._groups:
            self._nccl.leave(self._groups.pop(client.url))

    def _joined(self, client: ServerClient) -> Any:
        size, unique = 1 + _workers(client), self._nccl.unique_id()
        info = {
            "nccl_unique_id_b64": base64.b64encode(unique).decode("ascii"), "world_size": size, "rank_offset": 1,
            "packed": False,
        }  # fmt: skip
        return _during(
            client, "/init_weight_transfer_engine", {"init_info": info}, lambda: self._nccl.join(unique, size)
        )

    def _send(self, client: ServerClient, group: Any) -> None:
        update = {
            "names": list(self._tensors),
            "dtype_names": [str(t.dtype).removeprefix("torch.") for t in self._tensors.values()],
            "shapes": [list(t.shape) for t in self._tensors.values()],
        }

        def broadcast() -> None:
            for tensor in self._tensors.values():
                self._nccl.broadcast(group, tensor.detach().contiguous())
            self._nccl.wait()

        client.post("/start_weight_update", retries=0)
        _during(client, "/update_weights", {"update_info": update}, broadcast)
        client.post("/finish_weight_update", {}, retries=0)


def _during(client: ServerClient, path: str, body: Mapping[str, Any], work: Callable[[], Result]) -> Result:
    """Does the work while the server handles a request that it answers only once the work is done.

    What the server refuses at once is raised before a peer is waited for that never comes. The work is done aside: an
    error of the server, or its silence, is told while NCCL still waits. Neither is waited for after a failure.
    """
    call = _aside(lambda: client.post(path, body, retries=0))
    wait([call], timeout=PROMPT)
    if call.done():
        call.result()
    mine = _aside(work)
    for future in wait([call, mine], return_when=FIRST_EXCEPTION).done:
        future.result()
    return mine.result()


def _aside(work: Callable[[], Result]) -> Future[Result]:
    """Work in a thread that the end of this process does not wait for."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="transfer", daemon=True).start()
    return future


class NcclLibrary:
    """NCCL by its C interface: the few calls that a broadcasting rank needs.

    Args:
        device: the CUDA device of this process.

    Raises:
        UserError: the library cannot be loaded.
    """

    FLOAT32, UINT8, SUM = 7, 1, 0

    class _UniqueId(ctypes.Structure):
        _fields_ = [("internal", ctypes.c_byte * 128)]

    def __init__(self, device: torch.device) -> None:
        try:
            self._library = ctypes.CDLL("libnccl.so.2")
        except OSError as error:
            raise UserError(
                f"NCCL cannot be loaded: {error}", where="sampling.server.refresh", hint="use folder"
            ) from None
        self.device = device
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._library.ncclGetUniqueId.argtypes = [ctypes.POINTER(self._UniqueId)]
        self._library.ncclCommInitRank.argtypes = [
            ctypes.POINTER(pointer), ctypes.c_int, self._UniqueId, ctypes.c_int,
        ]  # fmt: skip
        self._library.ncclAllReduce.argtypes = [pointer, pointer, size, ctypes.c_int, ctypes.c_int, pointer, pointer]
        self._library.ncclBroadcast.argtypes = [pointer, pointer, size, ctypes.c_int, ctypes.c_int, pointer, pointer]
        self._library.ncclCommAbort.argtypes = [pointer]
        self._library.ncclGetErrorString.argtypes = [ctypes.c_int]
        self._library.ncclGetErrorString.restype = ctypes.c_char_p

    def version(self) -> str:
        """As `2.28.9`."""
        found = ctypes.c_int()
        self._library.ncclGetVersion(ctypes.byref(found))
        return f"{found.value // 10000}.{found.value // 100 % 100}.{found.value % 100}"

    def unique_id(self) -> bytes:
        found = self._UniqueId()
        self._check(self._library.ncclGetUniqueId(ctypes.byref(found)))
        return bytes(found)

    def join(self, unique_id: bytes, size: int) -> ctypes.c_void_p:
        import torch

        with torch.cuda.device(self.device):
            name, group = self._UniqueId.from_buffer_copy(unique_id), ctypes.c_void_p()
            self._check(self._library.ncclCommInitRank(ctypes.byref(group), size, name, 0))
            one = torch.zeros(1, device=self.device)
            at = one.data_ptr()
            self._check(self._library.ncclAllReduce(at, at, 1, self.FLOAT32, self.SUM, group, self._stream()))
            self.wait()
        return group

    def broadcast(self, group: ctypes.c_void_p, tensor: Tensor) -> None:
        import torch

        with torch.cuda.device(self.device):
            sent = tensor.to(self.device)
            at, size = sent.data_ptr(), sent.numel() * sent.element_size()
            self._check(self._library.ncclBroadcast(at, at, size, self.UINT8, 0, group, self._stream()))
            sent.record_stream(torch.cuda.current_stream(self.device))

    def leave(self, group: ctypes.c_void_p) -> None:
        import torch

        with torch.cuda.device(self.device):
            self._library.ncclCommAbort(group)

    def wait(self) -> None:
        import torch

        torch.cuda.current_stream(self.device).synchronize()

    def _stream(self) -> int:
        import torch

        return torch.cuda.current_stream(self.device).cuda_stream

    def _check(self, status: int) -> None:
        if status:
            said = self._library.ncclGetErrorString(status).decode()
            raise ServerDown(f"NCCL {self.version()} failed: {said}; both sides need the same version of NCCL")


def _workers(client: ServerClient) -> int:
    answer = client.get("/get_world_size")
    try:
        return int(answer["world_size"])
    except (KeyError, TypeError, ValueError):
        raise ServerDown("/get_world_size gives no number") from None
