"""Rare pairs drawn often, and the weights that make up for it.

A batch has a fixed share of pairs of each rare kind (`training.score_dynamics.rare`), many times more than
are among all pairs.  Let r_k be how much too seldom (r < 1: too often) kind k is drawn, r = 1 for plain
pairs.  With the weights r_k the loss would be that of the true mixture again, but a network would hardly
see the rare kinds.  Denoising has a freedom, though: the minimum of E[w |D(y + sigma n, sigma; x) - y|^2]
is the posterior mean for any positive weight w that is a function of what D sees, z = (y + sigma n, sigma,
x).  So every pair of kind k has the weight

    w = lambda(z) r_k,    lambda(z) = 1 / sum over k of p_k(z) r_k,

where p_k(z) is the probability, among what is drawn, that z came from a pair of kind k.  Where z can only
come from a rare kind, these pairs count 1 each; where it can come from both, the few plain pairs that get
there count as many times more as they are drawn too seldom.  The p_k come from a small classifier that is
trained first, and any error of it changes the noise of the loss, not its minimum.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.loop import LoopConfig, learning_rate
from training.score_dynamics.packed import Packed
from training.score_dynamics.transitions import RarePairs, make_batches, noisy_pairs, rows_of_kinds
from zoo.score_dynamics import ConditionalDenoiser

#: Å of noise on the structure that the classifier sees, so that it cannot know one pair by heart.
_BLUR = 0.1
#: The largest weight of a plain pair: the smallest step from a chance of 1e-3 that it was none.
_LIMIT = 2000.0


class Importance(nn.Module):
    """lambda(z) r_k of pairs; (batch,) from noisy displacements, noise levels, structures and kinds."""

    ratios: Tensor

    def __init__(self, n_sites: int, sigma_data: float, ratios: Tensor, width: int = 128) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("ratios", ratios)
        self.classifier = nn.Sequential(
            nn.Linear(6 * n_sites + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, len(ratios)),
        )  # fmt: skip

    def logits(self, noisy: Tensor, sigma: Tensor, local: Tensor) -> Tensor:
        """(batch, n_kinds), of displacements and structures (batch, n_sites, 3) and sigma (batch,) in Å."""
        scaled = noisy * (sigma**2 + self.sigma_data**2).rsqrt()[:, None, None]
        logits: Tensor = self.classifier(
            torch.cat([scaled.flatten(1), local.flatten(1), sigma.log()[:, None]], 1)
        )
        return logits

    @torch.no_grad()
    def forward(self, noisy: Tensor, sigma: Tensor, local: Tensor, kind: Tensor) -> Tensor:
        drawn = self.logits(noisy, sigma, local).softmax(-1)
        return (drawn @ self.ratios).reciprocal().clamp(max=_LIMIT) * self.ratios[kind]


def ratios(rare: RarePairs, n_plain: int, batch_size: int, rare_share: float) -> Tensor:
    """(3,) how much too seldom pairs of each kind are drawn, with ``n_plain`` plain ones, which are 1."""
    rows, rows_each = rows_of_kinds(batch_size, rare_share)
    stand_for = [float(rare.stands_for[rare.side == side].sum()) for side in (0, 1)]
    return torch.tensor([1.0, *((each / rows_each) / (n_plain / rows) for each in stand_for)])


def learned(model: ConditionalDenoiser, packed: Packed, seed: int, path: Path) -> Importance | None:
    """What to weigh the pairs of packed data with: trained, or read if ``path`` is of the same data and seed.

    None without rare pairs.
    """
    rare, noise = packed.rare, packed.noise
    if rare is None:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = ratios(rare, len(packed.training), noise.batch_size, noise.rare_share)
        importance = Importance(packed.n_sites, packed.config["sigma_data"], drawn)
    text = json.dumps([packed.sha256, asdict(noise), seed])
    run = hashlib.sha256(text.encode()).hexdigest()
    names = list(importance.state_dict())
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata().get("run") == run:
                importance.load_state_dict({name: file.get_tensor(name) for name in names})
                return importance.requires_grad_(False)
    except (OSError, SafetensorError, AttributeError):
        pass  # none yet, or not of this run
    make_batch = make_batches(packed.training, noise.batch_size, _BLUR, rare, noise.rare_share)
    schedule = LoopConfig(n_steps=noise.classifier_steps, learning_rate=1e-3, warmup=50)
    optimizer = torch.optim.Adam(importance.parameters(), lr=schedule.learning_rate)
    for step in range(noise.classifier_steps):
        batch = make_batch(np.random.default_rng([seed, 2**31, step]))
        with torch.no_grad():
            local, _, level, noisy = noisy_pairs(model, batch, noise.sigma_mean, noise.sigma_std)
        loss = nn.functional.cross_entropy(importance.logits(noisy, level, local), batch["kind"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(importance.state_dict(), temporary, {"run": run})
    os.replace(temporary, path)
    return importance.requires_grad_(False)
