"""The device of the flags: exact, there, and with enough memory."""

import os
import re
import resource

import pytest
import torch

import dqn_atari
from lab.common import device as devices
from lab.common.device import free_memory, pick_device


def test_fp32_is_fp32_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    pick_device("auto")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_without_a_device(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(dqn_atari, ["--device", "cuda"], "no CUDA device; use --device cpu or auto")


def test_a_limit_on_memory_is_met_at_the_start(script, tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))

    flags = ("--buffer-size", 2_000_000)
    done = script("dqn_atari.py", *flags, check=False, preexec_fn=limited)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search("14.1 GB .*--buffer-size 2000000|--buffer-size 2000000 .*14.1 GB", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_free_memory_is_at_most_what_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory(torch.device("cpu")) <= total


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/gpus/0000:01:00.0", "dev/nvidia0", "", None])
def test_signs_of_a_gpu(sign, tmp_path, monkeypatch):
    """Of its driver, of its device, or of a real nvidia-smi that lists one."""
    monkeypatch.setenv("PATH", str(tmp_path))
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{'echo GPU 0: H100' if sign == '' else 'exit 9'}\n")
    smi.chmod(0o755)
    if sign:
        (tmp_path / sign).mkdir(parents=True)
    assert devices.has_nvidia_gpu(tmp_path) == (sign is not None)


@pytest.mark.parametrize(
    ("name", "visible", "cuda", "there", "said"),
    [
        (
            "auto",
            None,
            None,
            True,
            "for the CPU: pip install --force-reinstall torch==2",
        ),
        ("auto", "0", "13.0", True, "the driver that nvidia-smi shows is new enough for CUDA 13.0"),
        ("auto", None, None, False, ""),
        ("auto", "", None, True, ""),
        ("auto", "-1", None, True, ""),
        ("cpu", None, None, True, ""),
    ],
)
def test_auto_on_the_cpu_beside_a_gpu_is_told(
    name, visible, cuda, there, said, monkeypatch, capsys
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(devices, "has_nvidia_gpu", lambda: there)
    assert pick_device(name).type == "cpu"
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == (said != "")
