"""The device to compute on, and whether it has the memory, before any is taken."""

import contextlib
import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from lab.common.cli import UsageError, one_of, say
from lab.common.limits import count_cores, free_host_memory


def check_device(args):
    """Raise UsageError for a device that is not there."""
    one_of(args, ("auto", "cpu", "cuda"), "device")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu or auto")


def resolve_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda; auto is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_nvidia_gpu(root: Path = Path("/")) -> bool:
    """Return whether this machine shows an NVIDIA GPU, whatever torch can do with it."""
    if any((root / "proc/driver/nvidia/gpus").glob("*")) or (root / "dev/nvidia0").exists():
        return True
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # of Windows' Linux, for one
        asked = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20)
        return asked.returncode == 0 and asked.stdout.startswith(b"GPU")
    return False


def warn_of_unused_gpu():
    """Say why `auto` takes the CPU beside an NVIDIA GPU, unless that was hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1") or not has_nvidia_gpu():
        return
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is a build for the CPU: pip install --force-reinstall "
        why += f"torch=={torch.__version__.partition('+')[0]} brings the one for CUDA"
    else:
        why = f"torch {torch.__version__} finds none: see whether the driver that nvidia-smi shows "
        why += f"is new enough for CUDA {torch.version.cuda}, and whether this process may use it"
    say(f"warning: there is an NVIDIA GPU here, and {why}; going on on the CPU", sys.stderr)


def set_tf32(allowed: bool):
    """Let a GPU round the factors of products in fp32 to 10 bits, or not."""
    # By default torch rounds them in convolutions, and where the environment says so in matrix
    # products: fp32 is to be fp32.
    torch.backends.cudnn.allow_tf32 = allowed
    torch.set_float32_matmul_precision("high" if allowed else "highest")


@contextlib.contextmanager
def exact_fp32():
    """Compute the block in exact fp32, whatever the precision of the run."""
    allowed = torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        set_tf32(allowed)


def pick_device(name: str, precision: str = "fp32") -> torch.device:
    """Return the device, and set torch up for it: precision, memory and threads of the host."""
    set_tf32(precision == "tf32")
    device = resolve_device(name)
    if name == "auto" and device.type == "cpu":
        warn_of_unused_gpu()
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        # By default glibc returns buffers above 128 kB to the system when they are freed and pays
        # for fresh pages at the next update: up to half the time of a training step.
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold = -1, -3  # names and values from malloc.h
        libc.mallopt(m_mmap_threshold, 2**30)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        # More threads than a quota on CPU time, which torch does not look at, stop one another.
        torch.set_num_threads(min(count_cores(), torch.get_num_threads()))
    if device.type == "cuda":
        # The host copies and draws. Threads that wait for more would take cores from the games.
        torch.set_num_threads(1)
    return device


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on the device. A GPU fetches it by itself: the host does not wait."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    # Not reused before the GPU has fetched it: torch's allocator of pinned memory sees to that.
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> float:
    """Return the bytes that are free on the device; inf where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


def require_memory(what: str, count: int, bytes_each: int, device: torch.device):
    """Raise UsageError if the device has not the memory for `count` of something; take none.

    `what` names it, with the flag that asks for that many.
    """
    needed, free = count * bytes_each, free_memory(device)
    if needed > 0.95 * free:
        most = int(0.9 * free / bytes_each)
        raise UsageError(
            f"{what} needs {needed / 1e9:.1f} GB of memory on {device} and {free / 1e9:.1f} GB are "
            f"free: choose {f'at most {most}' if most > 0 else 'less'}"
        )
