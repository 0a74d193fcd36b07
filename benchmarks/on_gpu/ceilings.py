"""What the card itself can do: copies, the matrix products of ViT-B, attention.

python -m benchmarks.on_gpu.ceilings
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, activate_flash_attention_impl, sdpa_kernel

from benchmarks.on_gpu.levers import other_attention

TOKENS = 384 * 197  # of a micro-batch of vit_b16
LINEAR_LAYERS = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # inputs, outputs


def milliseconds(function: Callable[[], Any], repeats: int = 20) -> float:
    """Mean time of a call on the device."""
    for _ in range(5):
        function()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / repeats


def copy_bandwidth() -> float:
    """Bytes read and written by a copy, in TB/s."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2e-9 * source.nbytes / milliseconds(lambda: target.copy_(source))


def linear_layers() -> dict[str, list[int]]:
    """TFLOP/s of forward, gradient of the inputs and gradient of the weights, in bf16."""
    out = {}
    for inputs, outputs in LINEAR_LAYERS:
        x, weight, bias, gradient = (
            torch.randn(shape, device="cuda", dtype=torch.bfloat16)
            for shape in ((TOKENS, inputs), (outputs, inputs), (outputs,), (TOKENS, outputs))
        )
        work = 2e-9 * TOKENS * inputs * outputs
        calls = (lambda: F.linear(x, weight, bias), lambda: gradient @ weight, lambda: gradient.t() @ x)  # noqa: B023
        out[f"{inputs} -> {outputs}"] = [round(work / milliseconds(call)) for call in calls]
    return out


def attention() -> dict[str, Any]:
    """Milliseconds of attention of one block, forward and backward, by backend."""
    qkv = [torch.randn(384, 197, 12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]

    def step() -> None:
        y = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv))
        y.backward(y)

    def measured() -> Any:
        try:
            return round(milliseconds(step), 2)
        except RuntimeError as error:
            return str(error)[:80]

    out: dict[str, Any] = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        with sdpa_kernel(backend):
            out[backend.name.lower()] = measured()
    torch.use_deterministic_algorithms(True)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        out["flash_attention_deterministic"] = measured()
        for name in other_attention():
            activate_flash_attention_impl(name)  # instead of torch's own Flash attention, which is version 2
            out[f"{name.lower()}_deterministic"] = measured()
    return out


if __name__ == "__main__":
    print(
        json.dumps(
            {"copy_terabytes_per_second": round(copy_bandwidth(), 2)}
            | {"linear_teraflops": linear_layers(), "attention_ms": attention()}
        )
    )
