"""For all tests: the whole day starts first, so that it runs beside the many short ones; each process takes one thread.

make test    (two workers share the tests, file by file)
"""

from __future__ import annotations

import os

# Before torch is imported: two workers and their child processes share two cores; OpenMP threads would fight over them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before gRPC is imported: where a test with a client had run before in the same worker, PySpark's forked child did not
# start Java, beside an epoll error of gRPC's fork handlers.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
if not os.path.exists("/dev/nvidiactl"):  # no card: Triton's kernels, where Triton is installed, run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list) -> None:
    """Longest file first: pytest-xdist hands files out in the order of collection."""
    items.sort(key=lambda item: item.get_closest_marker("e2e") is None)
