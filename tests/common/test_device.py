"""The device of the flags: exact, there, and with enough memory."""

import os
import re
import resource

import torch

import dqn_atari
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
