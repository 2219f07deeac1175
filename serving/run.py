"""The serving process: Triton on what the channels name, until SIGTERM.

    python -m serving.run --store var/simulated/store --features var/simulated/features \\
        --feature-store var/simulated/feature_store --log var/up/tritonserver.log --canary-percent 5

--store is the directory of releases; where ONEREC_STORE says s3://..., copies of them are kept there instead.
It starts on the production release, follows every later promote and rollback, and lets the candidate meet the given
share of the traffic. Settings of ServingConfig are options of the same name.
"""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
from pathlib import Path
from typing import Any

from releases.channels import channel_in_use
from releases.manifest import load_release
from releases.stores import open_store
from serving.config import Rollout, ServingConfig
from serving.controller import Controller
from serving.triton_server import TritonServer


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("store", "features", "feature-store", "log"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument(
        "--source", default="", help="source in ONEREC_STORE, if that is set (default: the folder that --store is in)"
    )
    for name in ("http-port", "grpc-port", "metrics-port"):
        parser.add_argument(f"--{name}", type=int, help="default: a free one")
    parser.add_argument("--address", default="127.0.0.1", help="where to listen")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate for gRPC; with --tls-key")
    parser.add_argument("--tls-key", type=Path)
    parser.add_argument("--report", type=Path, help="file that says what is served and what was refused")
    for settings in (ServingConfig, Rollout):
        for field in dataclasses.fields(settings):
            kind = type(field.default)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    args = parser.parse_args(argv)
    try:
        serve(args)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _settings(args: argparse.Namespace, kind: type[ServingConfig] | type[Rollout]) -> dict[str, Any]:
    return {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)}


def serve(args: argparse.Namespace) -> None:
    """Raises ValueError when no release is in production or a setting is wrong, RuntimeError when it does not start."""
    config = ServingConfig(**_settings(args, ServingConfig))
    rollout = Rollout(**_settings(args, Rollout))
    if (args.tls_cert is None) != (args.tls_key is None):
        raise ValueError("give --tls-cert and --tls-key together")
    store = open_store(args.store, source=args.source or args.store.resolve().parent.name)
    channel = channel_in_use(store, "production")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = TritonServer(
        release=load_release(store, channel.release_id)[0],
        features=args.features,
        feature_store=args.feature_store,
        log=args.log,
        config=config,
        http_port=args.http_port,
        grpc_port=args.grpc_port,
        metrics_port=args.metrics_port,
        address=args.address,
        tls=(args.tls_cert, args.tls_key) if args.tls_cert else None,
    )
    with server, Controller(server, store, rollout=rollout, report=args.report):
        print(f"serving {channel.release_id} on {args.address}:{server.grpc_port}", flush=True)
        while server.process is not None and server.process.poll() is None:
            signal.sigtimedwait([], 1)
        raise RuntimeError(f"tritonserver ended by itself:\n{server.log_tail()}")


if __name__ == "__main__":
    sys.exit(main())
