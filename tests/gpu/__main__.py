"""`make test-gpu`: the tests that need a GPU, on the one that is there."""

from __future__ import annotations

import sys

import pytest
import torch


def main(arguments: list[str]) -> int:
    """Run the tests marked `gpu`, in this process, so that nothing else is on the GPU; return the exit code."""
    if not torch.cuda.is_available():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        print(
            f"No GPU was tested: torch {torch.__version__} is {build}, and finds no CUDA device. Run this on a machine "
            "with a GPU and a CUDA build of torch; `make test` runs most of these tests on a stand-in.",
            file=sys.stderr,
        )
        return 1
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}: {', '.join(names)}")
    return int(pytest.main(["-m", "gpu", "--durations=10", *arguments]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
