"""Rare pairs drawn often, and the weights that make up for it.

A batch has a share of pairs of each rare kind (`training.score_dynamics.rare`), up to a hundred times more
than are among all pairs.  Let r_k be how much too seldom (r < 1: too often) kind k is drawn, r = 1 for plain
pairs.  With the weights r_k the loss would be that of the true mixture again, but a network would hardly
see the rare kinds.  Denoising has a freedom, though: the minimum of E[w |D(y + sigma n, sigma; x) - y|^2]
is the posterior mean for any positive weight w that is a function of what D sees, z = (y + sigma n, sigma,
x).  So every pair of kind k has the weight

    w = lambda(z) r_k,    lambda(z) = (1 + b sqrt(1 - sum over k of q_k(z)^2)) / sum over k of p_k(z) r_k,

where p_k(z) is the probability, among what is drawn, that z came from a pair of kind k, and q_k(z) ~ p_k(z)
r_k the true one.  Where z can only come from one kind, its pairs count about 1 each;
where it can come from several, those that get there seldom count as many times more as they are drawn too
seldom, and all count more, for there it is decided how many steps go over the barrier: noisy displacements
become rarer by a factor of e every few tenths of an Å on the way there, so a network that draws the border a
little too near, or not sharply, lets several times too many over.  The p_k come from a small classifier that
is trained first, and any error of it changes the noise of the loss, not its minimum.

Few plain pairs get where they must compete with rare ones, and a loss that rests on few pairs of large weight
is noisy.  So the noise n of a share g of the plain pairs is directed: n + m, where m = u (y_rare - y) / sigma
points to the displacement of some rare pair, and a random u says how far beyond or before it.  Each plain
pair for which |m| is not beyond reach, directed or not, has the additional weight

    N(n'; 0) / ((1 - g) N(n'; 0) + g N(n'; m)) = 1 / (1 - g + g exp(n' . m - |m|^2 / 2)),

with n' its noise, which makes up for that exactly whatever m was aimed at (multiple importance sampling with
the balance heuristic: Veach and Guibas, SIGGRAPH 1995).
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
from training.score_dynamics.transitions import (
    local_displacements,
    make_batches,
    rare_rows,
)
from zoo.diffusion import log_normal_sigma
from zoo.molecules.rigid import without_rigid_motion
from zoo.score_dynamics import ConditionalDenoiser

#: Å of noise on the structure that the classifier sees, so that it cannot know one pair by heart.
_BLUR = 0.1
#: b: how much more counts what may have come from several kinds.
_BORDER = 3.0
#: Share of plain pairs with directed noise, if the way is no longer than so many sigma.
_DIRECTED, _REACH = 0.3, 6.0
#: Steps of the classifier.
N_STEPS = 4000
#: Gradients are clipped at a larger norm than else: those clipped would be those of the few plain pairs with
#: large weights, and without them too many steps go over the barrier.
CLIP = 5.0


class Importance(nn.Module):
    """Weights of the pairs of a batch, and the direction of their noise.

    Parameters
    ----------
    ratios : (n_kinds,) r_k.
    displacements : (n_rare, n_sites, 3) Å, y of the rare pairs, to which noise is directed.
    """

    ratios: Tensor
    displacements: Tensor

    def __init__(self, sigma_data: float, ratios: Tensor, displacements: Tensor, width: int = 128) -> None:
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("ratios", ratios)
        self.register_buffer("displacements", displacements)
        n_sites = displacements.shape[1]
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
    def directed(
        self, y: Tensor, sigma: Tensor, noise: Tensor, local: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Noise (batch, n_sites, 3), some of it directed, and the weights (batch,) that make up for it.

        ``batch`` has the "kind" of each pair, the rare pair "toward" which it is directed, and two numbers
        in [0, 1), "how_far" and "coin".
        """
        way = without_rigid_motion(self.displacements[batch["toward"]] - y, local)
        shift = way * ((0.5 + batch["how_far"]) / sigma)[:, None, None]
        square = shift.square().sum((1, 2))
        may = (batch["kind"] == 0) & (square < _REACH**2)
        noise = noise + shift * (may & (batch["coin"] < _DIRECTED))[:, None, None]
        ratio = torch.exp((noise * shift).sum((1, 2)) - square / 2)
        weight = torch.where(may, 1.0 / (1.0 - _DIRECTED + _DIRECTED * ratio), 1.0)
        return noise, weight

    @torch.no_grad()
    def forward(self, noisy: Tensor, sigma: Tensor, local: Tensor, kind: Tensor) -> Tensor:
        """lambda(z) r_k (batch,); displacements, structures (batch, n_sites, 3) and sigma (batch,) in Å."""
        true = self.logits(noisy, sigma, local).softmax(-1) * self.ratios
        scale = true.sum(-1).reciprocal()
        q = true * scale[:, None]
        border = 1.0 + _BORDER * (1.0 - q.square().sum(-1)).clamp(min=0.0).sqrt()
        return border * scale * self.ratios[kind]


def learned(model: ConditionalDenoiser, packed: Packed, seed: int, path: Path) -> Importance | None:
    """What to weigh the pairs of packed data with: trained, or read if ``path`` is of the same data and seed.

    None without rare pairs.

    Raises
    ------
    ValueError : ``path`` is of other data, settings or seed.
    """
    rare, noise = packed.rare, packed.noise
    if rare is None:
        return None
    _, ratios = rare_rows(rare, len(packed.training), noise.batch_size)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _, displacements = local_displacements(model, rare.before, rare.after)
        importance = Importance(packed.config["sigma_data"], ratios, displacements)
    text = json.dumps([packed.sha256, asdict(noise), seed, N_STEPS])
    run = hashlib.sha256(text.encode()).hexdigest()
    names = list(importance.state_dict())
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata().get("run") != run:
                raise ValueError(f"{path} is of other data or settings: choose another folder for the state")
            importance.load_state_dict({name: file.get_tensor(name) for name in names})
            return importance.requires_grad_(False)
    except (OSError, SafetensorError, AttributeError):
        pass  # none yet, or damaged
    make_batch = make_batches(packed.training, noise.batch_size, _BLUR, rare)
    schedule = LoopConfig(n_steps=N_STEPS, learning_rate=1e-3, warmup=50)
    optimizer = torch.optim.Adam(importance.parameters(), lr=schedule.learning_rate)
    for step in range(N_STEPS):
        batch = make_batch(np.random.default_rng([seed, 2**31, step]))
        with torch.no_grad():
            local, y = local_displacements(model, batch["x"], batch["x_next"])
            sigma = log_normal_sigma(batch["quantiles"], noise.sigma_mean, noise.sigma_std)
            noisy = y + sigma[:, None, None] * without_rigid_motion(batch["noise"], local)
        loss = nn.functional.cross_entropy(importance.logits(noisy, sigma, local), batch["kind"])
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
