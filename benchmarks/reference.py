"""A plain reference for the benchmarks, written from the method's equations without any identity or saving.

Stage 2: one concept at a time, batch 1, image and prompt encoded at each step, the attention probabilities of every
layer formed, those of ``attn2`` kept in a list until the whole UNet has run.

Stages 1 and 3: every token through every matrix, two sums and an inverse per matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainAttention:
    """softmax(Q Kᵀ / √d) V, step by step; keeps the probabilities where a list is given."""

    def __init__(self, kept: list[Tensor] | None) -> None:
        self.kept = kept

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        """[N, Q, C] to [N, Q, C]."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            projection(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for projection, x in ((attn.to_q, hidden_states), (attn.to_k, context), (attn.to_v, context))
        )
        probabilities = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]), dim=-1)
        if self.kept is not None:
            self.kept.append(probabilities)
        out = (probabilities @ value).transpose(1, 2).flatten(2)
        result: Tensor = attn.to_out[1](attn.to_out[0](out))
        return result


class PlainLoRA(nn.Module):
    """W x + B A x."""

    def __init__(self, base: nn.Linear, rank: int = 1) -> None:
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.randn(rank, base.in_features, device=base.weight.device) * base.in_features**-0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, D] to [N, T, O]."""
        result: Tensor = self.base(x) + x @ self.A.T @ self.B.T
        return result


class PlainTraining:
    """The LoRA of one concept, trained at batch 1.

    Args:
        pipeline: the model; its UNet is changed in place.
        images: [I, 3, H, W] in [−1, 1].
        masks: [I, 1, H, W].
        prompts: prompts of the concept.
        positions: which of the T tokens count, for each prompt.
        lr: learning rate.
    """

    def __init__(
        self,
        pipeline: Any,
        images: Tensor,
        masks: Tensor,
        prompts: Sequence[str],
        positions: Sequence[Sequence[bool]],
        lr: float = 1e-3,
    ) -> None:
        self.pipeline, self.images, self.masks = pipeline, images, masks
        self.prompts, self.positions = prompts, torch.tensor(positions)
        self.maps: list[Tensor] = []
        parameters: list[nn.Parameter] = []
        for name, module in list(pipeline.unet.named_modules()):
            if name.endswith(("attn1", "attn2")):
                module.set_processor(PlainAttention(self.maps if name.endswith("attn2") else None))
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                lora = PlainLoRA(module)
                pipeline.unet.set_submodule(name, lora)
                parameters += [lora.A, lora.B]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)

    def step(self, i: int) -> None:
        """Step number i: encode, add noise, run the UNet, sum the norms of all masked maps, step."""
        device = self.pipeline.unet.device
        pixels = self.images[i % len(self.images)][None].to(device)
        prompt = i % len(self.prompts)
        with torch.no_grad():
            latents = self.pipeline.vae.encode(pixels).latent_dist.mode() * self.pipeline.vae.config.scaling_factor
            tokens = self.pipeline.tokenizer(
                self.prompts[prompt], padding="max_length", truncation=True, return_tensors="pt"
            ).input_ids
            text = self.pipeline.text_encoder(tokens.to(device))[0]
        t = torch.randint(200, 400, (1,), device=device)
        noisy = self.pipeline.scheduler.add_noise(latents, torch.randn_like(latents), t)
        self.maps.clear()
        self.pipeline.unet(noisy, t, encoder_hidden_states=text)
        loss = torch.zeros((), device=device)
        for probabilities in self.maps:
            rows = round(math.sqrt(probabilities.shape[2]))
            mask = F.interpolate(self.masks[i % len(self.masks)][None].to(device), size=(rows, rows), mode="nearest")
            inside = probabilities[:, :, mask.flatten() > 0][..., self.positions[prompt].to(device)]
            loss = loss + torch.linalg.vector_norm(inside)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


def textbook_refine(W_OD: Tensor, targets: Sequence[Tensor], anchors: Sequence[Tensor], S_DD: Tensor) -> Tensor:
    """Stage 1 of one matrix: W' = (Σ (W e^g) e^fᵀ + W S)(Σ e^f e^fᵀ + S)⁻¹ over lists of tokens [K, D]."""
    mat1, mat2 = W_OD @ S_DD, S_DD.clone()
    for f_KD, g_KD in zip(targets, anchors, strict=True):
        mat1 += (g_KD @ W_OD.T).T @ f_KD
        mat2 += f_KD.T @ f_KD
    return mat1 @ torch.inverse(mat2)


def textbook_fuse(
    W_OD: Tensor, refined_OD: Tensor, tokens: Sequence[Tensor], loras: Sequence[tuple[Tensor, Tensor]], S_DD: Tensor
) -> Tensor:
    """Stage 3 of one matrix: (Σ_ij ((W' + B_i A_i) e_ij) e_ijᵀ + W S)(Σ_ij e_ij e_ijᵀ + S)⁻¹; S without λ_I."""
    mat1, mat2 = W_OD @ S_DD, S_DD.clone()
    for e_KD, (A_RD, B_OR) in zip(tokens, loras, strict=True):
        mat1 += (e_KD @ (refined_OD + B_OR @ A_RD).T).T @ e_KD
        mat2 += e_KD.T @ e_KD
    return mat1 @ torch.inverse(mat2)
