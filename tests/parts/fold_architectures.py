"""Builders of small architectures of transformers that the tests of folding go through."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import transformers as t
from fold_settings import (
    ATTENTION,
    DETR,
    ENCODER_DECODER,
    HGNET_FOUR,
    OMDET,
    RT_DETR,
    SEGMENTER,
    STAGES,
    TEXT,
    VIT,
    ZOEDEPTH,
    pp_lcnet,
)
from torch import Tensor, nn


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


def pp_ocr(name: str, backbone: dict[str, Any], **settings: Any) -> Callable[[], nn.Module]:
    suffix = "ForTextRecognition" if name.endswith("Rec") else "ForObjectDetection"
    return of("PPOCR" + name, suffix, backbone_config=backbone, **settings)


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
