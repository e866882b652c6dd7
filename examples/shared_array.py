"""An array goes to workers without a copy: in sealed memory, whose descriptor is sent.

    python examples/shared_array.py

The memory is a memfd(2). Once sealed, nobody can change or shorten it, so a worker can trust what
it reads. With numpy it is an ndarray on both sides, without numpy a memoryview. It is freed when
the last process has closed and unmapped it; it has no name that could be left behind.
"""

from __future__ import annotations

import array
import fcntl
import importlib
import importlib.util
import mmap
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import conduit
import conduit.multiprocessing

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
HAS_NUMPY = importlib.util.find_spec("numpy") is not None
numpy: Any = importlib.import_module("numpy") if HAS_NUMPY else None


def sealed(values: Any) -> conduit.Descriptor:
    """Return memory with the bytes of an array, which never change again."""
    memory = conduit.Descriptor(os.memfd_create("array", os.MFD_ALLOW_SEALING), "array")
    with memoryview(values).cast("B") as data, open(memory.fileno(), "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(memory.fileno(), fcntl.F_ADD_SEALS, SEALS)
    return memory


def total(memory: conduit.Descriptor, first: int, last: int) -> float:
    """Add up some of the doubles in sealed memory, where they are."""
    with memory:
        if fcntl.fcntl(memory.fileno(), fcntl.F_GET_SEALS) & SEALS != SEALS:
            raise ValueError("somebody may change this memory")
        # Private, since older kernels map sealed memory in no other way; nothing is copied.
        mapped = mmap.mmap(memory.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    if HAS_NUMPY:
        return float(numpy.frombuffer(mapped, numpy.float64)[first:last].sum())
    with mapped, memoryview(mapped) as data, data.cast("d") as values:
        with values[first:last] as part:
            return sum(part)


def main() -> None:
    count, workers = 1_000_000, 4
    values: Any = array.array("d", range(count))
    if HAS_NUMPY:
        values = numpy.arange(count, dtype=numpy.float64)
    step = count // workers
    context = multiprocessing.get_context("spawn")
    with sealed(values) as memory, ProcessPoolExecutor(workers, mp_context=context) as pool:
        parts = [pool.submit(total, memory, i, i + step) for i in range(0, count, step)]
        print(f"{sum(part.result() for part in parts):.0f}")


if __name__ == "__main__":
    main()
