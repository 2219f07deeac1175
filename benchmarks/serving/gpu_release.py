"""A release of a training day on a GPU: exported for the card, published, and its answers through Triton's gRPC judged.

    python -m benchmarks.serving.gpu_release --release RELEASE --users USERS --out benchmarks/serving
    python -m benchmarks.serving.gpu_release --release RELEASE --users USERS --out /tmp/x --device cpu

RELEASE: a folder of var/simulated/store/releases; USERS: its day's evaluation set, var/simulated/features/evaluation/
dt=DAY/part-0.parquet. Publishes two releases into a store of its own: one with the package that passed the gate, one
without, which a server answers eagerly. Both are served, and every user of the gate is asked for over gRPC, in requests
of several sizes: each answer is compared with the float32 model on the processor, as the gate compares. Times are of
one client with one request under way.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import tritonclient.grpc as triton
from torch import Tensor

from benchmarks.machine import commit, hardware
from benchmarks.serving.gpu_clients import inputs_of
from models.training.checkpoint import Tokenizer, load_model
from releases.manifest import Manifest, verify
from releases.object_store import DirectoryStore
from releases.publish import publish
from serving.config import MODEL_PREFIX, ServingConfig
from serving.export.package import BEAM, FOLDER, export_release
from serving.export.parity import Ranked, compare, parts, real_users, reference
from serving.repository import render_release
from serving.triton_server import TritonServer

ROUNDS, ALONE = 3, 200  # rounds of times, and requests of one user in each


class ModelServer(TritonServer):
    """A server of the release's model alone, without `recommend` and its feature store."""

    ready_seconds = 300.0

    def _models(self) -> list[str]:
        return [render_release(self._repository, self.release, self.config)]


def published(store: DirectoryStore, release: Path, manifest: Manifest, exported: Path | None) -> Path:
    """The release's files with another export, or with none, as a release of their own; its folder."""
    files = {entry.path: release / entry.path for entry in manifest.files if not entry.path.startswith(f"{FOLDER}/")}
    if exported is not None:
        files |= {f"{FOLDER}/{path.name}": path for path in exported.iterdir()}
    release_id = publish(
        store=store,
        day=manifest.day,
        source=manifest.source,
        files=files,
        summaries=manifest.summaries,
        metrics=manifest.metrics,
        data=manifest.data,
        parents=[manifest.release_id],
        seed=manifest.seed,
        code_commit=manifest.code_commit,
        environment=manifest.environment,
    )
    return store.local(f"releases/{release_id}")


def asked(server: ModelServer, users: dict[str, Tensor], wanted: Ranked, beam: int, sizes: list[int]) -> dict[str, Any]:
    """The gate's comparison of answers in requests of each size, and milliseconds of requests of one user."""
    name = MODEL_PREFIX + server.release.resolve().name
    verdicts, rounds = {}, []
    with triton.InferenceServerClient(server.grpc_url) as client:
        for size in sizes:
            ids, scores = [], []
            for part in parts(users, size):
                answer = client.infer(name, inputs_of(part, beam))
                ids.append(answer.as_numpy("item_ids"))
                scores.append(answer.as_numpy("scores"))
            verdicts[size] = compare(wanted, (np.concatenate(ids), np.concatenate(scores)))
        one = [inputs_of({n: t[i : i + 1] for n, t in users.items()}, beam) for i in range(min(ALONE, len(wanted[0])))]
        for _ in range(ROUNDS):
            times = []
            for request in one:
                begun = time.perf_counter()
                client.infer(name, request)
                times.append(1e3 * (time.perf_counter() - begun))
            rounds.append((float(np.median(times)), float(np.percentile(times, 99))))
    return {"verdicts": verdicts, "rounds": rounds}


def export_line(report: dict[str, Any]) -> str:
    """What the export found, in a sentence."""
    gate = f"top-1 {report['top1']:.4f}, overlap {report['overlap']:.4f} of {report['users']} users"
    if not report["passed"]:
        return f"The export in {report['precision']}: no package ({report['reason']}; {gate})."
    times = f"{report['package_ms']} ms a user without graphs, {report['eager_ms']} eager"
    size = f"{report['bytes'] / 1e6:.1f} MB, compiled in {report['compile_seconds']} s"
    return f"The export: {report['precision']}, {gate}; {times}; {size}."


def page(report: dict[str, Any], found: dict[str, dict[str, Any]], about: str, args: argparse.Namespace) -> str:
    """The Markdown page."""
    users = report["users"]
    lines = [
        "# A day's release on a GPU, through Triton",
        "",
        f"{hardware('cuda' if args.device == 'gpu' else 'cpu')}; torch {torch.__version__}; commit {commit()};"
        f" {datetime.now(UTC):%Y-%m-%d}.",
        f"`python -m benchmarks.serving.gpu_release --release ... --users ...`: {about}; {users} users, beam = K ="
        f" {args.beam}, one instance, batches of up to {args.max_batch}.",
        "",
        export_line(report),
        "",
        "Answers over gRPC against the float32 model run eagerly on the processor (bars .999 and .99):",
        "",
        "| served as | users a request | first item equal | overlap of 10 | without ties |",
        "|---|---|---|---|---|",
    ]
    for kind, of in found.items():
        for size, v in of["verdicts"].items():
            strict = f"{v['top1_without_ties']:.4f}, {v['overlap_without_ties']:.4f}"
            lines.append(f"| {kind} | {size} | {v['top1']:.4f} | {v['overlap']:.4f} | {strict} |")
    lines += ["", "| served as | ms of a request of one user, p50 of each round | p99 |", "|---|---|---|"]
    for kind, of in found.items():
        p50, p99 = (" ".join(f"{r[i]:.2f}" for r in of["rounds"]) for i in (0, 1))
        lines.append(f"| {kind} | {p50} | {p99} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", type=Path, required=True)
    parser.add_argument("--users", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--beam", type=int, default=BEAM)
    parser.add_argument("--max-batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 7, 64], help="users of a request")
    args = parser.parse_args(argv)
    if not 1 <= min(args.sizes) <= max(args.sizes) <= args.max_batch:
        parser.error(f"--sizes are {args.sizes}; a request holds 1 to --max-batch ({args.max_batch}) users")
    if not args.users.is_file():
        parser.error(f"--users {args.users} is no file; give the part-0.parquet of the day's evaluation set")
    try:
        manifest = verify(args.release)
        tokenizer = Tokenizer.load(args.release / "tokenizer")
        model = load_model(args.release / "model", tokenizer)
        users = real_users(args.users, tokenizer, model.config)
    except (ValueError, OSError) as error:
        parser.error(f"--release {args.release}, --users {args.users}: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    args.beam = min(args.beam, len(tokenizer.catalogue))
    about = f"release {manifest.release_id}, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"
    with TemporaryDirectory(prefix="onerec-gpu-release-") as scratch:
        exported, store = Path(scratch) / FOLDER, DirectoryStore(Path(scratch) / "store")
        exported.mkdir()
        kind = "cuda" if args.device == "gpu" else "cpu"
        report = export_release(
            model=model,
            tokenizer=tokenizer,
            users=users,
            out=exported,
            devices=[kind],
            beam=args.beam,
            max_batch=args.max_batch,
        )[kind]
        wanted, found = reference(model, tokenizer, users, args.beam), {}
        for name, made in (("the package", exported), ("eager", None)):
            if made is not None and not report["passed"]:
                continue
            release = published(store, args.release, manifest, made)
            config = ServingConfig(device=args.device, max_batch=args.max_batch, queue_timeout_ms=60_000)
            log = args.out / f"gpu_release_{release.name}.log"
            server = ModelServer(release=release, features=release, feature_store=release, log=log, config=config)
            begun = time.monotonic()
            with server:
                print(f"{name}: ready after {time.monotonic() - begun:.0f} s", flush=True)
                found[name] = asked(server, users, wanted, args.beam, args.sizes)
            with contextlib.suppress(OSError):
                print(*(line for line in log.read_text().splitlines() if "onerec: release" in line), sep="\n")
            print(name, found[name]["rounds"], flush=True)
            (args.out / "gpu_release.md").write_text(page(report, found, about, args))
    print((args.out / "gpu_release.md").read_text())
    return int(not all(v["passed"] for of in found.values() for v in of["verdicts"].values()))


if __name__ == "__main__":
    sys.exit(main())
