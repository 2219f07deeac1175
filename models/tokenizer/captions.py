"""Caption generation from the query vectors (TR section 2.1): keeps the aligned representation true to the content.

A LLaMA-class decoder reads the item's query vectors as a prefix of embeddings, then its caption, and predicts each next
token: L_caption = - sum_k log P(t^(k+1) | M~, t^1..t^k). The mean over a batch's tokens is taken instead of the sum, so
that long captions and large batches do not change its weight.

    ids = caption_ids(captions, "meta-llama/Llama-3.2-1B")
    decoder = CaptionDecoder(dim=512, vocabulary=ids.max() + 1, name="meta-llama/Llama-3.2-1B")
    decoder(queries_BQD, ids)

With a `name` (hub or path) the language model is pretrained and stays frozen: the gradient flows through it into the
queries. Without, a small random one of the same class is trained along, on the text encoder's word pieces.

Legend: B items, Q queries, D their width, T caption tokens, H width of the language model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CAPTION = 32  # tokens
SMALL: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


def caption_ids(captions: list[str], name: str = "") -> np.ndarray:
    """[N, MAX_CAPTION] int64, each caption ended by the end token and padded with -100 (the ignored label)."""
    from transformers import AutoTokenizer

    from models.tokenizer.content.text import bundled_model

    tokenizer = AutoTokenizer.from_pretrained(name or bundled_model(), local_files_only=not name)
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    ids = np.full((len(captions), MAX_CAPTION), -100, np.int64)
    for row, caption in enumerate(captions):
        if caption:
            tokens = tokenizer(caption, add_special_tokens=False, truncation=True, max_length=MAX_CAPTION - 1)
            own = [*tokens["input_ids"], end]
            ids[row, : len(own)] = own
    return ids


class CaptionDecoder(nn.Module):
    """The language model and a linear map of queries into its embedding space. vocabulary: of the small model."""

    def __init__(self, *, dim: int, vocabulary: int, name: str = "") -> None:
        super().__init__()
        from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

        self.lm: Any
        if name:
            self.lm = AutoModelForCausalLM.from_pretrained(name).requires_grad_(False)
        else:
            self.lm = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **SMALL))
        self.prefix = nn.Linear(dim, self.lm.config.hidden_size)

    def forward(self, queries_BQD: Tensor, ids_BT: Tensor) -> Tensor:
        """Mean next-token loss over the tokens of the captions; 0 if there are none."""
        told = (ids_BT >= 0).any(1)
        if not told.any():
            return queries_BQD.sum() * 0.0
        queries_BQD, ids_BT = queries_BQD[told], ids_BT[told][:, : int((ids_BT >= 0).sum(1).max())]
        prefix_BQH = self.prefix(queries_BQD)
        words_BTH = self.lm.get_input_embeddings()(ids_BT.clamp_min(0))
        # Padding stands behind the caption, and attention is causal: no mask is needed for what is scored.
        inputs = torch.cat([prefix_BQH.to(words_BTH.dtype), words_BTH[:, :-1]], 1)
        logits = self.lm(inputs_embeds=inputs, use_cache=False, logits_to_keep=ids_BT.shape[1]).logits
        return F.cross_entropy(logits.float().flatten(0, 1), ids_BT.flatten(), ignore_index=-100)
