"""Model FLOP/s utilization (MFU): the work of a training step, and what devices could do.  Imports no torch."""

import re

from vit.config.sections import ModelConfig

# Dense matrix products in 1e12 FLOP/s: bf16 or fp16 with float32 sums, and float32 without TF32.  By the vendors' data
# sheets (NVIDIA: V100, A100, A40, A30, L4, L40S, RTX 6000 Ada, H100, H200, GH200, B200; AMD: MI210, MI250X, MI300X).
# Where a sheet gives figures "with sparsity", half of them; of a card with two devices, those of one device.  The first
# name that a device's name contains counts.
PEAK_TERAFLOPS: dict[str, tuple[float, float]] = {
    "B200": (2250, 80),
    "GH200": (989, 67),
    "H200 NVL": (835, 60),
    "H200": (989, 67),
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "A40": (149.7, 37.4),
    "A30": (165, 10.3),
    "A10": (125, 31.2),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "RTX 6000 Ada": (364.2, 91.1),
    "RTX A6000": (154.8, 38.7),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71, 35.6),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
    "MI300X": (1307.4, 163.4),
    "MI250X": (191.5, 47.9),
    "MI210": (181, 45.3),
}


def training_flops_per_image(model: ModelConfig) -> float:
    """Floating-point operations of forward and backward: 6 for each weight of the linear layers and each token, and
    12 N D for each token's attention in each block (Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1).
    """
    patches, D = (model.image_size // model.patch_size) ** 2, model.width
    N = patches + (model.pool == "cls")
    blocks = model.depth * (N * (4 * D * D + 2 * D * model.mlp_dim))
    return (
        6.0 * (blocks + patches * 3 * model.patch_size**2 * D + D * model.num_classes) + 12.0 * model.depth * N * N * D
    )


def peak_flops(device_name: str, precision: str) -> float | None:
    """FLOP/s of one device's matrix products in this precision; None for CPUs and devices that are not in the table."""
    for name, (half, single) in PEAK_TERAFLOPS.items():
        if re.search(rf"\b{name}\b", device_name, re.IGNORECASE):
            return 1e12 * (single if precision == "float32" else half)
    return None


def utilization(
    model: ModelConfig, precision: str, device_name: str, ranks: int, images_per_second: float
) -> float | None:
    """The share of the peak of `ranks` devices that a run's throughput amounts to; None if the peak is not known."""
    peak = peak_flops(device_name, precision)
    return None if peak is None else images_per_second * training_flops_per_image(model) / (ranks * peak)
