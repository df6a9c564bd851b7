from __future__ import annotations

import platform

import numpy as np
import pytest
import torch

import helios
from helios.checkpoint.machine import describe_machine
from helios.checkpoint.passport import to_plain


def test_a_machine_is_described_in_plain_values() -> None:
    """Versions, threads, precision and the instruction set of the CPU are there, all of them plain, cuDNN is not."""
    described = describe_machine(torch.device("cpu"))
    assert {name: to_plain(name, value) for name, value in described.items()} == described
    assert all(type(described[name]) is str for name in ("helios", "torch", "numpy", "python"))
    versions = (helios.__version__, torch.__version__, np.__version__, platform.python_version())
    assert tuple(described[name] for name in ("helios", "torch", "numpy", "python")) == versions
    assert described["device"] == f"cpu {torch.backends.cpu.get_cpu_capability()}"
    assert (described["threads"], described["cudnn"]) == (torch.get_num_threads(), None)


def test_settings_are_those_of_the_moment() -> None:
    """The default dtype, determinism and the precision of float32 are read when asked for."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # It is there at run time.
    before = describe_machine(torch.device("cpu"))
    precision = matmul.fp32_precision
    try:
        torch.set_default_dtype(torch.float64)
        torch.use_deterministic_algorithms(mode=True)
        matmul.fp32_precision = "bf16"  # After it, torch.get_float32_matmul_precision() raises.
        now = describe_machine(torch.device("cpu"))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(mode=False)
        matmul.fp32_precision = precision
    changed = {name: value for name, value in now.items() if value != before[name]}
    assert changed == {
        "default_dtype": "float64",
        "deterministic": True,
        "float32_precision": {**before["float32_precision"], "matmul": "bf16"},
    }
    assert describe_machine(torch.device("cpu")) == before


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the model of the GPU and the choices of cuDNN are there; on other devices the kind is."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU number {device.index}")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    described = describe_machine(torch.device("cuda", 1))
    assert described["device"] == "cuda GPU number 1"
    assert described["cudnn"] == {"benchmark": True, "deterministic": torch.backends.cudnn.deterministic}
    assert set(described["float32_precision"]) == {"matmul", "conv", "rnn"}
    assert describe_machine(torch.device("meta"))["device"] == "meta"


@pytest.mark.gpu
def test_a_real_gpu_is_named() -> None:
    """The model of the GPU is what torch calls it, and everything is plain."""
    described = describe_machine(torch.device("cuda", 0))
    assert described["device"] == f"cuda {torch.cuda.get_device_name(0)}"
    assert {name: to_plain(name, value) for name, value in described.items()} == described
