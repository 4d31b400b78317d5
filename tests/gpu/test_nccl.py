"""NCCL by its C interface: a group of one here, of two where there are two devices."""

from __future__ import annotations

import threading

import pytest
import torch

from sightline.sampling.server_nccl import NcclLibrary

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_a_group_of_one_keeps_what_it_sends() -> None:
    nccl = NcclLibrary(torch.device("cuda", 0))
    assert tuple(map(int, nccl.version().split("."))) >= (2, 18, 0)
    group = nccl.join(nccl.unique_id(), 1)
    for dtype in (torch.float32, torch.bfloat16):
        sent = torch.randn(3, 5, device="cuda:0").to(dtype)
        before = sent.clone()
        nccl.broadcast(group, sent)
        nccl.wait()
        assert torch.equal(sent, before)
    nccl.leave(group)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_other_side_receives_it() -> None:
    """The other rank does what vLLM's workers do: join, a one-element all-reduce, one broadcast per tensor."""
    import ctypes

    nccl, other = (NcclLibrary(torch.device("cuda", i)) for i in range(2))
    unique, received = nccl.unique_id(), torch.zeros(1000, dtype=torch.bfloat16, device="cuda:1")
    sent = torch.randn(1000, device="cuda:0").to(torch.bfloat16)

    def worker() -> None:
        library = other._library
        with torch.cuda.device(1):
            group, name = ctypes.c_void_p(), NcclLibrary._UniqueId.from_buffer_copy(unique)
            assert not library.ncclCommInitRank(ctypes.byref(group), 2, name, 1)
            one, stream = torch.zeros(1, device="cuda:1"), torch.cuda.current_stream(1).cuda_stream
            library.ncclAllReduce(one.data_ptr(), one.data_ptr(), 1, 7, 0, group, stream)
            at = received.data_ptr()
            library.ncclBroadcast(at, at, received.numel(), 9, 0, group, stream)  # as bfloat16: vLLM names the type
            torch.cuda.synchronize(1)

    thread = threading.Thread(target=worker)
    thread.start()
    group = nccl.join(unique, 2)
    nccl.broadcast(group, sent)
    nccl.wait()
    thread.join(60)
    assert torch.equal(received.cpu(), sent.cpu())
