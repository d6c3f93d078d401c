"""On what a rank's times are measured: the GPU, the libraries and the switches in force, by name."""

from __future__ import annotations

from typing import Any

import torch


def provenance_of(device: torch.device) -> dict[str, str]:
    """What torch tells of the GPU `device` and of what runs on it; nothing of the host's cores.

    The UUID is the same in every process and on every host; the form factor is in the device's name.
    """
    if device.type != "cuda":
        return {}
    about: Any = torch.cuda.get_device_properties(device)
    cudnn: Any = torch.backends.cudnn
    version = cudnn.version()
    nccl: Any = torch.cuda.nccl
    found: dict[str, object] = {
        "device": about.name,
        "uuid": getattr(about, "uuid", None),
        "memory": f"{about.total_memory / 2**30:.1f} GiB",
        "capability": f"{about.major}.{about.minor}",
        "CUDA": torch.version.cuda,
        "cuDNN": version,
        "NCCL": ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else None,
        "TF32 of matmul": torch.backends.cuda.matmul.allow_tf32,
        "TF32 of convolutions": cudnn.allow_tf32,
    }
    return {name: str(value) for name, value in found.items() if value is not None}
