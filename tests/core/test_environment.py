from __future__ import annotations

import pytest
import torch

from helios.core.environment import deterministic_kernels, prefer_loopback, read_environment


def choice() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )


@pytest.mark.parametrize("before", [(False, False, False), (True, True, True), (True, False, False)])
@pytest.mark.parametrize(("deterministic", "benchmark"), [(True, False), (False, True), (False, False)])
def test_the_choice_of_kernels_lasts_as_long_as_the_context(
    monkeypatch: pytest.MonkeyPatch, before: tuple[bool, bool, bool], *, deterministic: bool, benchmark: bool
) -> None:
    """The context sets determinism and the benchmark, and restores them, `warn_only` included."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    torch.backends.cudnn.benchmark = before[2]
    try:
        with (
            pytest.raises(ValueError, match="x"),
            deterministic_kernels(deterministic=deterministic, benchmark=benchmark),
        ):
            assert torch.are_deterministic_algorithms_enabled() == (deterministic or before[0])
            assert torch.backends.cudnn.benchmark == benchmark
            if deterministic:
                assert not torch.is_deterministic_algorithms_warn_only_enabled()
            raise ValueError("x")
        assert choice() == before
    finally:
        torch.use_deterministic_algorithms(mode=False)
        torch.backends.cudnn.benchmark = False


def test_cublas_is_made_deterministic_but_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment variable that cuBLAS needs is set unless it has a value."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with deterministic_kernels(deterministic=True, benchmark=False):
        assert read_environment()["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic_kernels(deterministic=True, benchmark=False):
        assert read_environment()["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_ranks_of_one_machine_talk_over_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gloo and NCCL use the loopback interface, unless the user has chosen another one."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "")  # So that monkeypatch restores it.
        monkeypatch.delenv(name)
    prefer_loopback()
    assert read_environment()["GLOO_SOCKET_IFNAME"] == "lo"
    assert read_environment()["NCCL_SOCKET_IFNAME"] == "=lo"
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    prefer_loopback()
    assert read_environment()["NCCL_SOCKET_IFNAME"] == "eth1"
