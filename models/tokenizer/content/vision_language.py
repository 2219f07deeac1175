"""The production content encoder: a vision-language model reads text, cover and frames; its hidden states are tokens.

Any model of Hugging Face transformers with a processor and a chat template serves (MiniCPM-V, Qwen-VL, LLaVA, ...; some
processors need torchvision), from a local path or a hub name; nothing is executed from the hub (`trust_remote_code`
stays off). Each item becomes one user message: its pictures, then its text. What an item lacks is left out of the
message; an item without any of it has no tokens. At most MAX_TOKENS (TR: 1280) remain: longer outputs are averaged over
neighbouring tokens.

Hidden states wider than `dim` go through a fixed projection with orthonormal columns, drawn from a seed: it needs no
training, keeps squared distances in expectation, and a token then costs dim * 2 bytes wherever it is kept.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.tokenizer.content.items import ItemContent
from models.tokenizer.content.pictures import OpenUri, load_pictures, open_local

MAX_TOKENS = 1280
MAX_TEXT = 4000  # characters of one field
PROJECTION_SEED = 20250613


def fixed_projection(wide: int, narrow: int) -> Tensor:
    """[wide, narrow] with orthonormal columns times sqrt(wide / narrow), the same on every machine."""
    generator = torch.Generator().manual_seed(PROJECTION_SEED)
    q, r = torch.linalg.qr(torch.randn(wide, narrow, generator=generator, dtype=torch.float64))
    return (q * torch.sign(torch.diagonal(r)) * (wide / narrow) ** 0.5).float()


class VisionLanguageEncoder:
    """Batched; on CUDA in bfloat16. `batch_size` items of six pictures each at a time."""

    def __init__(
        self,
        name: str,
        *,
        dim: int = 512,
        device: str = "cpu",
        batch_size: int = 8,
        max_tokens: int = MAX_TOKENS,
        open_uri: OpenUri | None = None,
    ) -> None:
        from transformers import AutoModel, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(name)
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"{name}: its processor has no chat template; add chat_template.jinja or take an instruct model"
            )
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        self.model = AutoModel.from_pretrained(name, dtype=dtype).eval().to(device)
        hidden = self.model.config.get_text_config().hidden_size
        self.projection = fixed_projection(hidden, dim).to(device) if hidden > dim else None
        self.dim, self.batch_size = min(hidden, dim), batch_size
        self.device, self.max_tokens, self.open_uri = device, max_tokens, open_uri or open_local
        self.processor.tokenizer.padding_side = "right"
        if self.processor.tokenizer.pad_token is None:
            self.processor.tokenizer.pad_token = self.processor.tokenizer.eos_token

    @torch.inference_mode()
    def encode(self, items: list[ItemContent]) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, dim] and mask [B, N], N at most max_tokens."""
        messages = [self._message(item) for item in items]
        shown = [row for row, message in enumerate(messages) if message]
        if not shown:
            return torch.zeros(len(items), 0, self.dim), torch.zeros(len(items), 0, dtype=torch.bool)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            inputs = self.processor.apply_chat_template(
                [[{"role": "user", "content": messages[row]}] for row in shown],
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                sanitize_control_tokens=True,  # an uploader's caption must not write the model's own control tokens
                processor_kwargs={"padding": True},
            ).to(self.device)
        hidden = self.model(**inputs).last_hidden_state.float()
        if self.projection is not None:
            hidden = hidden @ self.projection
        mask = inputs["attention_mask"].bool()
        pooled = [_at_most(h[m], self.max_tokens) for h, m in zip(hidden, mask)]
        longest = max(len(p) for p in pooled)
        tokens = torch.zeros(len(items), longest, self.dim, device=self.device)
        present = torch.zeros(len(items), longest, dtype=torch.bool, device=self.device)
        for row, p in zip(shown, pooled):
            tokens[row, : len(p)], present[row, : len(p)] = p, True
        return tokens, present

    def _message(self, item: ItemContent) -> list[dict[str, Any]]:
        """Parts of the chat message: pictures first, then one text; empty if the item has neither."""
        cover, frames = load_pictures(item, self.open_uri)
        pictures = ([cover] if cover is not None else []) + frames
        content: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in pictures]
        fields = (("Caption", item.caption), ("On screen", item.ocr), ("Speech", item.asr))
        text = "\n".join(f"{name}: {value[:MAX_TEXT]}" for name, value in fields if value)
        return [*content, {"type": "text", "text": text}] if text else content


def _at_most(tokens_ND: Tensor, longest: int) -> Tensor:
    """Neighbouring tokens averaged down to `longest` if there are more."""
    if len(tokens_ND) <= longest:
        return tokens_ND
    return F.adaptive_avg_pool1d(tokens_ND.T[None], longest)[0].T
