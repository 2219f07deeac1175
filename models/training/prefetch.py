"""Batches made in a thread while the model trains on the ones before, copied to the device without blocking.

with Prefetcher(zip(stream.batches(start=120))) as loader:
    for (batch,) in loader: ...
loader.waited                                    # seconds the training loop stood still for data
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

import torch
from torch import Tensor

Step = tuple[dict[str, Tensor], ...]


class Prefetcher:
    """Runs an iterator of steps (the micro-batches of one each) in a thread, `depth` ahead; `waited` counts seconds.

    On CUDA batches are pinned there and copied without blocking. An error of the thread is raised at the reader.
    """

    def __init__(self, batches: Iterator[Step], device: str = "cpu", depth: int = 4) -> None:
        self.waited = 0.0
        self._batches, self._device = batches, device
        self._queue: queue.Queue = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="batches")

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        while self._thread.is_alive():  # a full queue would hold the thread for ever
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        while True:
            begun = time.monotonic()
            got = self._queue.get()
            self.waited += time.monotonic() - begun
            if got is None:
                return
            if isinstance(got, BaseException):
                raise got
            yield [{k: v.to(self._device, non_blocking=True) for k, v in batch.items()} for batch in got]

    def _fill(self) -> None:
        try:
            if self._device.startswith("cuda:"):
                torch.cuda.set_device(self._device)  # or pinning would open the first card in every process
            for step in self._batches:
                if self._stop.is_set():
                    return
                if self._device != "cpu":
                    step = tuple({k: v.pin_memory() for k, v in batch.items()} for batch in step)
                self._queue.put(step)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)
