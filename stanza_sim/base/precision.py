"""In which precision a model is trained: what the experiment file, the cost model and the executor mean by a name."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """How a device computes. Parameters, momentum, sums of gradients and updates are of the parameters' type in each.

    - `fp32`: IEEE single precision throughout, convolutions and linear layers alike. That is not torch's default, which
      runs convolutions in TF32 on GPUs that can.
    - `tf32`: convolutions and linear layers round their inputs to 10 bits of mantissa and add up in fp32, on NVIDIA's
      tensor cores from compute capability 8.0 on.
    - `bf16`, `fp16`: `torch.autocast`. Convolutions and linear layers read and write 2 bytes an element; losses and
      whatever else autocast keeps in fp32 stay there, in TF32 where the device can. fp16 scales the loss.
    """

    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def is_half(self) -> bool:
        """Whether activations, and their gradients, take 2 bytes."""
        return self in HALF


HALF = (Precision.FP16, Precision.BF16)
"""Precisions whose activations take 2 bytes, in memory and when they travel; in the others, the model's item size."""
LOSS_SCALE = 1024.0
"""What the loss is multiplied by in fp16: of the factors from 8 to 32,768 with which the networks of Micikevicius et
al. (Mixed precision training, ICLR 2018, arXiv 1710.03740) were trained, one that leaves a factor of 64 to overflow."""
HALF_BYTES, FLOAT_BYTES = 2, 4
"""Bytes of an element in either of them, and in fp32."""
