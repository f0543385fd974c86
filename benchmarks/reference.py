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


def textbook_uce(W_OD: Tensor, targets: Tensor, anchors: Tensor, names: Tensor, identity: float) -> Tensor:
    """UCE (arXiv 2308.14761, eq. 7) of one matrix, token by token: an inverse and 2 (K + N) outer products."""
    mat1, mat2 = identity * W_OD, identity * torch.eye(W_OD.shape[1])
    for c_D, goal_D in zip(targets, anchors, strict=True):
        mat1 += torch.outer(W_OD @ goal_D, c_D)
        mat2 += torch.outer(c_D, c_D)
    for e_D in names:
        mat1 += torch.outer(W_OD @ e_D, e_D)
        mat2 += torch.outer(e_D, e_D)
    return mat1 @ torch.inverse(mat2)


def textbook_speed(
    W_OD: Tensor, targets: Tensor, anchors: Tensor, names: Tensor, fixed: Tensor, threshold: float = 0.1
) -> Tensor:
    """SPEED (arXiv 2503.07392) of one matrix: its own filter of names, noise, null space and inverses."""
    identity = torch.eye(W_OD.shape[1])
    F_DD, G_DD = torch.zeros_like(identity), torch.zeros_like(identity)
    for c_D, goal_D in zip(targets, anchors, strict=True):
        F_DD += torch.outer(c_D, c_D) / len(targets)
        G_DD += torch.outer(goal_D, c_D) / len(targets)
    change_OD = W_OD @ (G_DD - F_DD) @ torch.inverse(F_DD + identity)
    moved = torch.stack([(change_OD @ e_D).norm() for e_D in names])
    own = [e_D for e_D, by in zip(names, moved, strict=True) if by >= moved.mean()]
    direction_D = torch.linalg.svd(W_OD)[2][-1]
    R_DD, generator = torch.zeros_like(identity), torch.Generator().manual_seed(0)
    for e_D in own:
        noise = torch.cat([torch.zeros(1), torch.randn(10, generator=generator)])
        for copy_D in e_D + noise[:, None] * direction_D:
            R_DD += torch.outer(copy_D, copy_D) / (11 * len(own))
    U, s, _ = torch.linalg.svd(R_DD)
    N = U[:, s < threshold] @ U[:, s < threshold].T
    M = torch.inverse(F_DD @ N + identity)
    C_DK = fixed.T
    Q = identity - M @ C_DK @ torch.inverse(C_DK.T @ N @ M @ C_DK) @ C_DK.T @ N
    return W_OD + W_OD @ (G_DD - F_DD) @ N @ Q @ M
