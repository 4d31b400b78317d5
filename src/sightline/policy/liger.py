"""Fused kernels of Liger for norms, gated feed-forward layers and rotary angles, in one model at a time.

Liger's own switch replaces classes and functions of transformers for the whole process, and the loss of the model. Here
only layers of this model run on its kernels; attention and log-probs stay ours, and parameters keep their names.
"""

from __future__ import annotations

from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from sightline.errors import UserError
from sightline.policy.features import tower

if TYPE_CHECKING:
    import torch

    from sightline.policy.load import Policy

__all__ = ["check_kernels", "use_kernels"]

ROTARY = "apply_rotary_pos_emb"


def use_kernels(policy: Policy, kind: Literal["none", "liger", "auto"]) -> bool:
    """Puts layers of a policy on fused kernels; says whether it did.

    Args:
        policy: its layers are those of Qwen-VL.
        kind: `auto` takes them where they can run: Liger is installed and the policy is on CUDA.

    Raises:
        UserError: `liger` is asked for where it cannot run.
    """
    if kind == "none":
        return False
    try:
        check_kernels(policy.device)
    except UserError:
        if kind == "auto":
            return False
        raise
    patch(policy, _library())
    return True


def check_kernels(device: torch.device) -> None:
    """Raises where Liger cannot run.

    Raises:
        UserError: it is not installed, or the device is not CUDA.
    """
    problem = "" if device.type == "cuda" else f"Liger runs on cuda, and the policy is on {device.type}"
    if _library() is None:
        problem = "Liger is not installed, or lacks triton"
    if problem:
        raise UserError(problem, where="model.kernels", hint="pip install 'sightline[gpu]', or model.kernels none")


def patch(policy: Policy, library: Any) -> None:
    """Puts the layers of a policy on the kernels of `library`, wherever it runs."""
    language = (policy.model.get_base_model() if policy.lora else policy.model).model.language_model
    for module in [*language.modules(), *tower(policy).modules()]:
        name = type(module).__name__
        if name.endswith("RMSNorm"):
            module.offset, module.casting_mode, module.in_place, module.row_mode = 0.0, "llama", False, None
            module.elementwise_affine = True
            module.forward = MethodType(library.LigerRMSNorm.forward, module)
        elif _is_gated(module):
            module.forward = MethodType(library.LigerSwiGLUMLP.forward, module)
        elif ROTARY in getattr(type(module).forward, "__globals__", {}) and hasattr(module, "q_proj"):
            module.forward = MethodType(_with_rotary(type(module).forward, library.liger_rotary_pos_emb), module)


def _library() -> Any:
    try:
        import liger_kernel.transformers as library  # pyright: ignore[reportMissingImports]

        found = (library.LigerRMSNorm, library.LigerSwiGLUMLP, library.liger_rotary_pos_emb)
    except (ImportError, AttributeError):
        return None
    return library if all(found) else None


def _is_gated(module: nn.Module) -> bool:
    """Whether a layer computes down(silu(gate(x)) * up(x))."""
    names = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(hasattr(module, n) for n in names) and "silu" in type(module.act_fn).__name__.lower()


def _with_rotary(forward: Any, rotary: Any) -> FunctionType:
    """The same function, which finds another rotary embedding under the name that it calls."""
    seen = {**forward.__globals__, ROTARY: rotary}
    made = FunctionType(forward.__code__, seen, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    return made
