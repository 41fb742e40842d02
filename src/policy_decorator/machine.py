"""Settings of the process with which a CPU does the same arithmetic in less time."""

import ctypes
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of mallopt, <malloc.h>
MEBIBYTE = 2**20
ONEDNN = "medium"
"""The precision of float32 products from which on PyTorch asks oneDNN for them."""
MUCH_SLOWER = 2.0
"""From this slowdown on a processor is said not to have a number format."""


def use_cpu_well(device: torch.device) -> None:
    """Keep freed memory for the next batch, and where `device`, the learner's, is the CPU, multiply with oneDNN and
    take subnormal numbers for 0.

    The precision of products is the process's, for all its devices: on a GPU the same setting would mean TF32. There
    what an earlier learner of this process had set for the CPU is taken back; "high", which one sets for a GPU, stays.
    """
    keep_freed_memory()
    if device.type == "cpu":
        multiply_with_onednn()
        flush_subnormals()
    elif torch.get_float32_matmul_precision() == ONEDNN:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def as_it_was() -> Iterator[None]:
    """Threads, the precision of products and what subnormal numbers are is the caller's again afterwards."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    flushes = flushes_subnormals()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.set_flush_denormal(flushes)


def flushes_subnormals() -> bool:
    """Whether this thread takes numbers too small for a float32 with all its digits, below 1e-38, for 0."""
    tiny = torch.finfo(torch.float32).tiny
    return (torch.tensor(tiny) / 2).item() == 0


def flush_subnormals() -> None:
    """Take them for 0, as they cost a processor many times as much as others.

    They are not rare: moments of Adam fade away, and where a policy is sure, its densities underflow in the gradients
    of Cal-QL, of whose update on the base they took more than half. Threads of torch do as the thread that started
    them: those that were there before keep to what it did then.
    """
    np.finfo(np.float32)  # which NumPy measures once, and afterwards it would warn of what it finds
    np.finfo(np.float64)
    torch.set_flush_denormal(True)


def keep_freed_memory() -> bool:
    """Whether the C library could be told to keep up to 1 GiB of freed memory instead of handing it back at once.

    The activations of one update are freed and allocated again by the next: otherwise each of their pages is cleared
    by the kernel every time, which takes a third of an update of the paper's size.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((M_MMAP_THRESHOLD, 32), (M_TRIM_THRESHOLD, 1024), (M_TOP_PAD, 64))
    return all(mallopt(name, size * MEBIBYTE) for name, size in settings)


def multiply_with_onednn() -> bool:
    """Whether float32 products are now made by oneDNN, which is done only where they stay as exact as they were.

    PyTorch asks MKL unless less precision is allowed. On processors without an own unit for bfloat16 matrices oneDNN
    uses float32 all the same, and on those that are not Intel's it is twice as fast.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(ONEDNN)
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    error = (a @ b - a.double() @ b.double()).abs().max().item()  # of entries around 16
    exact = error < 1e-3  # float32 is off by 3e-5, bfloat16 by 2e-1
    if not exact:
        torch.set_float32_matmul_precision(before)
    return exact


def bfloat16_slowdown(device: torch.device) -> float:
    """How many times as long as in float32 a product of matrices takes in bfloat16: 100 on processors without it."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(1024, 256, dtype=dtype, device=device), torch.ones(256, 256, dtype=dtype, device=device)

        def product(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch.mm(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        seconds[dtype] = _fastest(product, torch.get_num_threads(), repeats=5)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def fastest_threads(work: Callable[[], object], repeats: int = 5) -> int:
    """With how many threads `work` takes least time on a CPU: 1, 2, 4, ... or as many as torch has now.

    The fewest of those that are within 5 % of the fastest. Torch is left with as many as it had.
    """
    most = torch.get_num_threads()
    counts = sorted({min(2**k, most) for k in range(most.bit_length() + 1)})
    try:
        seconds = {n: _fastest(work, n, repeats) for n in counts}
    finally:
        torch.set_num_threads(most)
    return next(n for n in counts if seconds[n] <= 1.05 * min(seconds.values()))


def _fastest(work: Callable[[], object], threads: int, repeats: int) -> float:
    torch.set_num_threads(threads)
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()


def available_memory() -> int:
    """Bytes this process could still take: of the machine, or of its container where that has less (Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
