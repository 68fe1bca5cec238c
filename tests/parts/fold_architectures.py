"""Small configs, samples and builders of the architectures of transformers that the tests of folding go through."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from torch import Tensor, nn

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


def resnet(**settings: Any) -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    return t.ResNetConfig(**{**sizes, "out_features": ["stage2", "stage3", "stage4"], **settings})


def part(folder: str, name: str) -> Any:
    return getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)


def of(name: str, suffix: str = "Model", **settings: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(t, name + suffix)(getattr(t, name + "Config")(**settings))


def speecht5() -> nn.Module:
    sizes = {"hidden_size": 16, "num_mel_bins": 8, "speech_decoder_postnet_units": 8}
    return part("speecht5", "SpeechT5SpeechDecoderPostnet")(t.SpeechT5Config(**sizes))


def seamless() -> nn.Module:
    sizes = {"speech_encoder_layers": 1, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 16}
    more = {"hidden_size": 16, "feature_projection_input_dim": 8, "num_adapter_layers": 1, "max_source_positions": 64}
    return part("seamless_m4t", "SeamlessM4TSpeechEncoder")(t.SeamlessM4TConfig(**sizes, **more))


def real_time(name: str, config: Callable[[], Any]) -> Callable[[], nn.Module]:
    return lambda: getattr(t, name + "Model")(getattr(t, name + "Config")(backbone_config=config(), **RT_DETR))


def rt_resnet() -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "layer_type": "basic"}
    return t.RTDetrResNetConfig(**sizes, out_features=["stage2", "stage3", "stage4"])


def detection(name: str, **settings: Any) -> Callable[[], nn.Module]:
    width = {"hidden_size": 32} if name == "DabDetr" else {"d_model": 32}
    return of(name, backbone_config=resnet(), **DETR, **width, **settings)


def depth_pro() -> nn.Module:
    tower = {"model_type": "dinov2", "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2}
    towers = {
        f"{name}_model_config": {**tower, "patch_size": 4, "image_size": 16} for name in ("image", "patch", "fov")
    }
    scales = {"scaled_images_ratios": [0.5, 1.0], "scaled_images_overlap_ratios": [0.0, 0.5]}
    sizes = {"fusion_hidden_size": 8, "patch_size": 16, "scaled_images_feature_dims": [8, 8]}
    hooks = {"intermediate_hook_ids": [1], "intermediate_feature_dims": [8], "use_batch_norm_in_fusion_residual": True}
    return t.DepthProForDepthEstimation(t.DepthProConfig(**towers, **scales, **sizes, **hooks))


def groupvit() -> nn.Module:
    text = {
        **ATTENTION,
        "num_hidden_layers": 1,
        "vocab_size": 20,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    groups = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 2]}
    vision = {**ATTENTION, **groups, "image_size": 16, "patch_size": 4}
    sizes = {"projection_dim": 8, "projection_intermediate_dim": 8}
    return t.GroupViTModel(t.GroupViTConfig(text_config=text, vision_config=vision, **sizes))


def upernet() -> nn.Module:
    backbone = resnet(out_features=["stage1", "stage2", "stage3", "stage4"])
    sizes = {"hidden_size": 8, "pool_scales": [1, 2], "auxiliary_in_channels": 16, "auxiliary_channels": 8}
    return t.UperNetForSemanticSegmentation(t.UperNetConfig(backbone_config=backbone, **sizes))


def clap() -> nn.Module:
    sizes = {"spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 16, "hidden_size": 32}
    more = {"patch_embeds_hidden_size": 8, "depths": [1] * 3, "num_hidden_layers": 3, "num_attention_heads": [2] * 3}
    return t.ClapAudioModel(t.ClapAudioConfig(**sizes, **more, window_size=4, enable_fusion=True))


def fastspeech2() -> nn.Module:
    heads = {f"{name}_num_attention_heads": 2 for name in ("encoder", "decoder")}
    layers = {
        f"{name}_{what}": size for name in ("encoder", "decoder") for what, size in (("layers", 1), ("linear_units", 8))
    }
    predictors = {f"{name}_predictor_channels": 8 for name in ("duration", "energy", "pitch")}
    sizes = {"hidden_size": 16, "vocab_size": 20, "num_mel_bins": 8, "speech_decoder_postnet_units": 8}
    config = t.FastSpeech2ConformerConfig(**heads, **layers, **predictors, **sizes, speech_decoder_postnet_layers=2)
    return t.FastSpeech2ConformerModel(config)


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


def pp_ocr(name: str, backbone: dict[str, Any], **settings: Any) -> Callable[[], nn.Module]:
    suffix = "ForTextRecognition" if name.endswith("Rec") else "ForObjectDetection"
    return of("PPOCR" + name, suffix, backbone_config=backbone, **settings)


def hgnet(settings: dict[str, Any]) -> dict[str, Any]:
    return {"model_type": "hgnet_v2", **{key: value for key, value in settings.items() if key != "return_idx"}}


def vitpose() -> nn.Module:
    sizes = {"image_size": [32, 32], "patch_size": [8, 8], "hidden_size": 16, "num_hidden_layers": 1}
    backbone = {"model_type": "vitpose_backbone", **sizes, "num_attention_heads": 2, "out_indices": [1]}
    return t.VitPoseForPoseEstimation(t.VitPoseConfig(backbone_config=backbone, use_simple_decoder=False))


def superglue() -> nn.Module:
    detector = {"model_type": "superpoint", "encoder_hidden_sizes": [8] * 4, "decoder_hidden_size": 8}
    points = {**detector, "descriptor_decoder_dim": 16, "max_keypoints": 20}
    sizes = {"hidden_size": 16, "keypoint_encoder_sizes": [8, 16], "num_attention_heads": 2, "sinkhorn_iterations": 5}
    layers = {"gnn_layers_types": ["self", "cross"], "output_hidden_states": True}  # matches are whole numbers
    return t.SuperGlueForKeypointMatching(t.SuperGlueConfig(keypoint_detector_config=points, **sizes, **layers))


def zoedepth() -> nn.Module:
    backbone = {"model_type": "beit", **VIT, "reshape_hidden_states": False, "out_features": STAGES}
    return t.ZoeDepthForDepthEstimation(t.ZoeDepthConfig(backbone_config=backbone, **ZOEDEPTH))


def slanet() -> nn.Module:
    sizes = {"post_conv_out_channels": 16, "out_channels": 8, "hidden_size": 16, "max_text_length": 4}
    return t.SLANetForTableRecognition(t.SLANetConfig(backbone_config=pp_lcnet(), **sizes))


def pp_doclayout_v3() -> nn.Module:
    sizes = {**RT_DETR, "x4_feat_dim": 16, "mask_feature_channels": [8, 8]}
    return t.PPDocLayoutV3Model(t.PPDocLayoutV3Config(backbone_config=t.HGNetV2Config(**HGNET_FOUR), **sizes))


def grounding(name: str) -> Callable[[], nn.Module]:
    text = {"model_type": "bert", **TEXT}
    sizes = {**ENCODER_DECODER, "d_model": 64, "num_queries": 5, "max_text_len": 8, "disable_custom_kernels": True}
    return of(name, backbone_config=resnet(), text_config=text, **sizes)


def omdet_turbo() -> nn.Module:
    text = {"model_type": "clip_text_model", **TEXT, "hidden_size": 24, "projection_dim": 16}
    marks = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = t.OmDetTurboConfig(text_config={**text, **marks}, backbone_config=resnet(), **OMDET)
    return t.OmDetTurboForObjectDetection(config)


def maskformer() -> nn.Module:
    decoder = t.DetrConfig(**{**DETR, "backbone_config": resnet()}, d_model=16)
    sizes = {"fpn_feature_size": 32, "mask_feature_size": 16}
    return t.MaskFormerModel(
        t.MaskFormerConfig(backbone_config=resnet(out_features=STAGES), decoder_config=decoder, **sizes)
    )


def oneformer() -> nn.Module:
    text = {f"text_encoder_{name}": size for name, size in (("width", 16), ("num_layers", 1), ("vocab_size", 20))}
    sizes = {**SEGMENTER, **text, "text_encoder_context_length": 5, "task_seq_len": 5, "query_dec_layers": 1}
    wide = {"hidden_dim": 32, "conv_dim": 32, "mask_dim": 32}
    return t.OneFormerModel(t.OneFormerConfig(backbone_config=resnet(out_features=STAGES), **sizes, **wide))


def tvp() -> nn.Module:
    grid = {"max_grid_col_position_embeddings": 4, "max_grid_row_position_embeddings": 4}
    video = {"max_img_size": 64, "num_frames": 2, "visual_prompt_size": 4}
    return t.TvpModel(t.TvpConfig(backbone_config=resnet(out_features=["stage4"]), **TEXT, **grid, **video))


class Emu3Both(nn.Module):
    """Images to codes, whose features are returned before they are rounded, and codes to images."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
        codes = {"codebook_size": 16, "embed_dim": 4, "latent_channels": 4, "temporal_downsample_factor": 2}
        self.vq = t.Emu3VQVAE(t.Emu3VQVAEConfig(**sizes, **codes, hidden_size=32))

    def forward(self, pixel_values: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor([pixel_values.shape[-2:]] * len(pixel_values))
        return self.vq.encode(pixel_values, sizes).last_hidden_state, self.vq.decode(codes)


class EfficientLoFTRFeatures(nn.Module):
    """The features behind the matches, which themselves are whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        stages = {"stage_num_blocks": [1, 2, 1, 1], "out_features": [8, 8, 16, 32], "hidden_size": 32}
        matching = {"num_attention_layers": 1, "num_attention_heads": 8, "fine_matching_slice_dim": 4}
        self.model = t.EfficientLoFTRForKeypointMatching(t.EfficientLoFTRConfig(**stages, **matching))

    def forward(self, pixel_values: Tensor) -> Any:
        features = self.model.efficientloftr(pixel_values).feature_maps
        return features, self.model.refinement_layer(features[0], features[1:])


def lively(model: nn.Module) -> nn.Module:
    """Draw the weights anew with a variance of 1 / fan in: fresh small models have outputs that hardly depend on
    anything."""
    generator = torch.Generator().manual_seed(5)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            with torch.no_grad():
                weight = module.weight
                weight.copy_(torch.randn(weight.shape, generator=generator) / weight[0].numel() ** 0.5)
    return model
