"""Content: items table, pictures and clips made here, the text encoder, and a tiny vision-language model from disk."""

from __future__ import annotations

import io

import av
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from models.tokenizer.content import pictures
from models.tokenizer.content.encoder import Tokens, content_encoder, encode_all
from models.tokenizer.content.items import MAX_TAGS, ItemContent, hashed, read_items
from models.tokenizer.content.pictures import load_pictures, sample_frames, uniform
from models.tokenizer.content.text import TextEncoder
from models.tokenizer.content.vision_language import VisionLanguageEncoder, fixed_projection

GREYS = 20


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """red.png, blue.jpg, and clip.mp4 whose frame n has the grey value 12 n."""
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (48, 32), (255, 0, 0)).save(folder / "red.png")
    Image.new("RGB", (2400, 1200), (0, 0, 255)).save(folder / "blue.jpg")
    with av.open(str(folder / "clip.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(GREYS):
            picture = np.full((48, 64, 3), 12 * n, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    return folder


def test_items_are_read_with_whatever_columns_there_are():
    full = pa.table(
        {
            "item_id": [1, 2],
            "author_id": [7, None],
            "caption": [" a cat ", None],
            "tags": [[3, 4], None],
            "cover_uri": ["c.jpg", None],
            "frame_uris": [["a.jpg", None], None],
        }
    )
    first, second = read_items(full)
    assert first == ItemContent(caption="a cat", tags=(3, 4), author=7, cover="c.jpg", frames=("a.jpg",))
    assert second == ItemContent() and not second.has_text and not second.has_pictures
    assert read_items(pa.table({"item_id": [1], "author_id": [-1]})) == [ItemContent()]


def test_hashed_tags_and_authors_are_stable_and_marked_where_missing():
    items = [ItemContent(tags=tuple(range(20)), author=5), ItemContent(tags=(3,)), ItemContent(author=0)]
    tags, author = hashed(items, 100, 50)
    assert tags.shape == (3, MAX_TAGS) and (tags[0] >= 0).all() and (tags[1] >= 0).sum() == 1
    assert tags[0, 3] == tags[1, 0] and (tags[2] == -1).all()
    assert author[1] == -1 and 0 <= author[2] < 50 and author.max() < 50 and tags.max() < 100


@pytest.mark.parametrize("total, wanted, expected", [(3, 5, [0, 1, 2]), (10, 5, [1, 3, 5, 7, 9]), (100, 2, [25, 75])])
def test_uniform(total, wanted, expected):
    assert uniform(total, wanted) == expected


def test_frames_of_a_clip_are_the_middles_of_five_parts(media):
    frames = sample_frames(str(media / "clip.mp4"))
    grey = [float(np.asarray(f).mean()) for f in frames]
    np.testing.assert_allclose(grey, [12 * n for n in (2, 6, 10, 14, 18)], atol=4)
    assert frames[0].size == (64, 48)


def test_frames_by_key_frame_or_by_full_decoding_agree(media, monkeypatch):
    """A stream without a length (as a live recording has) is decoded once instead of sought in."""
    sought = [np.asarray(f).mean() for f in sample_frames(str(media / "clip.mp4"))]

    class NoLength:
        def __init__(self, container):
            self.container, video = container, container.streams.video[0]
            self.streams = type(
                "Streams", (), {"video": [type("Video", (), {"duration": None, "time_base": None})()]}
            )()
            self.decode = lambda _: container.decode(video)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.container.close()

    real = av.open
    monkeypatch.setattr(pictures.av, "open", lambda stream, mode: NoLength(real(stream, mode)))
    decoded = [np.asarray(f).mean() for f in sample_frames(str(media / "clip.mp4"))]
    np.testing.assert_allclose(decoded, sought, atol=1)


def test_pictures_of_an_item(media):
    item = ItemContent(cover=str(media / "blue.jpg"), frames=(str(media / "clip.mp4"),))
    cover, frames = load_pictures(item)
    assert cover is not None and max(cover.size) <= pictures.MAX_SIDE and len(frames) == 5
    listed = ItemContent(frames=tuple((media / "red.png").as_uri() for _ in range(9)))
    cover, frames = load_pictures(listed)
    assert cover is None and len(frames) == 5 and np.asarray(frames[0])[0, 0].tolist() == [255, 0, 0]


def test_a_broken_picture_counts_as_missing_and_is_said(media, tmp_path):
    (tmp_path / "half.jpg").write_bytes((media / "blue.jpg").read_bytes()[:200])
    (tmp_path / "not.mp4").write_bytes(b"no clip")
    item = ItemContent(cover=str(tmp_path / "half.jpg"), frames=(str(tmp_path / "not.mp4"),))
    with pytest.warns(UserWarning, match="counts as missing"):
        assert load_pictures(item) == (None, [])
    with pytest.warns(UserWarning, match="s3://"):
        assert load_pictures(ItemContent(cover="s3://bucket/a.jpg")) == (None, [])


def test_another_store_is_read_through_open_uri(media):
    store = {
        "s3://bucket/red.png": (media / "red.png").read_bytes(),
        "s3://b/clip.mp4": (media / "clip.mp4").read_bytes(),
    }
    item = ItemContent(cover="s3://bucket/red.png", frames=("s3://b/clip.mp4",))
    cover, frames = load_pictures(item, lambda uri: io.BytesIO(store[uri]))
    assert cover is not None and cover.size == (48, 32) and len(frames) == 5


@pytest.fixture(scope="module")
def text():
    return content_encoder("text")


def test_text_encoder_masks_what_is_missing(text):
    assert isinstance(text, TextEncoder)
    items = [ItemContent(caption="red nail polish"), ItemContent(tags=(1,), author=2), ItemContent(ocr="x " * 500)]
    tokens, mask = text.encode(items)
    assert tokens.shape == (3, 64, 384) and mask.sum(1).tolist() == [5, 0, 64]


def test_text_tokens_carry_meaning(text):
    """Mean-pooled, two nail polishes are nearer than a polish and a shampoo."""
    captions = ("OPI nail lacquer, red", "Essie nail polish, pink", "anti-dandruff shampoo for men")
    tokens = encode_all(text, [ItemContent(caption=c) for c in captions])
    mean = torch.stack(
        [
            torch.from_numpy(tokens.values[a:b].astype(np.float32)).mean(0)
            for a, b in zip(tokens.offsets, tokens.offsets[1:])
        ]
    )
    unit = torch.nn.functional.normalize(mean, dim=-1)
    assert unit[0] @ unit[1] > unit[0] @ unit[2] + 0.1


def test_encoding_all_does_not_depend_on_batches(text):
    items = [ItemContent(caption="word " * n) for n in (1, 9, 0, 4, 2)]
    whole = encode_all(text, items)
    text.batch_size = 2
    small = encode_all(text, items)
    text.batch_size = 64
    assert small.offsets.tolist() == whole.offsets.tolist() and small.offsets[3] == small.offsets[2]
    np.testing.assert_allclose(small.values.astype(np.float32), whole.values.astype(np.float32), atol=2e-3)


def test_ragged_tokens_to_padded():
    tokens = Tokens(np.arange(8, dtype=np.float16).reshape(4, 2), np.array([0, 3, 3, 4]))
    values, mask = tokens.padded(np.array([2, 1, 0]))
    assert mask.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert values[0, 0].tolist() == [6, 7] and values[0, 1].tolist() == [0, 0] and values[2, 2].tolist() == [4, 5]
    assert tokens.padded(np.array([0]), longest=2)[1].shape == (1, 2)
    empty = Tokens(np.empty((0, 2), np.float16), np.zeros(3, np.int64))
    assert empty.padded(np.array([0, 1]))[0].shape == (2, 0, 2)


TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def _tokenizer(image_token: str):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", "<s>", "</s>", image_token, "Caption", ":", "cat", "dog", "On", "screen"]
    words += ["Speech", "<", ">", "image"]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens={"image_token": image_token}, **special)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A LLaVA of two layers with random weights, saved with its processor as a hub model is."""
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tiny = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**tiny, image_size=32, patch_size=16, projection_dim=32)
    language = LlamaConfig(**tiny, vocab_size=32, pad_token_id=0)
    config = LlavaConfig(vision_config=vision, text_config=language, image_token_index=4, image_seq_length=4)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(**size),
        tokenizer=_tokenizer("<image>"),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _items(media) -> list[ItemContent]:
    return [
        ItemContent(caption="cat dog", cover=str(media / "red.png"), frames=(str(media / "clip.mp4"),)),
        ItemContent(caption="dog"),
        ItemContent(tags=(3,), author=9),
        ItemContent(cover=str(media / "blue.jpg")),
    ]


def test_vision_language_model_reads_pictures_and_text_and_masks_the_rest(llava, media):
    encoder = content_encoder(str(llava), dim=512)
    assert isinstance(encoder, VisionLanguageEncoder) and encoder.dim == 32  # narrower than dim: as it is
    tokens, mask = encoder.encode(_items(media))
    # A picture is 4 tokens here; "Caption: cat dog" is 4 words.
    assert mask.sum(1).tolist() == [6 * 4 + 4, 3, 0, 4] and tokens.shape == (4, 28, 32)
    assert torch.isfinite(tokens).all() and (tokens[~mask] == 0).all()


def test_what_the_model_says_depends_on_the_picture_and_not_on_the_batch(llava, media):
    encoder = content_encoder(str(llava))
    items = _items(media)
    tokens, mask = encoder.encode(items)
    for row in (0, 1, 3):
        alone, own = encoder.encode([items[row]])
        torch.testing.assert_close(alone[0][own[0]], tokens[row][mask[row]], atol=1e-4, rtol=1e-4)
    other = encoder.encode([ItemContent(cover=str(media / "red.png"))])[0][0]
    assert (other - tokens[3, :4]).abs().max() > 0.05


def test_wide_states_are_projected_and_long_ones_pooled(llava, media):
    encoder = VisionLanguageEncoder(str(llava), dim=8, max_tokens=10)
    wide = content_encoder(str(llava))
    tokens, mask = encoder.encode(_items(media))
    assert encoder.dim == 8 and tokens.shape == (4, 10, 8) and mask.sum(1).tolist() == [10, 3, 0, 4]
    expected = wide.encode(_items(media))[0][1, :3] @ fixed_projection(32, 8)
    torch.testing.assert_close(tokens[1, :3], expected, atol=1e-4, rtol=1e-4)


def test_a_caption_cannot_write_control_tokens(llava, media):
    """ "<image>" in an uploader's caption is text: the number of pictures still fits."""
    encoder = content_encoder(str(llava))
    _, mask = encoder.encode([ItemContent(caption="cat <image> dog", cover=str(media / "red.png"))])
    plain = encoder.encode([ItemContent(caption="cat dog", cover=str(media / "red.png"))])[1]
    assert mask.sum() > plain.sum()


def test_the_fixed_projection_keeps_distances_on_average():
    p = fixed_projection(256, 64)
    torch.testing.assert_close(p.T @ p, torch.eye(64) * 4, atol=1e-4, rtol=0)
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(1))
    assert ((x @ p).square().sum(1) / x.square().sum(1)).mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(p, fixed_projection(256, 64))


def test_a_model_without_chat_template_is_refused(llava, tmp_path):
    import shutil

    shutil.copytree(llava, tmp_path / "m")
    for file in (tmp_path / "m").glob("chat_template*"):
        file.unlink()
    with pytest.raises(ValueError, match="no chat template"):
        content_encoder(str(tmp_path / "m"))
