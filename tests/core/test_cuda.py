"""Helpers around CUDA."""

from __future__ import annotations

import pytest
import torch

from helios.core.cuda import DisableCuDNNBenchmarkContext, requires_cuda_support
from helios.errors import DeviceUnavailableError


def test_cuda_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without CUDA it is a `RuntimeError` that says what to do; with it nothing happens."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceUnavailableError, match="install a CUDA build of torch") as raised:
        requires_cuda_support()
    assert isinstance(raised.value, RuntimeError)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    requires_cuda_support()


@pytest.mark.parametrize("before", [True, False])
def test_benchmarking_is_off_within_the_context(monkeypatch: pytest.MonkeyPatch, before: bool) -> None:
    """Within the context, also a nested one, cuDNN does not benchmark; afterwards, also after an error, as before."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    context = DisableCuDNNBenchmarkContext()
    with pytest.raises(ZeroDivisionError), context:
        with context:
            assert torch.backends.cudnn.benchmark is False
        assert torch.backends.cudnn.benchmark is False
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark is before
