"""What a component runs in: `@component` is `dsl.component` with our image. For compiling only, not for running.

The image holds the `ml` environment and this repository, so a component installs nothing when it starts. Its name and
digest are in locks/images.json (`python -m kfp_components.compile --image NAME@sha256:...`); ONEREC_IMAGE wins.
"""

from __future__ import annotations

import functools
import json
import os
import re

from kfp import dsl

from kfp_components.digest import REPOSITORY

LOCK = REPOSITORY / "locks" / "images.json"
BY_DIGEST = re.compile(r"[a-z0-9][a-z0-9._:/-]*@sha256:[0-9a-f]{64}")


def check_image(image: str) -> str:
    """The name itself when it names a digest; ValueError otherwise, because a tag may be another image tomorrow."""
    if not BY_DIGEST.fullmatch(image):
        raise ValueError(f"image {image!r} names no digest; write registry/name@sha256:<64 hex digits>")
    return image


def locked_image() -> str:
    """The image of the components: of ONEREC_IMAGE, else of the lock file; an image without one compiles nothing."""
    if given := os.environ.get("ONEREC_IMAGE"):
        return check_image(given)
    return check_image(json.loads(LOCK.read_text())["ml"]) if LOCK.is_file() else "onerec/ml"


IMAGE = locked_image()
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
