"""open_clip's transformers, computed with fewer copies: the same weights under the same names.

What differs is how: queries, keys and values stay where one product put them, a causal mask is a flag and
not a matrix, a patch is a row of a product and not a stride of a convolution, and where one token of a row is
read in the end, the last layer computes that one alone. Imported only where such towers are built, for it
imports open_clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional


class Block(ResidualAttentionBlock):
    """A layer whose attention reads queries, keys and values where their product left them."""

    causal: bool  # whether a mask, where one is given, is the causal one

    def attention(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, L, W) from (B, L, W)."""
        masked = attn_mask is not None
        if k_x is not None or v_x is not None or (masked and not (self.causal and attn_mask.ndim == 2)):
            return super().attention(q_x, k_x, v_x, attn_mask)
        attn = self.attn
        rows, length, width = q_x.shape
        mixed = functional.linear(q_x, attn.in_proj_weight, attn.in_proj_bias)
        heads = mixed.view(rows, length, 3, attn.num_heads, width // attn.num_heads).permute(2, 0, 3, 1, 4)
        queries, keys, values = heads.unbind(0)
        found = functional.scaled_dot_product_attention(queries, keys, values, is_causal=masked)
        return attn.out_proj(found.transpose(1, 2).reshape(rows, length, width))

    def read(self, x: Tensor, place: Tensor | None) -> Tensor:
        """(B, W): what the layer gives for one token of each row of (B, L, W), the same as all of it would.

        place: (B,) its number, and no token behind it is looked at; None: the first, which looks at all.
        """
        attn, rows, (high, wide) = self.attn, len(x), (self.attn.num_heads, self.attn.head_dim)
        normed, width = self.ln_1(x), x.shape[2]
        every = torch.arange(rows, device=x.device)
        own, asking = (x[:, 0], normed[:, 0]) if place is None else (x[every, place], normed[every, place])
        weight, bias = attn.in_proj_weight, attn.in_proj_bias
        query = functional.linear(asking, weight[:width], bias[:width]).view(rows, high, 1, wide)
        mixed = functional.linear(normed, weight[width:], bias[width:])
        keys, values = mixed.view(rows, -1, 2, high, wide).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ keys.transpose(2, 3)) * wide**-0.5
        if place is not None:
            behind = torch.arange(x.shape[1], device=x.device) > place[:, None]
            scores = scores.masked_fill(behind[:, None, None], float("-inf"))
        found = scores.softmax(-1).to(values.dtype) @ values
        own = own + self.ls_1(attn.out_proj(found.reshape(rows, width)))
        return own + self.ls_2(self.mlp(self.ln_2(own)))


def read_one(layers: Sequence[Any], x: Tensor, mask: Tensor | None, place: Tensor | None) -> Tensor:
    """(B, W) of one token of each row behind all layers, as `Block.read` says."""
    for layer in layers[:-1]:
        x = layer(x, attn_mask=mask)
    return layers[-1].read(x, place)


class Vision(VisionTransformer):
    """A picture tower whose patches are rows of one product; `dropped` of them are left out in training."""

    dropped: float  # share of the patches, in [0, 1): Li et al. 2023, Scaling Language-Image Pre-training

    def forward(self, x: Tensor) -> Any:
        """(P, D) of (P, 3, H, W)."""
        layers: Any = self.transformer.resblocks
        last = isinstance(layers[-1], Block) and self.attn_pool is None and self.pool_type == "tok"
        if not last or self.output_tokens:
            return super().forward(x)
        pooled = self.ln_post(read_one(layers, self._embeds(x), None, None))
        return pooled if self.proj is None else pooled @ self.proj

    def _embeds(self, x: Tensor) -> Tensor:
        patches = self._patches(x)
        position = self.positional_embedding
        weight = self.conv1.weight.permute(0, 2, 3, 1).flatten(1)
        first = (self.class_embedding + position[0]).expand(len(x), 1, -1)
        if self.training and self.dropped:
            kept = max(1, round(patches.shape[1] * (1 - self.dropped)))
            places = torch.rand(patches.shape[:2], device=x.device).topk(kept, dim=1).indices
            patches = patches.gather(1, places[..., None].expand(-1, -1, patches.shape[2]))
            around = position[1:][places]
        else:
            around = position[1:]
        rows = functional.linear(patches, weight)
        return self.ln_pre(torch.cat([first.to(rows.dtype), rows + around.to(rows.dtype)], dim=1))

    def _patches(self, pictures: Tensor) -> Tensor:
        """(P, N, 3 * side * side) from (P, 3, H, W): row by row, the colours of a pixel together."""
        high, wide = self.patch_size
        down, across = self.grid_size
        whole = pictures.permute(0, 2, 3, 1)[:, : down * high, : across * wide]
        cut = whole.reshape(len(pictures), down, high, across, wide, 3).transpose(2, 3)
        return cut.reshape(len(pictures), down * across, high * wide * 3)


def quicken(clip: Any) -> list[nn.Module]:
    """Let open_clip's towers compute as this file does. Returns their layers, which are alike.

    Towers and layers of other kinds stay as they are.
    """
    if type(getattr(clip, "visual", None)) is VisionTransformer:
        clip.visual.__class__ = Vision
        clip.visual.dropped = 0.0
    masks = {id(module): getattr(module, "attn_mask", None) for module in clip.modules()}
    causal = all(mask is None or _is_causal(mask) for mask in masks.values())
    alike = (module for module in clip.modules() if type(module) is ResidualAttentionBlock)
    layers: list[Any] = [layer for layer in alike if _plain(layer.attn)]
    for layer in layers:
        layer.__class__, layer.causal = Block, causal
    return layers


def _plain(attn: nn.MultiheadAttention) -> bool:
    own = attn.in_proj_weight is not None and attn.in_proj_bias is not None and attn.bias_k is None
    return own and attn.batch_first and not attn.dropout and not attn.add_zero_attn


def _is_causal(mask: Tensor) -> bool:
    return torch.equal(mask, torch.full_like(mask, float("-inf")).triu_(1))
