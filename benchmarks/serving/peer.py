"""The code that both peers run: diffusers' own pipelines, and a bound by a plain loop over t."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline
from torch import Tensor

from benchmarks.serving.network import PIPELINE, T


class Peer:
    """diffusers on one device, to be created and used in the same thread.

    Args:
        folder: the folder that `network.write` filled.
        threads: CPU threads; 0 for PyTorch's choice.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.ddpm = DDPMPipeline.from_pretrained(folder / PIPELINE, low_cpu_mem_usage=False)
        self.ddpm.to(self.device)
        scheduler = DDIMScheduler.from_config(self.ddpm.scheduler.config)
        self.ddim = DDIMPipeline(self.ddpm.unet, scheduler)
        for pipeline in (self.ddpm, self.ddim):
            pipeline.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def sample(self, steps: int, seeds: Sequence[int]) -> list[bytes]:
        """Draw a sample per seed, float32: ancestral with all T steps, DDIM with fewer.

        One generator draws for the whole batch, which is faster than one per seed; unlike in noneq,
        a sample then depends on the rest of its batch.
        """
        pipeline = self.ddpm if steps == T else self.ddim
        images = pipeline(
            batch_size=len(seeds),
            generator=torch.Generator(self.device).manual_seed(seeds[0]),
            num_inference_steps=steps,
            output_type="np",
        ).images
        return [image.astype(np.float32).tobytes() for image in images]

    @torch.inference_mode()
    def bound(self, data: Sequence[object], terms: int) -> list[float]:
        """Compute each example's KL terms, nats, at `terms` evenly spaced t, one t at a time.

        This follows `calc_bpd_loop` of improved-diffusion (Nichol and Dhariwal 2021) without the
        last decoder. With equal variances KL(q(x_s | x_t, x_0) || p(x_s | x_t)) is the scaled
        squared distance of the means.
        """
        x_0 = torch.tensor(data, device=self.device) / 127.5 - 1
        alpha_bar = self.ddpm.scheduler.alphas_cumprod.to(self.device)
        total = torch.zeros(len(x_0), device=self.device)
        for t in torch.linspace(T - 1, 1, terms).long().tolist():
            x_t = alpha_bar[t].sqrt() * x_0 + (1 - alpha_bar[t]).sqrt() * torch.randn_like(x_0)
            eps = self.ddpm.unet(x_t, t).sample
            total += _divergence(x_0, x_t, eps, alpha_bar[t], alpha_bar[t - 1])
        found: list[float] = (-total * (T / terms)).tolist()
        return found


def _divergence(x_0: Tensor, x_t: Tensor, eps: Tensor, at_t: Tensor, at_s: Tensor) -> Tensor:
    """Return (sqrt(alpha_bar_s) beta / (1 - alpha_bar_t))^2 |x_0 - x_0hat|^2 / (2 var), [B]."""
    estimate = ((x_t - (1 - at_t).sqrt() * eps) / at_t.sqrt()).clamp(-1, 1)
    beta = 1 - at_t / at_s
    var = beta * (1 - at_s) / (1 - at_t)
    factor = (at_s.sqrt() * beta / (1 - at_t)).square() / (2 * var)
    return factor * (x_0 - estimate).square().flatten(1).sum(1)
