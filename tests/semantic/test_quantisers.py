"""Codebook, residual k-means and RQ-VAE."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hisac_rec.semantic.codebook import Codebook, Quantiser, nearest
from hisac_rec.semantic.config import RqVaeConfig
from hisac_rec.semantic.residual_kmeans import ResidualKMeans, kmeans
from hisac_rec.semantic.rqvae import RqVae

CODES = [6, 5]
WIDTH = 16
SMALL = RqVaeConfig(latent_dim=8, hidden=[32], epochs=40, batch_size=64, lr=3e-3)


def planted(
    items: int = 600, noise: float = 0.02, seed: int = 0
) -> tuple[torch.Tensor, np.ndarray]:
    """Vectors [items, WIDTH] around the leaves of an additive tree, and the leaves [items]."""
    rng = np.random.default_rng(seed)
    top = rng.normal(size=(CODES[0], WIDTH)) * 3
    below = rng.normal(size=(CODES[1], WIDTH))
    below -= below.mean(0)
    path = np.stack([np.arange(items) % n for n in CODES], axis=1)  # every leaf, evenly
    vectors = top[path[:, 0]] + below[path[:, 1]] + noise * rng.normal(size=(items, WIDTH))
    return torch.tensor(vectors, dtype=torch.float32), path


QUANTISERS: dict[str, Callable[[int], Quantiser]] = {
    "residual_kmeans": lambda seed: ResidualKMeans(CODES, seed=seed),
    "rqvae": lambda seed: RqVae(CODES, SMALL, seed=seed),
}


@pytest.fixture(params=QUANTISERS)
def make(request: pytest.FixtureRequest) -> Callable[[int], Quantiser]:
    return QUANTISERS[request.param]


@pytest.mark.parametrize("seed", range(5))
def test_residual_kmeans_finds_the_planted_tree(seed: int) -> None:
    vectors, path = planted(seed=seed)
    quantiser = ResidualKMeans(CODES, seed=seed)
    quantiser.fit(vectors)
    codes = quantiser.encode(vectors).numpy()
    for level, count in enumerate(CODES):
        pairs = np.unique(np.stack([path[:, level], codes[:, level]]), axis=1)
        assert pairs.shape[1] == count  # one code a planted code, and the other way round
    left = (vectors - quantiser.reconstruct(quantiser.encode(vectors))).square().mean()
    assert left < 2 * 0.02**2


def test_reconstruction_beats_the_mean(make: Callable[[int], Quantiser]) -> None:
    vectors, _ = planted(noise=0.3)
    quantiser = make(0)
    quantiser.fit(vectors)
    rebuilt = quantiser.reconstruct(quantiser.encode(vectors))
    trivial = (vectors - vectors.mean(0)).square().mean()
    assert (vectors - rebuilt).square().mean() < 0.3 * trivial


def test_equal_seeds_equal_codebooks(make: Callable[[int], Quantiser]) -> None:
    vectors, _ = planted(noise=0.5)
    torch.manual_seed(1)
    first = make(3)
    first.fit(vectors)
    torch.manual_seed(2)  # the global generator has no say
    second = make(3)
    second.fit(vectors)
    for one, two in zip(first.codebook.levels, second.codebook.levels, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(first.encode(vectors), second.encode(vectors))
    other = make(4)
    other.fit(vectors)
    assert not torch.equal(first.codebook.levels[0], other.codebook.levels[0])


def test_the_global_generator_is_left_alone(make: Callable[[int], Quantiser]) -> None:
    vectors, _ = planted()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make(0).fit(vectors)
    assert torch.equal(torch.rand(3), expected)


def test_unseen_vectors_land_beside_their_like(make: Callable[[int], Quantiser]) -> None:
    vectors, _ = planted()
    quantiser = make(0)
    quantiser.fit(vectors)
    unseen = vectors + 0.01 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(9))
    same = (quantiser.encode(unseen) == quantiser.encode(vectors)).all(1)
    assert same.float().mean() > 0.95


def test_rqvae_latents_and_code_words_share_one_space_of_unit_size() -> None:
    vectors, _ = planted()
    quantiser = RqVae(CODES, SMALL)
    codebook = quantiser.fit(vectors)
    latent = quantiser.embed(vectors)
    assert latent.shape == (600, SMALL.latent_dim)
    assert latent.square().sum(1).mean().item() == pytest.approx(1.0, abs=1e-4)
    rest = (latent - codebook.path_vector(quantiser.encode(vectors))).square().sum(1).mean()
    assert rest < 0.3 * (latent - latent.mean(0)).square().sum(1).mean()


def test_rqvae_revives_dead_codes() -> None:
    vectors, _ = planted(noise=0.5)
    usage = {}
    for until in (0.0, 0.8):
        config = SMALL.model_copy(update={"revive_until": until, "epochs": 30})
        quantiser = RqVae([64, 64], config)
        quantiser.fit(vectors)
        codes = quantiser.encode(vectors)
        usage[until] = sum(len(codes[:, level].unique()) for level in range(2))
    assert usage[0.8] >= usage[0.0]
    assert usage[0.8] > 100


def test_restarts_find_what_one_seeding_misses() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 8, generator=generator)
    points = centres.repeat(30, 1) + 0.1 * torch.randn(1200, 8, generator=generator)

    def mean_error(restarts: int) -> float:
        errors = []
        for seed in range(8):
            words = kmeans(points, 40, 50, torch.Generator().manual_seed(seed), restarts)
            errors.append(nearest(points, words)[1].mean().item())
        return sum(errors) / len(errors)

    assert mean_error(5) < mean_error(1)


def test_kmeans_revives_empty_centres() -> None:
    points = torch.cat([torch.zeros(500, 2), torch.eye(2), 5 * torch.eye(2)])
    generator = torch.Generator().manual_seed(0)
    words = kmeans(points, 5, 20, generator)
    assert len(nearest(points, words)[0].unique()) == 5


def test_kmeans_with_fewer_distinct_points_than_centres_ends() -> None:
    points = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    words = kmeans(points, 6, 20, torch.Generator().manual_seed(0))
    assert torch.isfinite(words).all()
    assert nearest(points, words)[1].max() < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 40),
    counts=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    width=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_encode_is_the_greedy_walk(n: int, counts: list[int], width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = [rng.normal(size=(count, width)) for count in counts]
    vectors = rng.normal(size=(n, width))
    codebook = Codebook([torch.tensor(level, dtype=torch.float32) for level in words])
    codes = codebook.encode(torch.tensor(vectors, dtype=torch.float32)).numpy()
    assert codes.shape == (n, len(counts))
    assert codes.dtype == np.int32
    for row, path in zip(vectors, codes, strict=True):
        rest = row
        for level, code in zip(words, path, strict=True):
            distance = np.linalg.norm(level - rest, axis=1)
            assert distance[code] <= distance.min() + 1e-5
            rest = rest - level[code]


def test_nodes_are_sums_of_code_words_in_the_order_of_prefix_ids() -> None:
    rng = np.random.default_rng(0)
    codebook = Codebook([torch.tensor(rng.normal(size=(n, 3))).float() for n in (4, 3, 2)])
    assert codebook.prefix_counts == [4, 12, 24]
    paths = torch.cartesian_prod(*(torch.arange(n) for n in (4, 3, 2)))
    torch.testing.assert_close(codebook.node_vectors(3), codebook.path_vector(paths))
    torch.testing.assert_close(codebook.node_vectors(1), codebook.levels[0])


def test_chunks_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = planted(items=200)
    quantiser = ResidualKMeans(CODES)
    quantiser.fit(vectors)
    whole = quantiser.encode(vectors)
    monkeypatch.setattr("hisac_rec.semantic.codebook.CHUNK_SCORES", 40)
    assert torch.equal(quantiser.encode(vectors), whole)
