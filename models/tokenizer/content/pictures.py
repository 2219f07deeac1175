"""Cover images and uniformly sampled frames, as PIL images.

    cover, frames = load_pictures(item, open_uri)

`open_uri` turns a URI into a binary stream, so that this room knows no object store; the default reads local paths and
file:// URIs. A picture that cannot be read counts as missing (the modality is masked) and is said once an item through
`warnings`: one broken upload must not stop a day.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlparse

import av
from PIL import Image

from models.tokenizer.content.items import ItemContent

FRAMES = 5
CLIPS = (".mp4", ".mov", ".webm", ".mkv", ".m4v", ".avi")
MAX_SIDE = 1024  # pixels; encoders resize to less, and a huge upload must not take the memory

OpenUri = Callable[[str], BinaryIO]


def open_local(uri: str) -> BinaryIO:
    """A stream of a path or file:// URI."""
    parts = urlparse(uri)
    if parts.scheme not in ("", "file"):
        raise ValueError(f"{uri}: only local files are read here; pass an open_uri that knows {parts.scheme}://")
    return Path(unquote(parts.path) if parts.scheme else uri).open("rb")


def load_pictures(item: ItemContent, open_uri: OpenUri = open_local) -> tuple[Image.Image | None, list[Image.Image]]:
    """The cover (or None) and up to FRAMES frames, uniformly sampled of the clip or of the listed pictures."""
    cover = _try(item.cover, lambda: load_image(item.cover, open_uri)) if item.cover else None
    uris = item.frames
    if len(uris) == 1 and uris[0].lower().endswith(CLIPS):
        return cover, _try(uris[0], lambda: sample_frames(uris[0], open_uri=open_uri)) or []
    chosen = [uris[i] for i in uniform(len(uris), FRAMES)]
    frames = [_try(uri, lambda uri=uri: load_image(uri, open_uri)) for uri in chosen]
    return cover, [f for f in frames if f is not None]


def uniform(total: int, wanted: int) -> list[int]:
    """Middles of `wanted` equal parts of 0..total-1; all of them if there are no more."""
    if total <= wanted:
        return list(range(total))
    return [int((i + 0.5) * total / wanted) for i in range(wanted)]


def load_image(uri: str, open_uri: OpenUri = open_local) -> Image.Image:
    """An RGB picture, its longer side at most MAX_SIDE."""
    with open_uri(uri) as stream:
        image = Image.open(io.BytesIO(stream.read()))
        image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # JPEG decodes at a fraction of the size
        return _small(image.convert("RGB"))


def sample_frames(uri: str, count: int = FRAMES, *, open_uri: OpenUri = open_local) -> list[Image.Image]:
    """`count` frames at the middles of equal parts of a clip; fewer if the clip has fewer.

    Each is reached by a seek to the key frame before it and decoding from there; a clip without length is decoded once.
    """
    with open_uri(uri) as stream, av.open(stream, "r") as container:
        if not container.streams.video:
            raise ValueError(f"{uri} has no video stream")
        video = container.streams.video[0]
        video.thread_type = "AUTO"
        length, base = video.duration, video.time_base
        if not length or base is None:
            frames = [_small(f.to_image()) for f in container.decode(video)]
            return [frames[i] for i in uniform(len(frames), count)]
        start = video.start_time or 0
        found: dict[int, Image.Image] = {}
        for i in range(count):
            target = start + int((i + 0.5) * length / count)
            container.seek(target, stream=video, backward=True)
            last = None
            for frame in container.decode(video):
                last = frame
                if frame.pts is not None and frame.pts + (frame.duration or 1) > target:
                    break
            if last is not None and last.pts is not None and last.pts not in found:
                found[last.pts] = _small(last.to_image())
        return [found[pts] for pts in sorted(found)]


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image


def _try(uri: str, load: Callable):
    try:
        return load()
    except (OSError, ValueError, av.FFmpegError) as error:
        warnings.warn(f"{uri} cannot be read and counts as missing: {error}", stacklevel=3)
        return None
