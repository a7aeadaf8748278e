"""RQ-VAE: an auto-encoder whose latent is quantised level by level, trained end to end.

Encoder, code words and decoder are learned together, so the code words live in the latent
space. What is stored as an item's semantic vector is therefore the encoder's latent: e_i and
the path sums z_a share that one space, as HiSAC's distance ||e_i - z_a|| needs. Latents and
code words are divided by one number after training, so that latents have length 1 on average
(root mean square), as the normalised vectors of residual k-means have: a routing temperature
then means the same for both methods.

Source: Lee et al. 2022, "Autoregressive image generation using residual quantization", and
Rajput et al. 2023, "Recommender systems with generative retrieval", for items.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from hisac_rec.progress import progress
from hisac_rec.semantic.codebook import Codebook, Quantiser, nearest
from hisac_rec.semantic.config import RqVaeConfig
from hisac_rec.semantic.residual_kmeans import kmeans

SEEDING_PASSES = 10
"""K-means passes that seed each level before training."""
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
        config = self.config
        source = vectors.to(self.device, torch.float32)
        generator = torch.Generator().manual_seed(self.seed)
        self._build(source)
        words = self._seed_words(source, generator)
        parameters = [*self.encoder.parameters(), *self.decoder.parameters(), *words]
        optimiser = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
        steps = config.epochs * -(-len(source) // config.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        with progress("fit RQ-VAE", config.epochs, "epochs") as advance:
            for epoch in range(config.epochs):
                used = [torch.zeros(len(level), dtype=torch.bool) for level in words]
                order = torch.randperm(len(source), generator=generator).to(self.device)
                for rows in order.split(config.batch_size):
                    loss, residuals, codes = self._loss(source[rows], words)
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    schedule.step()
                    for seen, code in zip(used, codes, strict=True):
                        seen[code.cpu()] = True
                if epoch < config.revive_until * config.epochs:
                    _revive(words, used, residuals, generator)
                advance(1, f"loss {loss.item():.4g}")
        with torch.no_grad():
            latent = self._through(self.encoder, source)
            self.scale = latent.square().sum(1).mean().sqrt().clamp_min(1e-12).item()
            self.codebook = Codebook([level.detach() / self.scale for level in words])
        return self.codebook

    @torch.no_grad()
    def embed(self, vectors: Tensor) -> Tensor:
        """Source vectors [n, s] to latents [n, d] of root mean square length 1."""
        return self._through(self.encoder, vectors) / self.scale

    @torch.no_grad()
    def decode(self, vectors: Tensor) -> Tensor:
        """Path vectors [n, d] to source vectors [n, s]."""
        return self._through(self.decoder, vectors * self.scale)

    def _build(self, source: Tensor) -> None:
        width = source.shape[1]
        sizes = [width, *self.config.hidden, self.config.latent_dim]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.encoder = _mlp(sizes).to(self.device)
            self.decoder = _mlp(sizes[::-1]).to(self.device)
        with torch.no_grad():  # the decoder starts at the best constant: the mean
            last = self.decoder[-1]
            assert isinstance(last, nn.Linear)
            last.bias.copy_(source.mean(0))

    @torch.no_grad()
    def _seed_words(self, source: Tensor, generator: torch.Generator) -> list[Tensor]:
        residual = self._through(self.encoder, source)
        words = []
        for count in self.codes:
            level = kmeans(residual, count, SEEDING_PASSES, generator)
            residual = residual - level[nearest(residual, level)[0]]
            words.append(level.requires_grad_())
        return words

    def _loss(
        self, source: Tensor, words: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss, and per level the residuals [n, d] before it and the codes [n] chosen."""
        latent = self.encoder(source)
        residual, total = latent, torch.zeros_like(latent)
        loss = latent.new_zeros(())
        residuals, codes = [], []
        for level in words:
            code, _ = nearest(residual.detach(), level.detach())
            word = level[code]
            loss = loss + (residual.detach() - word).square().sum(1).mean()
            loss = loss + self.config.commitment * (residual - word.detach()).square().sum(1).mean()
            residuals.append(residual.detach())
            codes.append(code)
            total = total + word.detach()
            residual = residual - word.detach()
        quantised = latent + (total - latent).detach()  # straight-through estimator
        loss = loss + (self.decoder(quantised) - source).square().sum(1).mean()
        return loss, residuals, codes

    def _through(self, network: nn.Sequential, vectors: Tensor) -> Tensor:
        """Run a network over [n, width] in chunks; the answer is where the input was."""
        parts = [
            network(part.to(self.device, torch.float32)).to(vectors.device)
            for part in vectors.split(EMBED_ROWS)
        ]
        return torch.cat(parts)


def _mlp(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def _revive(
    words: list[Tensor], used: list[Tensor], residuals: list[Tensor], generator: torch.Generator
) -> None:
    """Move each code that an epoch left unused onto a random residual of the last batch."""
    for level, seen, residual in zip(words, used, residuals, strict=True):
        dead = (~seen).nonzero()[:, 0]
        pick = torch.randint(len(residual), (len(dead),), generator=generator)
        level[dead.to(level.device)] = residual[pick.to(residual.device)]
