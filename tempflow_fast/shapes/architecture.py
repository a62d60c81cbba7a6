"""The untrained shapes pipeline: every part is a tiny configuration of the class that Stable Diffusion 3 uses.

Images have 24 x 24 pixels. A VAE of factor 4 turns them into 6 x 6 latents of 12 channels. Two CLIP text encoders of
width 64 read 12 tokens; there is no T5. The transformer is an MMDiT of six blocks and width 128 with patch size 2: an
image is 3 x 3 tokens. diffusers and transformers are imported only on use, so that importing the world is fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from string import ascii_lowercase
from typing import TYPE_CHECKING

from tempflow_fast.shapes.prompts import all_prompts
from tempflow_fast.shapes.world import IMAGE_SIZE

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

TEXT_LENGTH = 12
TEXT_WIDTH = 64
LATENT_CHANNELS = 12
VAE_FACTOR = 4
LATENT_SIZE = IMAGE_SIZE // VAE_FACTOR
PATCH_SIZE = 2
HEADS, HEAD_WIDTH = 4, 32
BOS, EOS, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer that makes one token of every word of the world's prompts; it is the same at every call."""
    from transformers import CLIPTokenizer

    letters = sorted(ascii_lowercase)
    merges = _merges(sorted({word for entry in all_prompts() for word in entry["prompt"].split()}))
    tokens = [BOS, EOS, *letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges)]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first and ties by spelling, until every word is one symbol."""
    symbols = [[*word[:-1], word[-1] + END_OF_WORD] for word in words]
    merges = []
    while pairs := Counter(pair for word in symbols for pair in pairwise(word)):
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        symbols = [_merged(word, best) for word in symbols]
    return merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols of a word with every occurrence of the pair joined."""
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained two-layer CLIP text encoder.

    Stable Diffusion 3 reads its penultimate hidden state and its projection.

    Args:
        tokenizer: gives the vocabulary size and the special tokens.
    """
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


def build_vae() -> AutoencoderKL:
    """An untrained convolutional autoencoder of factor 4; the scaling factor is set after training."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 32),
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=1.0,
        shift_factor=0.0,
    )


def build_transformer() -> SD3Transformer2DModel:
    """A six-block MMDiT with one token per 2 x 2 latent pixels; its output layer and gates are initialized to zero."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=PATCH_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        caption_projection_dim=HEADS * HEAD_WIDTH,
        joint_attention_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=LATENT_SIZE // PATCH_SIZE,
        qk_norm="rms_norm",
    )
    gates = [block.norm1.linear for block in model.transformer_blocks]
    gates += [block.norm1_context.linear for block in model.transformer_blocks]
    for layer in (*gates, model.norm_out.linear, model.proj_out):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
    return model


def build_pipeline() -> StableDiffusion3Pipeline:
    """The whole untrained pipeline."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    tokenizer = build_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=build_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )
