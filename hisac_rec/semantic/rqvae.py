"""RQ-VAE: an auto-encoder whose latent is quantised level by level, trained end to end.

Encoder, code words and decoder are learned together, so the code words live in the latent
space. What is stored as an item's semantic vector is therefore the encoder's latent: e_i and
the path sums z_a share that one space, as HiSAC's distance ||e_i - z_a|| needs. Latents and
code words are divided by one number after training, so that latents have length 1 on average
(root mean square), as the normalised vectors of residual k-means have: a routing temperature
then means the same for both methods.

Code words follow the encoder as moving averages of the residuals that choose them, not by
gradient: measured here, gradient steps lag behind the encoder in a short training.

Source: Lee et al. 2022, "Autoregressive image generation using residual quantization", and
Rajput et al. 2023, "Recommender systems with generative retrieval", for items.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from hisac_rec.progress import progress
from hisac_rec.semantic.codebook import Arrays, Codebook, Quantiser, nearest
from hisac_rec.semantic.config import RqVaeConfig
from hisac_rec.semantic.residual_kmeans import kmeans

SEEDING_PASSES = 10
"""K-means passes that seed each level before training."""
SEEDINGS = 3
"""Seedings of that k-means."""
REFIT = 0.1
"""Share of the epochs and of the learning rate with which an earlier fit is trained on."""
EMBED_ROWS = 65_536
"""Items that go through encoder or decoder at once."""


class RqVae(Quantiser):
    """The paper's quantiser. O(epochs n (s hidden + d sum(C_l))).

    Equal seeds give equal code words on a CPU.

    Args:
        codes: C_l per level.
        config: sizes and training.
        seed: of weights, seeding and the order of the items.
        device: where to compute.
    """

    def __init__(
        self,
        codes: list[int],
        config: RqVaeConfig,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.codes, self.config, self.seed = codes, config, seed
        self.device = torch.device(device)
        self.scale = 1.0

    def fit(self, vectors: Tensor) -> Codebook:
        """Train on source vectors [n, s]."""
        source = vectors.to(self.device, torch.float32)
        generator = torch.Generator().manual_seed(self.seed)
        self._build(source.shape[1])
        with torch.no_grad():  # the decoder starts at the best constant: the mean
            last = self.decoder[-1]
            assert isinstance(last, nn.Linear)
            last.bias.copy_(source.mean(0))
        return self._train(source, self._seed_levels(source, generator), generator, self.config)

    def refit(self, vectors: Tensor, start: Codebook, state: Arrays) -> None:
        """Train on from the earlier networks and code words, shorter and slower."""
        self.restore(start, state)
        config = self.config.model_copy(
            update={
                "epochs": max(1, round(self.config.epochs * REFIT)),
                "lr": self.config.lr * REFIT,
                "revive_until": 0.0,
            }
        )
        levels = [
            _Level(words.to(self.device) * self.scale, config.decay) for words in start.levels
        ]
        generator = torch.Generator().manual_seed(self.seed)
        self._train(vectors.to(self.device, torch.float32), levels, generator, config)

    def state(self) -> Arrays:
        """The weights of encoder and decoder, and the scale of the latents."""
        weights = {
            f"{name}.{key}": value.cpu().numpy()
            for name, network in (("encoder", self.encoder), ("decoder", self.decoder))
            for key, value in network.state_dict().items()
        }
        return weights | {"scale": np.array(self.scale)}

    def restore(self, codebook: Codebook, state: Arrays) -> None:
        """Take over an earlier fit."""
        super().restore(codebook, state)
        self._build(state["encoder.0.weight"].shape[1])
        self.scale = float(state["scale"])
        for name, network in (("encoder", self.encoder), ("decoder", self.decoder)):
            prefix = f"{name}."
            network.load_state_dict(
                {
                    key.removeprefix(prefix): torch.tensor(value)
                    for key, value in state.items()
                    if key.startswith(prefix)
                }
            )

    def _train(
        self,
        source: Tensor,
        levels: list[_Level],
        generator: torch.Generator,
        config: RqVaeConfig,
    ) -> Codebook:
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
        steps = config.epochs * -(-len(source) // config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with progress("fit RQ-VAE", config.epochs, "epochs") as advance:
            for epoch in range(config.epochs):
                order = torch.randperm(len(source), generator=generator).to(self.device)
                for rows in order.split(config.batch_size):
                    loss = self._loss(source[rows], levels)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                revive = epoch < config.revive_until * config.epochs
                for level in levels:
                    level.end_epoch(generator if revive else None)
                advance(1, f"loss {loss.item():.4g}")
        with torch.no_grad():
            latent = self._through(self.encoder, source)
            self.scale = latent.square().sum(1).mean().sqrt().clamp_min(1e-12).item()
            self.codebook = Codebook([level.words / self.scale for level in levels])
        return self.codebook

    @torch.no_grad()
    def embed(self, vectors: Tensor) -> Tensor:
        """Source vectors [n, s] to latents [n, d] of root mean square length 1."""
        return self._through(self.encoder, vectors) / self.scale

    @torch.no_grad()
    def decode(self, vectors: Tensor) -> Tensor:
        """Path vectors [n, d] to source vectors [n, s]."""
        return self._through(self.decoder, vectors * self.scale)

    def _build(self, width: int) -> None:
        sizes = [width, *self.config.hidden, self.config.latent_dim]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.encoder = _mlp(sizes).to(self.device)
            self.decoder = _mlp(sizes[::-1]).to(self.device)

    @torch.no_grad()
    def _seed_levels(self, source: Tensor, generator: torch.Generator) -> list[_Level]:
        residual = self._through(self.encoder, source)
        levels = []
        for count in self.codes:
            words = kmeans(residual, count, SEEDING_PASSES, generator, SEEDINGS)
            residual = residual - words[nearest(residual, words)[0]]
            levels.append(_Level(words, self.config.decay))
        return levels

    def _loss(self, source: Tensor, levels: list[_Level]) -> Tensor:
        """Reconstruction and commitment of a batch [n, s]; the levels follow its residuals."""
        latent = self.encoder(source)
        residual, loss = latent, latent.new_zeros(())
        for level in levels:
            word = level.quantise(residual.detach())
            residual = residual - word
            loss = loss + self.config.commitment * residual.square().sum(1).mean()
        quantised = latent - residual.detach()  # straight-through estimator
        return loss + (self.decoder(quantised) - source).square().sum(1).mean()

    def _through(self, network: nn.Sequential, vectors: Tensor) -> Tensor:
        """Run a network over [n, width] in chunks; the answer is where the input was."""
        parts = [
            network(part.to(self.device, torch.float32)).to(vectors.device)
            for part in vectors.split(EMBED_ROWS)
        ]
        return torch.cat(parts)


class _Level:
    """Code words [C, d] of one level that follow their residuals as moving averages."""

    def __init__(self, words: Tensor, decay: float) -> None:
        self.words, self.decay = words, decay
        self.sums, self.sizes = words.clone(), torch.ones(len(words), device=words.device)
        self.used = torch.zeros(len(words), dtype=torch.bool, device=words.device)
        self.last = words

    @torch.no_grad()
    def quantise(self, residual: Tensor) -> Tensor:
        """The code words [n, d] nearest to residuals [n, d], before they follow."""
        code, _ = nearest(residual, self.words)
        chosen = self.words[code]
        sizes = torch.bincount(code, minlength=len(self.words))
        sums = torch.zeros_like(self.words).index_add_(0, code, residual)
        self.sizes.lerp_(sizes.to(self.sizes), 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        alive = (self.sizes > 1e-6)[:, None]  # a code chosen lately; others stay where they are
        self.words = torch.where(alive, self.sums / self.sizes[:, None], self.words)
        self.used |= sizes > 0
        self.last = residual
        return chosen

    def end_epoch(self, revive: torch.Generator | None) -> None:
        """Move codes that the epoch left unused onto random residuals of its last batch."""
        if revive is not None:
            dead = (~self.used).nonzero()[:, 0]
            pick = torch.randint(len(self.last), (len(dead),), generator=revive)
            onto = self.last[pick.to(self.last.device)]
            self.words[dead], self.sums[dead], self.sizes[dead] = onto, onto, 1.0
        self.used.zero_()


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
