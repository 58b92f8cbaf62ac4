"""Pictures and captions to unit rows of one space: an open_clip model with what it takes to feed it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ConfigError
from ..recipe import Towers
from .augment import cropped, normalised
from .batch import Batch
from .length_groups import by_length
from .objectives.system import Tokens, Widths
from .pictures import Prepare
from .render import glyphs
from .tokenizer import PAD

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's own
RECOMPILED = 32  # kinds of inputs that a compiled layer may meet: towers, lengths, with a gradient or without
MAX_SCALE = 100.0  # the temperature never falls below 0.01, as in CLIP


class TwoTowers(nn.Module):
    """Pictures and captions to unit rows of one space."""

    mean: Tensor
    std: Tensor
    max_log_scale = math.log(MAX_SCALE)
    prepare: Prepare | None = None  # a checkpoint's own resizing; None where it was trained here

    def __init__(self, clip: Any, settings: Towers, *, image_size: int, context_length: int) -> None:
        super().__init__()
        self.clip = clip
        self.locked: list[nn.Module] = []
        self.settings, self.image_size, self.context_length = settings, image_size, context_length
        mean, std = getattr(clip.visual, "image_mean", MEAN), getattr(clip.visual, "image_std", STD)
        self._normalised = normalised
        self.register_buffer("mean", torch.tensor(mean or MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(std or STD), persistent=False)
        # a causal tower that reads its answer at the end mark never sees what follows it, so padding
        # can be left out; any other is given the full context
        self.reads_pictures = bool(settings.text.get("render"))
        self.layers: list[Any] = []
        if any(type(part).__module__.startswith("open_clip.") for part in clip.modules()):
            from .vit import quicken

            self.layers = quicken(clip)
        own = hasattr(clip, "text_pool_type") and clip.attn_mask is not None
        self.trims = own and clip.text_pool_type in ("eos", "argmax")
        self.eval()
        with torch.no_grad():
            self.dimension = self.encode_captions(torch.zeros(1, context_length, dtype=torch.int64)).shape[1]
        self.train()

    def encode(self, tower: str, batch: Batch, name: str, *, hidden: bool = False) -> Tokens:
        """A field of a batch through a tower, a row for each distinct thing; hidden states where asked for.

        A picture that was embedded once (`<field>_pooled`) is not embedded again.
        """
        if tower == "text":
            return self.text_tokens(batch[name], hidden=hidden, lengths=batch.lengths.get(name))
        if f"{name}_pooled" in batch:
            return Tokens(batch[f"{name}_pooled"])
        return self.picture_tokens(batch[name], batch.get(f"{name}_crop"), hidden=hidden)

    def encode_pictures(self, pictures: Tensor, crops: Tensor | None = None) -> Tensor:
        """(P, D) unit rows from (P, S, S, 3) uint8. crops: (P, 2, 3), as `draw_crops` gives them."""
        plain = self._normalised(pictures, self.mean, self.std).to(self.dtype)
        return self._unit(self.clip.encode_image(cropped(plain, crops)))

    def picture_tokens(
        self, pictures: Tensor, crops: Tensor | None = None, *, hidden: bool = False
    ) -> Tokens:
        """The same with (P, L, W) states of the last layer, in the order of the pixels, where asked for."""
        if not hidden:
            return Tokens(self.encode_pictures(pictures, crops))
        plain = cropped(self._normalised(pictures, self.mean, self.std).to(self.dtype), crops)
        found = self.clip.visual.forward_intermediates(plain, indices=1, normalize_intermediates=True)
        states = found["image_intermediates"][-1].flatten(2).transpose(1, 2)
        return Tokens(self._unit(found["image_features"]), hidden=(states,))

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """(B, D) unit rows from (B, L) tokens, L up to the context's length."""
        if self.reads_pictures:
            return self.encode_pictures(self.rendered(tokens))
        if self.trims:
            return self._own_pooled(tokens)
        return self._unit(self.clip.encode_text(self._padded(tokens)))

    def text_tokens(
        self, tokens: Tensor, *, hidden: bool = False, lengths: np.ndarray | None = None
    ) -> Tokens:
        """The same with (B, L, W) states of the last layer where asked for, padding masked.

        lengths: (B,) tokens that are no padding, where they are known: then little padding is computed.
        """
        if not hidden and self.trims and lengths is not None:
            return Tokens(by_length(self.encode_captions, tokens, lengths))
        if not hidden:
            return Tokens(self.encode_captions(tokens))
        if self.reads_pictures:
            return self.picture_tokens(self.rendered(tokens), hidden=True)
        if hasattr(self.clip, "text_pool_type"):
            states, pooled = self._own_text(tokens if self.trims else self._padded(tokens))
        else:
            found = self.clip.text.forward_intermediates(
                self._padded(tokens), indices=1, normalize_intermediates=True, output_fmt="NLC"
            )
            states = found["text_intermediates"][-1]
            pooled = self._unit(found["text_features"])
        there = functional.pad(tokens, (0, states.shape[1] - tokens.shape[1]), value=PAD) != PAD
        return Tokens(pooled, hidden=(states,), hidden_mask=there)

    def rendered(self, characters: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 pictures of (B, L) characters' numbers."""
        pages = glyphs(self.settings.text.get("font")).render(characters.cpu().numpy(), self.image_size)
        return torch.from_numpy(pages).to(characters.device)

    def _padded(self, tokens: Tensor) -> Tensor:
        return functional.pad(tokens, (0, self.context_length - tokens.shape[1]), value=PAD)

    def _own_text(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, W) states and (B, D) unit rows of open_clip's own text tower, on L tokens alone."""
        from open_clip.transformer import text_global_pool

        clip = self.clip
        x, mask = self._text_rows(tokens)
        states = clip.ln_final(clip.transformer(x, attn_mask=mask))
        x = text_global_pool(states, tokens, clip.text_pool_type, eos_token_id=clip.text_eos_id)
        return states, self._projected(x)

    def _own_pooled(self, tokens: Tensor) -> Tensor:
        """The unit rows alone: the last layer computes the end mark's, which is all that is read."""
        from .vit import Block, read_one

        clip = self.clip
        layers = clip.transformer.resblocks
        if not isinstance(layers[-1], Block):
            return self._own_text(tokens)[1]
        end = tokens if clip.text_pool_type == "argmax" else (tokens == clip.text_eos_id).int()
        return self._projected(clip.ln_final(read_one(layers, *self._text_rows(tokens), end.argmax(-1))))

    def _text_rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, W) of tokens and their places; the (L, L) mask."""
        clip, length = self.clip, tokens.shape[1]
        x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
        if torch.is_autocast_enabled(x.device.type):  # as the pictures' rows are, behind their product
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return x, clip.attn_mask[:length, :length]

    def _projected(self, pooled: Tensor) -> Tensor:
        through = self.clip.text_projection
        return self._unit(through(pooled) if isinstance(through, nn.Linear) else pooled @ through)

    def _unit(self, rows: Tensor) -> Tensor:
        """Unit rows, as precise as the weights: bfloat16 would give a cosine two digits."""
        return functional.normalize(rows.to(self.dtype), dim=-1)

    @cached_property
    def widths(self) -> Widths:
        """What modules on top must fit to. Raises ConfigError where the towers show no hidden states."""
        batch = Batch({"image": torch.zeros(1, self.image_size, self.image_size, 3, dtype=torch.uint8)})
        tokens = torch.ones(1, self.context_length, dtype=torch.int64)
        was = self.training
        self.eval()
        try:
            with torch.no_grad():
                image = self.picture_tokens(batch["image"].to(self.device), hidden=True).hidden[-1]
                text = self.text_tokens(tokens.to(self.device), hidden=True).hidden[-1]
                tokens[:, -1] = 2
                other = self.text_tokens(tokens.to(self.device), hidden=True).hidden[-1]
        except (AttributeError, TypeError, NotImplementedError, AssertionError) as error:
            raise ConfigError(
                f"towers: {self.settings.name or 'these'} do not show their hidden states, which the system"
                f" reads ({error}): take an open_clip model whose towers have forward_intermediates"
            ) from error
        finally:
            self.train(was)
        vocabulary = int(getattr(self.clip, "vocab_size", self.settings.vocab_size))
        causal = torch.equal(text[:, :-1], other[:, :-1])
        context = self.context_length
        return Widths(image.shape[2], text.shape[2], self.dimension, vocabulary, context, causal)

    def lock(self, names: Sequence[str]) -> None:
        """Neither learn these towers nor let them drop out or count batches (LiT). names: image, text."""
        self.locked = [part for name in names for part in self._parts(name)]
        for part in self.locked:
            part.requires_grad_(False)
        self.train(self.training)

    def _parts(self, name: str) -> list[nn.Module]:
        if name == "image" or self.reads_pictures:
            return [self.clip.visual]
        whole = getattr(self.clip, "text", None)
        if whole is not None:
            return [whole]
        return [self.clip.transformer, self.clip.token_embedding, self.clip.ln_final]

    def train(self, mode: bool = True) -> TwoTowers:
        """Turn training on; what is locked stays as it is."""
        super().train(mode)
        for part in self.locked:
            part.eval()
        return self

    def drop_patches(self, share: float) -> None:
        """Leave out a share of each picture's patches in training, others each time.

        Raises ConfigError for a share that leaves none, or towers that have no patches.
        """
        if not share:
            return
        visual = self.clip.visual
        if not hasattr(visual, "dropped"):
            raise ConfigError(
                f"patch_dropout {share:g}: {self.settings.name or 'these towers'} see no patches: take a"
                " vision transformer (towers.name: ViT-B-32, or vision with a patch_size), or set it to 0"
            )
        if share >= 1:
            raise ConfigError(f"patch_dropout {share:g}: leaves no patch; expected less than 1")
        visual.dropped = share

    def compile_towers(self) -> None:
        """Compile what takes the time. A transformer's layers are alike: one is compiled for all of them,
        once for each tower and once more where lengths change, so a run starts in seconds."""
        torch._dynamo.config.recompile_limit = RECOMPILED
        self._normalised = torch.compile(normalised)
        for layer in self.layers:
            layer.compile()
            layer.read = torch.compile(layer.read)
        if not self.layers:
            self.clip.encode_image = torch.compile(self.clip.encode_image)
            self.encode_captions = torch.compile(self.encode_captions)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clip.logit_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are made of."""
        return self.clip.logit_scale.dtype

    @property
    def scale(self) -> Tensor:
        """One over the temperature."""
        return self.clip.logit_scale.exp()

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale in [1, 100]."""
        self.clip.logit_scale.clamp_(0, self.max_log_scale)
