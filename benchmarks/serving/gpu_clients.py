"""The clients of benchmarks/serving/gpu_server.py: processes that keep requests under way, or send them at moments.

    loads = shares("64x2", peak=0, processes=8)         two processes, each with one request of 64 users under way
    loads = shares("0.7even", peak=1400, processes=8)   eight, each with 122.5 requests of one user a second
    answers = together(loads, url, config, beam=512, seconds=8)

Processes of this module rather than `multiprocessing`, which would import the whole server, Feast included, in each.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from torch import Tensor

from benchmarks.serving.gpu_program import requests
from benchmarks.serving.queueing import arrivals
from models.onerec.config import OneRecConfig
from models.onerec.program import INPUTS

LEAD_S = 1.0  # of a phase, not counted
MODEL, READY = "onerec-random", "ready\n"


def inputs_of(users: Mapping[str, Tensor], beam: int) -> list[triton.InferInput]:
    """A request for the whole beam of these users; the program's own input `beam` comes with `params`."""
    arrays = {name: users[name].numpy() for name in INPUTS if name != "beam"}
    arrays["params"] = np.tile(np.array([beam, beam, 0], np.int32), (len(arrays["static"]), 1))
    made = []
    for name, array in arrays.items():
        made.append(triton.InferInput(name, list(array.shape), "INT32"))
        made[-1].set_data_from_numpy(np.ascontiguousarray(array))
    return made


@dataclasses.dataclass(frozen=True)
class Load:
    """What one client process does: `loops` requests under way all the time, or `rate` a second."""

    users: int
    loops: int = 0
    rate: float = 0.0
    even: bool = False
    seed: int = 0


@dataclasses.dataclass
class Answers:
    """Latencies of the requests that began in the phase, how many answers came in it, and what went wrong."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    answered: int = 0
    errors: list[str] = dataclasses.field(default_factory=list)


def together(loads: Sequence[Load], url: str, config: OneRecConfig, beam: int, seconds: float) -> list[Answers]:
    """Run each load in a process of its own, all at the same time. RuntimeError when a process fails."""
    job = {"url": url, "config": dataclasses.asdict(config), "beam": beam, "seconds": seconds}
    command = [sys.executable, "-m", "benchmarks.serving.gpu_clients"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    work = [subprocess.Popen([*command, json.dumps(job | {"load": dataclasses.asdict(x)})], **pipes) for x in loads]
    try:
        for process in work:  # importing takes the processes unequal times
            if process.stdout.readline() != READY:
                raise RuntimeError(f"a client of {url} ended before it was ready")
        for process in work:
            process.stdin.write("go\n")
            process.stdin.flush()
        return [Answers(**json.loads(process.communicate(timeout=seconds + 120)[0])) for process in work]
    finally:
        for process in work:
            process.kill()


async def asked(load: Load, url: str, config: OneRecConfig, beam: int, length: float) -> Answers:
    """What came of one process's requests."""
    random = (requests(config, load.users, beam, seed) for seed in range(4))
    inputs = [inputs_of(dict(zip(INPUTS, tensors)), beam) for tensors in random]
    print(READY, end="", flush=True)
    sys.stdin.readline()
    found, begun = Answers(), time.time()
    window = begun + LEAD_S, begun + LEAD_S + length

    async def ask(connection: triton_aio.InferenceServerClient, at: int, due: float) -> None:
        try:
            answer = await connection.infer(MODEL, inputs[at % len(inputs)], client_timeout=60)
            assert answer.as_numpy("item_ids").shape == (load.users, beam)
            now = time.time()
            found.answered += window[0] <= now <= window[1]
            if window[0] <= due <= window[1]:
                found.seconds.append(now - due)
        except Exception as error:
            found.errors.append(f"{type(error).__name__}: {error}"[:200])

    async def loop(connection: triton_aio.InferenceServerClient, at: int) -> None:
        while time.time() < window[1]:
            at += 1
            await ask(connection, at, time.time())

    async def moments(connection: triton_aio.InferenceServerClient) -> None:
        rng, tasks = np.random.default_rng(load.seed), []
        for at, moment in enumerate(arrivals(load.rate, LEAD_S + length, rng, load.even)):
            due = begun + float(moment)
            await asyncio.sleep(max(due - time.time(), 0))
            tasks.append(asyncio.ensure_future(ask(connection, at, due)))
        await asyncio.gather(*tasks)

    async with triton_aio.InferenceServerClient(url) as connection:
        if load.rate:
            await moments(connection)
        await asyncio.gather(*(loop(connection, i) for i in range(load.loops)))
    return found


def shares(text: str, peak: float, processes: int) -> list[Load]:
    """A load as the work of client processes. ValueError for one that is none, or that has no peak before it."""
    try:
        if "x" in text:
            users, under_way = map(int, text.split("x"))
            count = min(processes, under_way)
            return [Load(users, loops=under_way // count + (i < under_way % count)) for i in range(count)]
        rate, even = float(text.removesuffix("even")) * peak / processes, text.endswith("even")
    except ValueError:
        raise ValueError(f"load {text!r} is none; give UxC, or a share of the peak as 0.7 or 0.7even") from None
    if not rate > 0:
        raise ValueError(f"load {text!r} is a share of the peak; give a load UxC before it")
    return [Load(1, rate=rate, even=even, seed=i) for i in range(processes)]


def main() -> None:
    job = json.loads(sys.argv[1])
    load, config = Load(**job["load"]), OneRecConfig(**job["config"])
    found = asyncio.run(asked(load, job["url"], config, job["beam"], job["seconds"]))
    print(json.dumps(dataclasses.asdict(found)), flush=True)


if __name__ == "__main__":
    main()
