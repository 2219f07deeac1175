"""Residual K-means against brute force in float64, its determinism, its sources, and its degenerate inputs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist

from models.tokenizer import assign as assigning
from models.tokenizer import kmeans as clustering
from models.tokenizer import rq_kmeans
from models.tokenizer.assign import assign
from models.tokenizer.balanced import balanced_kmeans
from models.tokenizer.kmeans import kmeans
from models.tokenizer.vectors import InMemory, ParquetVectors


def _blobs(n: int, k: int, dim: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(k, dim)) * 5
    return torch.from_numpy((centre[rng.integers(k, size=n)] + rng.normal(size=(n, dim)) * 0.1).astype(np.float32))


def _lloyd(x: np.ndarray, centroid: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's iterations in float64 with every distance written out; no cluster may become empty."""
    for _ in range(iterations):
        code = np.square(x[:, None] - centroid[None]).sum(-1).argmin(1)
        centroid = np.stack([x[code == k].mean(0) for k in range(len(centroid))])
    return centroid, np.square(x[:, None] - centroid[None]).sum(-1).argmin(1)


@pytest.mark.parametrize("scores", [64, 10**6])
def test_assign_is_the_nearest_centroid(monkeypatch, scores):
    monkeypatch.setattr(assigning, "SCORES", scores)  # 64 scores are 7 rows, which do not divide 50
    x, c = torch.randn(50, 6, dtype=torch.float64), torch.randn(9, 6, dtype=torch.float64)
    code, distance = assign(x, c)
    brute = (x[:, None] - c[None]).square().sum(-1)
    assert torch.equal(code, brute.argmin(1))
    torch.testing.assert_close(distance, brute.min(1).values)


def test_assign_of_nothing_is_empty():
    code, distance = assign(torch.empty(0, 6), torch.randn(9, 6))
    assert code.shape == distance.shape == (0,)


def test_lloyd_is_the_reference_in_float64():
    x = torch.randn(600, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centroid, code = kmeans(InMemory(x), 7, seed=0, iterations=4, initial=x[:7])
    wanted, wanted_code = _lloyd(x.numpy(), x[:7].numpy(), 4)
    np.testing.assert_allclose(centroid.numpy(), wanted, atol=1e-12)
    assert np.array_equal(code.numpy(), wanted_code)


def test_kmeans_finds_separate_blobs_and_repeats_by_seed():
    x = _blobs(400, 8, 5, 0)
    centroid, code = kmeans(InMemory(x), 8, seed=1)
    assert len(code.unique()) == 8
    assert assign(x, centroid)[1].max() < 1.0  # blobs are 0.1 wide and far apart
    for k in range(8):
        torch.testing.assert_close(centroid[k], x[code == k].mean(0), atol=1e-4, rtol=1e-4)
    assert torch.equal(centroid, kmeans(InMemory(x), 8, seed=1)[0])
    assert not torch.equal(centroid, kmeans(InMemory(x), 8, seed=2)[0])


def test_rounds_of_k_means_plus_plus_spread_over_the_blobs(monkeypatch):
    """More codes than rounds, so that a round draws several: still no blob is left without one."""
    monkeypatch.setattr(clustering, "ROUNDS", 8), monkeypatch.setattr(clustering, "GREEDY", 4)
    x = _blobs(4000, 40, 6, 3)
    found = clustering._start(InMemory(x), 160, 0, 0, len(x), clustering.Peers())
    assert assign(x, found)[1].max() < 2.0


def test_empty_clusters_take_the_worst_served_vectors_and_no_copy_twice():
    x = torch.tensor([[0.0], [0.1], [0.2], [50.0], [50.0], [40.0]])
    start = torch.tensor([[0.1], [900.0], [900.0]])  # nobody is near 900
    centroid, code = kmeans(InMemory(x), 3, seed=0, initial=start)
    torch.testing.assert_close(centroid.sort(0).values, torch.tensor([[0.1], [40.0], [50.0]]))
    assert len(code.unique()) == 3


def test_clusters_that_the_last_iteration_empties_are_filled():
    """One iteration, after which a centroid has lost all its vectors: every code is used all the same."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    start = torch.cat([x[:5], torch.full((3, 4), 100.0)])
    for iterations in (1, 2):
        _, code = kmeans(InMemory(x), 8, seed=0, iterations=iterations, initial=start)
        assert len(code.unique()) == 8


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_fewer_distinct_vectors_than_codes(rows):
    distinct = torch.randn(min(rows, 3), 4)
    x = distinct.repeat(rows // len(distinct) + 1, 1)[:rows]
    centroid, code = kmeans(InMemory(x), 8, seed=0)
    assert centroid.shape == (8, 4) and torch.isfinite(centroid).all()
    assert assign(x, centroid)[1].max() < 1e-5
    assert len(code.unique()) == len(distinct)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_vectors_that_are_all_centroids_end_at_once(monkeypatch, scale):
    """What rounding leaves of a distance is no reason to go on; constant input is the case of one."""
    passes, once = [], clustering._pass
    monkeypatch.setattr(clustering, "_pass", lambda *a: passes.append(1) or once(*a))
    for distinct in (1, 3):
        x = (torch.randn(distinct, 96) * scale).repeat(700, 1)
        passes.clear()
        centroid, _ = kmeans(InMemory(x), 8, seed=0)
        assert len(passes) <= 2
        assert assign(x, centroid)[1].max() <= 1e-5 * x.square().sum(1).max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("variant", rq_kmeans.VARIANTS)
def test_not_a_number_is_refused_by_row(bad, variant):
    x = torch.randn(10, 4)
    x[6, 2] = bad
    with pytest.raises(ValueError, match="vector 6"):
        rq_kmeans.fit(x, 1, 2, 0, variant=variant)


def test_not_a_number_outside_the_sample_is_refused(monkeypatch):
    monkeypatch.setattr(clustering, "MIN_SAMPLE", 4), monkeypatch.setattr(clustering, "SAMPLE", 2)
    x = torch.randn(1000, 4)
    x[996, 2] = float("nan")
    with pytest.raises(ValueError, match="vector 996"):
        kmeans(InMemory(x, rows=100), 2, seed=0)


@pytest.mark.parametrize("variant", rq_kmeans.VARIANTS)
def test_no_vectors_are_refused(variant):
    with pytest.raises(ValueError, match="no vectors"):
        rq_kmeans.fit(torch.empty(0, 4), 1, 2, 0, variant=variant)
    with pytest.raises(ValueError, match="choose one of plain, balanced"):
        rq_kmeans.fit(torch.ones(1, 4), 1, 2, 0, variant="other")


def test_residuals_shrink_and_decode_is_the_sum_of_centroids():
    x = torch.randn(500, 6, dtype=torch.float64)
    books = rq_kmeans.fit(x, levels=3, k=8, seed=0)
    codes = rq_kmeans.encode(x, books)
    assert codes.shape == (500, 3)
    error, residual = [x.square().sum().item()], x.clone()
    for level, book in enumerate(books):
        nearest = (residual[:, None] - book[None]).square().sum(-1).argmin(1)
        assert torch.equal(codes[:, level], nearest)
        residual -= book[nearest]
        error.append(residual.square().sum().item())
    assert error == sorted(error, reverse=True)
    assert error[-1] < 0.7 * error[0]
    torch.testing.assert_close(rq_kmeans.decode(codes, books), x - residual)


def test_every_level_is_used_whole_and_the_input_stays():
    x = torch.randn(900, 6)
    kept = x.clone()
    books = rq_kmeans.fit(x, levels=3, k=64, seed=0)
    assert torch.equal(x, kept)
    codes = rq_kmeans.encode(x, books)
    assert [len(codes[:, level].unique()) for level in range(3)] == [64] * 3


def test_parquet_gives_the_bits_of_memory(tmp_path):
    """Files and row groups end elsewhere than chunks do."""
    x = torch.randn(1003, 6)
    paths = []
    for i, rows in enumerate(x.split([400, 3, 600])):
        paths.append(tmp_path / f"{i}.parquet")
        flat = pa.array(rows.numpy().ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, 6) if i else pa.array(rows.tolist(), pa.list_(pa.float32()))
        pq.write_table(pa.table({"v": column}), paths[-1], row_group_size=170)
    stream, memory = ParquetVectors(paths, "v", rows=128), InMemory(x, rows=128)
    assert len(stream) == 1003 and stream.dim == 6
    assert torch.equal(torch.cat(list(stream.chunks())), x)
    assert [len(c) for c in stream.chunks()] == [len(c) for c in memory.chunks()]
    for a, b in zip(rq_kmeans.fit(stream, 3, 16, 0), rq_kmeans.fit(memory, 3, 16, 0), strict=True):
        assert torch.equal(a, b)
    books = rq_kmeans.fit(x, 3, 16, 0)
    assert torch.equal(rq_kmeans.encode(stream, books), rq_kmeans.encode(x, books))


def test_a_missing_vector_in_parquet_is_named(tmp_path):
    pq.write_table(pa.table({"v": [[1.0, 2.0], None]}), tmp_path / "v.parquet")
    with pytest.raises(ValueError, match="column v holds 2 numbers in 2 rows of 2"):
        list(ParquetVectors([tmp_path / "v.parquet"], "v").chunks())


def _one_of_two(rank: int, x: torch.Tensor, store: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mine = x[:300] if rank == 0 else x[300:]
    books = rq_kmeans.fit(mine, 2, 24, 0, iterations=6, shared=True)
    np.savez(f"{out}{rank}.npz", *[b.numpy() for b in books])
    dist.destroy_process_group()


def test_two_processes_fit_as_one_does(tmp_path):
    """Unequal shares, and clusters to repair; sums are added in another order, so not bit for bit."""
    x = torch.cat([_blobs(500, 10, 6, 0), _blobs(60, 14, 6, 1) * 4]).double()
    torch.multiprocessing.start_processes(
        _one_of_two, args=(x, str(tmp_path / "store"), str(tmp_path / "out")), nprocs=2, start_method="spawn"
    )
    alone = rq_kmeans.fit(x, 2, 24, 0, iterations=6)
    both = [np.load(tmp_path / f"out{rank}.npz") for rank in range(2)]
    for i, book in enumerate(alone):
        a, b = (found[f"arr_{i}"] for found in both)
        assert np.array_equal(a, b)
        np.testing.assert_allclose(a, book.numpy(), atol=1e-9)


def _balanced_reference(x: np.ndarray, centroid: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    K, N = len(centroid), len(x)
    centroid, before = centroid.copy(), None
    for _ in range(iterations):
        left, code = list(range(N)), np.empty(N, int)
        for k in range(K):
            take = sorted(left, key=lambda i: np.square(x[i] - centroid[k]).sum())[: N // K + (k < N % K)]
            code[take], centroid[k] = k, x[take].mean(0)
            left = [i for i in left if i not in take]
        if before is not None and np.array_equal(code, before):
            break
        before = code
    return centroid, code


def test_balanced_kmeans_is_the_published_algorithm():
    x = torch.randn(47, 3, dtype=torch.float64)
    centroid, code = balanced_kmeans(x, 6, seed=5)
    start = x[torch.randperm(47, generator=torch.Generator().manual_seed(5))[:6]]
    wanted, wanted_code = _balanced_reference(x.numpy(), start.numpy(), 25)
    assert np.array_equal(code.numpy(), wanted_code)
    np.testing.assert_allclose(centroid.numpy(), wanted, atol=1e-12)
    assert sorted(np.bincount(code.numpy())) == [7] + [8] * 5


def test_balanced_levels_are_nearer_to_uniform_and_few_vectors_are_allowed():
    x = torch.cat([torch.randn(900, 4), torch.randn(60, 4) * 6])
    entropy = []
    for variant in rq_kmeans.VARIANTS:
        codes = rq_kmeans.encode(x, rq_kmeans.fit(x, 1, 16, 0, variant=variant))
        p = torch.bincount(codes[:, 0], minlength=16) / len(x)
        entropy.append(float(-(p * p.clamp_min(1e-9).log()).sum()))
    assert entropy[1] > entropy[0]
    centroid, code = balanced_kmeans(x[:3], 8, seed=0)
    assert sorted(code.tolist()) == [0, 1, 2] and centroid.shape == (8, 4)


def test_decide_compares_near_ties_again_and_reads_the_index_from_the_low_bits():
    """The part of the CUDA path behind the kernel: scores of tiles as the kernel leaves them."""
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(400, 64, generator=generator), torch.randn(1024, 64, generator=generator)
    half = c.square().sum(1) / 2
    score = x.bfloat16().float() @ c.bfloat16().float().T - half
    place = torch.arange(1024) % 256
    packed = ((score.view(torch.int32) & -256) | place.int()).view(torch.float32)
    tiles = packed.view(400, 4, 256).amax(2).T.contiguous()
    code, best = assigning.decide(tiles, x, c, half, x.square().sum(1), 256)
    truth = x @ c.T - half
    wrong = score.argmax(1) != truth.argmax(1)
    assert int(wrong.sum()) >= 2  # bfloat16 alone decides some wrongly
    assert int((code != truth.argmax(1)).sum()) <= 1
    torch.testing.assert_close(best, truth.gather(1, code[:, None])[:, 0], atol=0.1, rtol=1e-2)


def test_a_balanced_level_is_fitted_on_what_encoding_leaves_over():
    """Not on what the balanced clusters leave: the nearest centroid of a vector may be another cluster's."""
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    first, second = rq_kmeans.fit(x, 2, 8, 0, variant="balanced")
    centroid, cluster = balanced_kmeans(x, 8, 0)
    nearest = assign(x, centroid)[0]
    assert torch.equal(first, centroid) and not torch.equal(nearest, cluster.long())
    assert torch.equal(second, balanced_kmeans(x - centroid[nearest], 8, 1)[0])
