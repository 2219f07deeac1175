"""The gRPC client: ask for the next items of a user.

    with RecommendClient("127.0.0.1:8001") as client:
        client.recommend(user_id=42, k=10, deadline_s=1.0)

The same for asyncio is `AsyncRecommendClient`. The contract is Triton's own (KServe v2 over gRPC), so any client of it
will do; docs/serving_api.md shows grpcurl.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
import time
from pathlib import Path
from typing import Any

import grpc
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio

from serving.protocol import Answer, OverloadedError, Query, answer, explained, repeatable

__all__ = ["Answer", "AsyncRecommendClient", "OverloadedError", "RecommendClient"]
MODEL = "recommend"
FIRST_PAUSE_S = 0.02


def _credentials(tls_root: Path | None) -> dict[str, Any]:
    if tls_root is None:
        return {}
    return {"creds": grpc.ssl_channel_credentials(Path(tls_root).read_bytes())}


class RecommendClient:
    """A connection to one server, for one or more threads; use it as a context manager or call `close`.

    retries: how often a request is repeated, within its deadline, when no server was reached (nothing else is
    repeated). hedge_after_s: send a request a second time when it is not answered by then, and take the first answer.
    tls_root: PEM file of the authority that signed the server's certificate; None speaks without TLS.
    """

    def __init__(
        self, url: str, *, retries: int = 2, hedge_after_s: float | None = None, tls_root: Path | None = None
    ) -> None:
        self._client = triton.InferenceServerClient(url, **_credentials(tls_root))
        self._retries, self._hedge_after_s = retries, hedge_after_s
        self._pool = concurrent.futures.ThreadPoolExecutor(8, "hedge") if hedge_after_s is not None else None

    def __enter__(self) -> RecommendClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def ready(self, timeout_s: float = 1.0) -> bool:
        """Does the server answer requests?"""
        try:
            return bool(self._client.is_model_ready(MODEL, client_timeout=timeout_s))
        except triton.InferenceServerException:
            return False

    def recommend(self, user_id: int, k: int, deadline_s: float = 5.0, **options: Any) -> Answer:
        """The best `k` unseen items of a user; `options` are the other fields of `Query`.

        Raises ValueError when the request is wrong, TimeoutError after `deadline_s` seconds, OverloadedError when the
        server sheds load, ConnectionError when there is no server, RuntimeError when the server fails.
        """
        inputs, end = Query(user_id=user_id, k=k, **options).inputs(), time.monotonic() + deadline_s
        for attempt in range(self._retries + 1):
            try:
                return answer(self._ask(inputs, end - time.monotonic()))
            except Exception as raw:
                error = explained(raw, user_id, deadline_s)
                pause = FIRST_PAUSE_S * 2**attempt * (1 + random.random())
                if not repeatable(error) or attempt == self._retries or time.monotonic() + pause >= end:
                    raise error from raw
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _ask(self, inputs: list, left_s: float) -> Any:
        if self._pool is None or self._hedge_after_s is None or left_s <= self._hedge_after_s:
            return self._infer(inputs, left_s)
        first = self._pool.submit(self._infer, inputs, left_s)
        done, _ = concurrent.futures.wait([first], self._hedge_after_s)
        if done:
            return first.result()
        second = self._pool.submit(self._infer, inputs, left_s - self._hedge_after_s)
        done, other = concurrent.futures.wait([first, second], return_when=concurrent.futures.FIRST_COMPLETED)
        if (one := done.pop()).exception() is None or not other:
            return one.result()
        return other.pop().result()

    def _infer(self, inputs: list, left_s: float) -> Any:
        left_s = max(left_s, 0.001)
        # The server drops what waited longer than the client will, too.
        return self._client.infer(MODEL, inputs, client_timeout=left_s, timeout=int(left_s * 1e6))


class AsyncRecommendClient:
    """`RecommendClient` for asyncio: the same options, `await client.recommend(...)`, `async with`."""

    def __init__(
        self, url: str, *, retries: int = 2, hedge_after_s: float | None = None, tls_root: Path | None = None
    ) -> None:
        self._client = triton_aio.InferenceServerClient(url, **_credentials(tls_root))
        self._retries, self._hedge_after_s = retries, hedge_after_s

    async def __aenter__(self) -> AsyncRecommendClient:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    async def ready(self, timeout_s: float = 1.0) -> bool:
        """Does the server answer requests?"""
        try:
            return bool(await self._client.is_model_ready(MODEL, client_timeout=timeout_s))
        except triton.InferenceServerException:
            return False

    async def recommend(self, user_id: int, k: int, deadline_s: float = 5.0, **options: Any) -> Answer:
        """As RecommendClient.recommend."""
        inputs, end = Query(user_id=user_id, k=k, **options).inputs(), time.monotonic() + deadline_s
        for attempt in range(self._retries + 1):
            try:
                return answer(await self._ask(inputs, end - time.monotonic()))
            except Exception as raw:
                error = explained(raw, user_id, deadline_s)
                pause = FIRST_PAUSE_S * 2**attempt * (1 + random.random())
                if not repeatable(error) or attempt == self._retries or time.monotonic() + pause >= end:
                    raise error from raw
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _ask(self, inputs: list, left_s: float) -> Any:
        first = asyncio.ensure_future(self._infer(inputs, left_s))
        if self._hedge_after_s is None or left_s <= self._hedge_after_s:
            return await first
        tasks = {first}
        try:
            done, _ = await asyncio.wait(tasks, timeout=self._hedge_after_s)
            if not done:
                tasks.add(asyncio.ensure_future(self._infer(inputs, left_s - self._hedge_after_s)))
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            one, others = done.pop(), [task for task in tasks if not task.done()]
            if one.exception() is None or not others:
                return one.result()
            return await others[0]
        finally:
            for task in tasks:
                task.cancel()

    async def _infer(self, inputs: list, left_s: float) -> Any:
        left_s = max(left_s, 0.001)
        return await self._client.infer(MODEL, inputs, client_timeout=left_s, timeout=int(left_s * 1e6))
