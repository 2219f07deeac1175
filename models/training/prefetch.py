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

    On CUDA the thread copies them too, on a stream of its own: at the published context a batch of 1,280 users is
    0.2 GB, and on the model's stream that copy would stand before every step (20 of 587 ms on an H200). `depth` batches
    lie on the device then. An error of the thread is raised at the reader.
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
            step, copied = got
            if copied is not None:
                reader = torch.cuda.current_stream(self._device)
                reader.wait_event(copied)
                for batch in step:
                    for tensor in batch.values():  # its memory is not given away before the reader's work is done
                        tensor.record_stream(reader)
            yield list(step)

    def _fill(self) -> None:
        try:
            stream = None
            if self._device.startswith("cuda:"):
                torch.cuda.set_device(self._device)  # or pinning would open the first card in every process
            if self._device.startswith("cuda"):
                stream = torch.cuda.Stream(self._device)
            for step in self._batches:
                if self._stop.is_set():
                    return
                self._queue.put((step, None) if stream is None else self._copied(step, stream))
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _copied(self, step: Step, stream: torch.cuda.Stream) -> tuple[Step, torch.cuda.Event]:
        """The step on the device, and the event after which it is there."""
        with torch.cuda.stream(stream):
            there = tuple(
                {k: v.pin_memory().to(self._device, non_blocking=True) for k, v in batch.items()} for batch in step
            )
            return there, stream.record_event()
