"""Folding every architecture of transformers with batch normalization that a small config builds, without weights.

All running statistics and parameters of the norms are random first, so that a norm that is lost changes the outputs.
What stays has a reason: a norm that is a branch of its own (RepVGG's identity), stands on the model's input, before
zero padding or between two additions, or is in a part that the model never calls.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as t
from fold_models import folded, one_thread, outputs, settle  # noqa: F401 - a fixture for every test here
from torch import Tensor, nn

from homeostat.parts.fold.check import relative_difference

pytestmark = pytest.mark.filterwarnings("ignore")  # what architectures say about themselves

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

Case = tuple[Callable[[], nn.Module], Any, int, int]
CASES: dict[str, Case] = {
    # architecture: (builder, sample, folded, stay)
    "align": (of("AlignVision", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320), images(), 24, 0),
    "beit": (
        of("Beit", "ForSemanticSegmentation", **VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2]),
        images(),
        12,
        0,
    ),
    "bit": (of("Bit", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_groups=4), images(64), 0, 0),
    "clap": (
        clap,
        {"input_features": NOISE[:, :, :1600].reshape(2, 4, 100, 16), "is_longer": torch.ones(2, 1).bool()},
        4,
        1,
    ),
    "conditional_detr": (detection("ConditionalDetr"), MASKED, 12, 0),
    "convnext": (of("ConvNext", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, drop_path_rate=0.1), images(), 0, 0),
    "convnextv2": (of("ConvNextV2", hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), images(), 0, 0),
    "cvt": (of("Cvt", embed_dim=[8, 16, 24], num_heads=[1, 2, 3], depth=[1, 2, 4]), images(64), 21, 0),
    "d_fine": (real_time("DFine", lambda: t.HGNetV2Config(**HGNET)), images(64), 111, 0),
    "dab_detr": (detection("DabDetr"), MASKED, 12, 0),
    "data2vec": (
        of("Data2VecVision", "ForSemanticSegmentation", **VIT, out_indices=[1, 2, 3, 4], pool_scales=[1, 2]),
        images(),
        12,
        0,
    ),
    "deformable_detr": (detection("DeformableDetr"), MASKED, 12, 0),
    "deimv2": (real_time("Deimv2", lambda: t.HGNetV2Config(**HGNET)), images(64), 103, 0),
    "depth_pro": (depth_pro, images(), 10, 2),
    "detr": (detection("Detr"), MASKED, 12, 0),
    "dpt": (of("DPT", "ForSemanticSegmentation", **DPT), images(), 16, 2),
    "efficientnet": (
        of("EfficientNet", width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320),
        images(),
        25,
        0,
    ),
    "fastspeech2_conformer": (fastspeech2, {"input_ids": TOKENS[:1]}, 4, 0),
    "glpn": (
        of("GLPN", "ForDepthEstimation", **FOUR, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8),
        images(64),
        6,
        0,
    ),
    "granite_speech": (
        lambda: part("granite_speech", "GraniteSpeechCTCEncoder")(t.GraniteSpeechEncoderConfig(**GRANITE)),
        NOISE[:, 0, :128].reshape(2, 16, 8),
        2,
        0,
    ),
    "groupvit": (groupvit, {"input_ids": TOKENS, **images(16)}, 2, 0),
    "hgnet_v2": (of("HGNetV2", "Backbone", **HGNET), images(64), 22, 0),
    "hubert": (of("Hubert", **SPEECH, conv_pos_batch_norm=True), NOISE[:, 0], 0, 1),
    "informer": (lambda: part("informer", "InformerConvLayer")(8), NOISE[:, 0, :80].reshape(2, 10, 8), 1, 0),
    "lasr": (
        lambda: t.LasrEncoder(
            t.LasrEncoderConfig(
                **ATTENTION, num_hidden_layers=1, num_mel_bins=16, subsampling_conv_channels=8, head_dim=8
            )
        ),
        NOISE[:, 0, :1024].reshape(2, 64, 16),
        1,
        0,
    ),
    "levit": (
        of(
            "Levit",
            "ForImageClassificationWithTeacher",
            image_size=64,
            hidden_sizes=[16, 32, 48],
            num_attention_heads=[2] * 3,
            depths=[1] * 3,
            key_dim=[8] * 3,
        ),
        images(64),
        28,
        0,
    ),
    "lw_detr": (of("LwDetr", **LW_DETR), images(64), 4, 0),
    "mobilenet_v1": (of("MobileNetV1", depth_multiplier=0.25, min_depth=8), images(), 27, 0),
    "mobilenet_v2": (
        of("MobileNetV2", "ForSemanticSegmentation", depth_multiplier=0.25, min_depth=8),
        images(64),
        55,
        0,
    ),
    "mobilevit": (
        of(
            "MobileViT",
            image_size=64,
            hidden_sizes=[16, 24, 32],
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
            num_attention_heads=2,
        ),
        images(64),
        32,
        0,
    ),
    "mobilevitv2": (of("MobileViTV2", image_size=64, width_multiplier=0.25), images(64), 25, 0),
    "parakeet": (
        lambda: t.ParakeetEncoder(
            t.ParakeetEncoderConfig(**ATTENTION, num_hidden_layers=1, num_mel_bins=16, subsampling_conv_channels=8)
        ),
        NOISE[:, 0, :1024].reshape(2, 64, 16),
        1,
        0,
    ),
    "patchtsmixer": (of("PatchTSMixer", **PATCHES, num_layers=1, norm_mlp="BatchNorm"), SERIES, 1, 1),
    "patchtst": (of("PatchTST", **PATCHES, num_attention_heads=2, ffn_dim=8, num_hidden_layers=1), SERIES, 2, 0),
    "perceiver": (
        lambda: part("perceiver", "Conv2DDownsample")(in_channels=3, out_channels=8),
        images()["pixel_values"],
        1,
        0,
    ),
    "poolformer": (of("PoolFormer", hidden_sizes=[8] * 4, depths=[1] * 4), images(64), 0, 0),
    "pp_doclayout_v2": (real_time("PPDocLayoutV2", lambda: t.HGNetV2Config(**HGNET)), images(64), 64, 0),
    "pp_doclayout_v4": (real_time("PPDocLayoutV4", lambda: t.HGNetV2Config(**HGNET)), images(64), 64, 0),
    "pp_lcnet": (of("PPLCNet", "Backbone", scale=0.25), images(), 27, 0),
    "pp_lcnet_v3": (of("PPLCNetV3", "Backbone", scale=0.25), images(), 127, 20),
    "pp_lcnet_v4": (of("PPLCNetV4", "Backbone"), images(), 33, 0),
    "regnet_x": (
        of("RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="x"),
        images(),
        12,
        0,
    ),
    "regnet_y": (
        of("RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4, layer_type="y"),
        images(),
        12,
        0,
    ),
    "resnet": (of("ResNet", **RT_BACKBONE, layer_type="bottleneck"), images(), 8, 0),
    "rt_detr": (real_time("RTDetr", rt_resnet), images(64), 57, 0),
    "rt_detr_v2": (real_time("RTDetrV2", rt_resnet), images(64), 57, 0),
    "seamless_m4t": (seamless, NOISE[:, 0, :96].reshape(2, 12, 8), 1, 0),
    "segformer": (
        of("Segformer", "ForSemanticSegmentation", **FOUR, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8),
        images(64),
        1,
        0,
    ),
    "speecht5": (speecht5, NOISE[:, 0, :96].reshape(2, 6, 16), 5, 0),
    "swiftformer": (of("SwiftFormer", embed_dims=[8, 16, 16, 24], depths=[1] * 4), images(64), 13, 0),
    "table_transformer": (detection("TableTransformer"), MASKED, 12, 0),
    "textnet": (of("TextNet", **TEXTNET), images(64), 20, 3),
    "upernet": (upernet, images(64), 23, 0),
    "vitmatte": (of("VitMatte", "ForImageMatting", **VITMATTE), images(32, 4), 8, 0),
    "wav2vec2_conformer": (of("Wav2Vec2Conformer", **SPEECH), NOISE[:, 0], 1, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_architecture(name):
    build, sample, count, stay = CASES[name]
    torch.manual_seed(0)
    model = build()
    before = outputs(model, sample)
    settle(model)
    effect = max(map(relative_difference, before, outputs(model, sample)))
    new, plan = folded(model, sample, count, stay, rtol=1e-4)
    assert all(refused.reason for refused in plan.refused)
    if count:  # what folding gets wrong is small beside what the norms do
        assert max(map(relative_difference, outputs(model, sample), outputs(new, sample))) < effect / 100
