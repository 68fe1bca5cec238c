"""Settings and samples of small architectures of transformers, for the tests of folding; nothing is built here."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IMAGES = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(1))
NOISE = torch.randn(2, 4, 1600, generator=torch.Generator().manual_seed(2))
ATTENTION = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**ATTENTION, "num_hidden_layers": 4, "image_size": 32, "patch_size": 4}
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
SPEECH = {
    **ATTENTION,
    "num_hidden_layers": 1,
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
ENCODER_DECODER = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
DETR = {
    **ENCODER_DECODER,
    "use_timm_backbone": False,
    "backbone": None,
    "use_pretrained_backbone": False,
    "num_queries": 3,
}
RT_DETR = {
    **ENCODER_DECODER,
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16] * 3,
    "feat_strides": [8, 16, 32],
    "d_model": 16,
    "decoder_in_channels": [16] * 3,
    "num_queries": 5,
    "num_denoising": 0,
    "anchor_image_size": None,
}
DPT = {
    **VIT,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8] * 4,
    "fusion_hidden_size": 8,
    "is_hybrid": False,
    "use_batch_norm_in_fusion_residual": True,
}
HGNET = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 16],
    "stage_mid_channels": [8] * 4,
    "stage_out_channels": [16] * 4,
    "stage_num_blocks": [1] * 4,
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [1] * 4,
    "hidden_sizes": [16] * 4,
    "depths": [1] * 4,
    "embedding_size": 8,
    "out_features": ["stage2", "stage3", "stage4"],
    "return_idx": [1, 2, 3],
}
GRANITE = {
    "input_dim": 8,
    "num_layers": 2,
    "hidden_dim": 16,
    "feedforward_mult": 2,
    "num_heads": 2,
    "dim_head": 8,
    "output_dim": 6,
    "context_size": 8,
    "max_pos_emb": 8,
}


def images(size: int = 32, channels: int = 3) -> dict[str, Tensor]:
    return {"pixel_values": IMAGES[:, :channels, :size, :size]}


RT_BACKBONE = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
TOKENS = torch.randint(3, 20, (2, 5), generator=torch.Generator().manual_seed(3))
MASKED = {**images(64), "pixel_mask": torch.ones(2, 64, 64, dtype=torch.long)}
PROMPTED = {
    **images(64),
    **{f"{name}_input_ids": TOKENS for name in ("classes", "tasks")},
    **{f"{name}_attention_mask": torch.ones_like(TOKENS) for name in ("classes", "tasks")},
    "classes_structure": torch.tensor([1, 1]),
}
FILM = {
    "input_ids": TOKENS[:1],
    "attention_mask": torch.ones_like(TOKENS[:1]),
    "pixel_values": IMAGES[:1, None, :3].repeat(1, 2, 1, 1, 1),
}
PAIRS = {"pixel_values": IMAGES[:, :2, None].repeat(1, 1, 3, 1, 1)}
LINE = {"pixel_values": IMAGES[:, :3, :48]}
CODED = {**images(16), "codes": TOKENS[:1, :4].reshape(1, 1, 2, 2).repeat(1, 2, 2, 2) % 16}
SERIES = {"past_values": NOISE[:, :2, :16].transpose(1, 2)}
PATCHES = {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4, "d_model": 8}
TEXTNET = {
    "stem_out_channels": 8,
    "hidden_sizes": [8, 8, 16, 16, 24],
    "conv_layer_kernel_sizes": [[[3, 3], [3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
    "conv_layer_strides": [[1, 2], [2, 1], [2, 1], [2]],
}
VITMATTE = {
    "hidden_size": 16,
    "convstream_hidden_sizes": [8] * 3,
    "fusion_hidden_sizes": [8] * 4,
    "backbone_config": {
        "model_type": "vitdet",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "num_channels": 4,
        "out_features": ["stage1"],
    },
}
LW_DETR = {
    "d_model": 16,
    "decoder_layers": 1,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "num_queries": 5,
    "group_detr": 1,
    "projector_scale_factors": [1.0],
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 1,
    "backbone_config": {
        "model_type": "lw_detr_vit",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
        "window_block_indices": [0],
        "out_indices": [2],
    },
}

TEXT = {**ATTENTION, "num_hidden_layers": 1, "vocab_size": 30, "max_position_embeddings": 16}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SEGMENTER = {
    "encoder_feedforward_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "dim_feedforward": 16,
    "num_queries": 4,
}
OMDET = {
    "apply_layernorm_after_vision_backbone": False,
    "disable_custom_kernels": True,
    "image_size": 64,
    "text_projection_in_dim": 24,
    "text_projection_out_dim": 24,
    "class_embed_dim": 24,
    "task_encoder_hidden_dim": 16,
    "vision_features_channels": [16] * 3,
    "encoder_in_channels": [16] * 3,
    "encoder_hidden_dim": 16,
    "encoder_attention_heads": 2,
    "encoder_dim_feedforward": 16,
    "decoder_hidden_dim": 16,
    "decoder_num_heads": 2,
    "decoder_num_layers": 1,
    "decoder_dim_feedforward": 16,
    "num_queries": 5,
}
ZOEDEPTH = {
    "neck_hidden_sizes": [8] * 4,
    "fusion_hidden_size": 8,
    "use_batch_norm_in_fusion_residual": True,
    "bottleneck_features": 8,
    "num_relative_features": 8,
    "bin_embedding_dim": 8,
    "num_attractors": [4, 3, 2, 1],
    "bin_configurations": [{"n_bins": 4, "min_depth": 0.1, "max_depth": 10.0}],
}
UVDOC = {
    "model_type": "uvdoc_backbone",
    "resnet_head": [[3, 8], [8, 8]],
    "resnet_configs": [[[8, 8, 1, False]], [[8, 16, 1, True], [16, 16, 3, False]]],
    "stage_configs": [[[16, 1]], [[16, 2], [16, 3]]],
    "kernel_size": 5,
    "out_features": ["stage1", "stage2"],
}
# blocks of PP-LCNet: kernel size, channels in and out, stride, squeeze and excitation
NARROW = [
    [[3, 16, 16, 1, False]],
    [[3, 16, 16, 2, False]],
    [[3, 16, 16, 2, False]],
    [[3, 16, 32, 2, False]],
    [[5, 32, 32, 2, True], [5, 32, 32, 1, True]],
]
FOR_LINES = [*NARROW[:3], [[3, 16, 32, [2, 1], False]], [[5, 32, 32, 1, True], [5, 32, 32, 1, True]]]
NARROW_V4 = [[[3, 16, 16, 1, True]], *([[3, 16, 16, 2, squeezed]] for squeezed in (False, True, False))]
FOR_LINES_V4 = [
    *([[3, 16, 16, 1, squeezed]] for squeezed in (True, False)),
    *([[3, 16, 16, [2, 1], squeezed]] for squeezed in (True, False)),
]
HGNET_FOUR = {**HGNET, "out_features": STAGES, "return_idx": [0, 1, 2, 3]}
HGNET_FOR_LINES = {
    **HGNET_FOUR,
    "stage_downsample": [True] * 4,
    "stem_strides": [2, 1, 1, 1, 1],
    "stage_downsample_strides": [[2, 1], [1, 2], [2, 1], [2, 1]],
}
KERNELS = {"long": 7, "mid": 5, "short": 3}
LARGE_KERNELS = {
    "neck_out_channels": 16,
    "intraclass_block_config": {
        "reduce_channel": [1, 1, 0],
        "return_channel": [1, 1, 0],
        **{f"vertical_long_to_small_conv_{name}ratio": [[k, 1], 1, [k // 2, 0]] for name, k in KERNELS.items()},
        **{f"horizontal_small_to_long_conv_{name}ratio": [[1, k], 1, [0, k // 2]] for name, k in KERNELS.items()},
        **{f"symmetric_conv_long_{name}ratio": [k, 1, k // 2] for name, k in KERNELS.items()},
    },
    "scale_factor_list": [1, 2, 4, 8],
    "kernel_list": [3, 2, 2],
}
LINES = {"hidden_size": 16, "depth": 1, "num_attention_heads": 2, "head_out_channels": 6}


def pp_lcnet(version: str = "", blocks: Any = NARROW) -> dict[str, Any]:
    sizes = {"stem_channels": 8, "divisor": 8, "scale": 0.5, "out_features": [*STAGES[1:], "stage5"]}
    return {"model_type": f"pp_lcnet{version}", "block_configs": blocks, **sizes}


def pp_lcnet_v4(blocks: Any = NARROW_V4) -> dict[str, Any]:
    sizes = {"stem_channels": [3, 8, 16], "out_features": STAGES}
    return {"model_type": "pp_lcnet_v4", "block_configs": blocks, **sizes}


def hgnet(settings: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "hgnet_v2", **{key: value for key, value in settings.items() if key != "return_idx"}}
