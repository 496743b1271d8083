"""The environment of a run's process."""

from __future__ import annotations

from collections.abc import Mapping

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# glibc hands every freed block above 32 MiB back to the kernel and faults it in anew at the next use, which can cost
# more than the arithmetic on it. With these a run keeps what it has touched. Other C libraries ignore them.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def run_environment(threads: int, inherited: Mapping[str, str], *, keep_memory: bool = True) -> dict[str, str]:
    """`inherited` with the thread counts of a run; an allocator setting that the user made stays."""
    return {
        **(KEEP_MEMORY if keep_memory else {}),
        **inherited,
        **dict.fromkeys(THREADS, str(threads)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
