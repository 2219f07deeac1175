"""Signed manifests: an OpenSSF model signature with an elliptic-curve key beside every manifest.

    make_keys(Path("keys"))                          # signer.key.pem (secret) and signer.pub.pem
    ONEREC_SIGNING_KEY=keys/signer.key.pem           # publish signs
    ONEREC_TRUSTED_KEYS=keys                         # loading and promoting demand a signature by one of its *.pub.pem

The manifest holds the digest of every file, so a signature over it is one over the release. It lies in
`signatures/<sha256 of the manifest>.sig`, so two publishers of one release never overwrite each other's. To check one
without this code: model_signing verify key --public_key K --signature S --ignore_unsigned_files RELEASE
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from releases.object_store import digest_bytes

SIGNATURES = "signatures"
PUBLIC = ".pub.pem"
_LIMIT = 1 << 20  # bytes; a signature has about two thousand


def signature_name(manifest: bytes) -> str:
    """Path of the signature inside the release folder."""
    return f"{SIGNATURES}/{digest_bytes(manifest)}.sig"


def sign(manifest: bytes) -> bytes | None:
    """The signature with the key of ONEREC_SIGNING_KEY, None when none is set.

    Raises ValueError when the key cannot be used, or when what it signs would be refused by ONEREC_TRUSTED_KEYS.
    """
    key = os.environ.get("ONEREC_SIGNING_KEY", "")
    if not key:
        if trusted_keys():
            raise ValueError("ONEREC_TRUSTED_KEYS asks for signatures, so set ONEREC_SIGNING_KEY to publish")
        return None
    from model_signing.signing import Config

    with tempfile.TemporaryDirectory() as folder:
        model, signature = Path(folder) / "release", Path(folder) / "signature"
        model.mkdir()
        (model / "manifest.json").write_bytes(manifest)
        try:
            Config().use_elliptic_key_signer(private_key=Path(key)).sign(model, signature)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"ONEREC_SIGNING_KEY {key} cannot sign ({type(error).__name__}); mend the path") from None
        data = signature.read_bytes()
    verify_signature(manifest, data, "this release")
    return data


def verify_signature(manifest: bytes, signature: bytes | None, what: str) -> str | None:
    """The name of the trusted key that signed the manifest; None when ONEREC_TRUSTED_KEYS demands no signature.

    Raises ValueError for a missing signature, one of an unknown key, or one of another manifest.
    """
    keys = trusted_keys()
    if not keys:
        return None
    if signature is None:
        raise ValueError(f"{what} is not signed; check where it comes from, then: onerec release sign RELEASE")
    if len(signature) > _LIMIT:
        raise ValueError(f"the signature of {what} has {len(signature):,} bytes; refusing it")
    from model_signing.verifying import Config

    reasons = []
    with tempfile.TemporaryDirectory() as folder:
        model, file = Path(folder) / "release", Path(folder) / "signature"
        model.mkdir()
        (model / "manifest.json").write_bytes(manifest)
        file.write_bytes(signature)
        for key in keys:
            try:
                Config().use_elliptic_key_verifier(public_key=key).verify(model, file)
            except Exception as error:  # the library raises whatever its parsers do: each means "not by this key"
                reasons.append(f"{key.name}: {type(error).__name__}")
            else:
                return key.name.removesuffix(PUBLIC)
    raise ValueError(f"the signature of {what} is by no trusted key ({', '.join(reasons)}); refusing it")


def trusted_keys() -> list[Path]:
    """The public keys of ONEREC_TRUSTED_KEYS. ValueError for a folder without any: that would trust nobody or all."""
    folder = os.environ.get("ONEREC_TRUSTED_KEYS", "")
    if not folder:
        return []
    keys = sorted(Path(folder).glob(f"*{PUBLIC}"))
    if not keys:
        raise ValueError(f"ONEREC_TRUSTED_KEYS: {folder} holds no *{PUBLIC}; put the public keys of the signers there")
    return keys


def make_keys(folder: Path, name: str = "signer") -> tuple[Path, Path]:
    """A new P-256 pair: the secret one readable by its owner only. ValueError when the name is taken."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    secret, public = folder / f"{name}.key.pem", folder / f"{name}{PUBLIC}"
    if secret.exists() or public.exists():
        raise ValueError(f"{folder} has a key named {name}; choose another name")
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    with open(os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return secret, public
