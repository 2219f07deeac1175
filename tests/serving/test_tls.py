"""A server with TLS: both clients speak to it with its authority's certificate, and to nobody without."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.client import AsyncRecommendClient, RecommendClient
from serving.config import ServingConfig
from serving.triton_server import TritonServer


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Certificate and key of 127.0.0.1, PEM."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "onerec")])
    now, here = dt.datetime.now(dt.UTC), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def test_both_clients_over_tls(world, tmp_path):
    tls = self_signed(tmp_path)
    folders = {"features": world.features, "feature_store": world.feature_store}
    server = TritonServer(
        release=world.release, log=tmp_path / "triton.log", config=ServingConfig(threads=1), tls=tls, **folders
    )
    with server:

        async def ask() -> list[int]:
            async with AsyncRecommendClient(server.grpc_url, tls_root=tls[0]) as client:
                assert await client.ready(5.0)
                return (await client.recommend(1, 5, 30.0, now_s=1_700_000_000)).item_ids

        with RecommendClient(server.grpc_url, tls_root=tls[0]) as client:
            assert client.ready(5.0)
            found = client.recommend(1, 5, 30.0, now_s=1_700_000_000).item_ids
        assert len(found) == 5 and asyncio.run(ask()) == found
        with RecommendClient(server.grpc_url, retries=0) as plain, pytest.raises((ConnectionError, TimeoutError)):
            plain.recommend(1, 5, 5.0)
        (tmp_path / "other").mkdir()
        stranger = self_signed(tmp_path / "other")[0]
        stranger_client = RecommendClient(server.grpc_url, retries=0, tls_root=stranger)
        with stranger_client, pytest.raises((ConnectionError, TimeoutError)):
            stranger_client.recommend(1, 5, 5.0)
