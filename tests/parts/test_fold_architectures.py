"""Folding every architecture of transformers with batch normalization that a small config builds, without weights.

All running statistics and parameters of the norms are random first, so that a norm that is lost changes the outputs.
All weights are drawn anew too, since those of a fresh small model are so small that its outputs are nearly constant.
What stays has a reason: a norm that is a branch of its own (RepVGG's identity), stands on the model's input, before
zero padding or between two additions, or is in a part that the model never calls. Left out is what needs a package
besides transformers: timm's backbones and detectron2's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from fold_architectures import (
    EfficientLoFTRFeatures,
    Emu3Both,
    clap,
    depth_pro,
    detection,
    fastspeech2,
    grounding,
    groupvit,
    lively,
    maskformer,
    of,
    omdet_turbo,
    oneformer,
    part,
    pp_doclayout_v3,
    pp_ocr,
    real_time,
    resnet,
    rt_resnet,
    seamless,
    slanet,
    speecht5,
    superglue,
    tvp,
    upernet,
    vitpose,
    zoedepth,
)
from fold_models import folded, outputs, settle
from fold_settings import (
    ATTENTION,
    CODED,
    DETR,
    DPT,
    FILM,
    FOR_LINES,
    FOR_LINES_V4,
    FOUR,
    GRANITE,
    HGNET,
    HGNET_FOR_LINES,
    HGNET_FOUR,
    LARGE_KERNELS,
    LINE,
    LINES,
    LW_DETR,
    MASKED,
    NOISE,
    PAIRS,
    PATCHES,
    PROMPTED,
    RT_BACKBONE,
    SEGMENTER,
    SERIES,
    SPEECH,
    STAGES,
    TEXT,
    TEXTNET,
    TOKENS,
    UVDOC,
    VIT,
    VITMATTE,
    hgnet,
    images,
    pp_lcnet,
    pp_lcnet_v4,
)
from torch import nn

from homeostat.parts.fold.check import relative_difference

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # what architectures say about themselves
    pytest.mark.usefixtures("one_thread"),
]

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
    "deformable_detr": (of("DeformableDetr", backbone_config=resnet(), **DETR, d_model=64), MASKED, 12, 0),
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
    "pp_lcnet_v3": (of("PPLCNetV3", "Backbone", **pp_lcnet("_v3")), images(), 55, 7),
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
    "efficientloftr": (EfficientLoFTRFeatures, PAIRS, 12, 2),
    "emu3": (Emu3Both, CODED, 2, 2),
    "granite_speech5": (
        lambda: t.GraniteSpeech5Encoder(
            t.GraniteSpeech5EncoderConfig(
                **ATTENTION, num_hidden_layers=2, vocab_size=6, num_mel_bins=4, context_size=8, subsample_layers=[0]
            )
        ),
        NOISE[:, 0, :256].reshape(2, 16, 16),
        2,
        0,
    ),
    "granite_speech_plus": (
        lambda: part("granite_speech_plus", "GraniteSpeechPlusCTCEncoder")(t.GraniteSpeechPlusEncoderConfig(**GRANITE)),
        NOISE[:, 0, :128].reshape(2, 16, 8),
        2,
        0,
    ),
    "grounding_dino": (grounding("GroundingDino"), {**images(64), "input_ids": TOKENS}, 12, 0),
    "mask2former": (
        of(
            "Mask2Former",
            backbone_config=resnet(out_features=STAGES),
            **SEGMENTER,
            feature_size=32,
            mask_feature_size=16,
            hidden_dim=32,
        ),
        images(64),
        12,
        0,
    ),
    "maskformer": (maskformer, images(64), 12, 0),
    "mm_grounding_dino": (grounding("MMGroundingDino"), {**images(64), "input_ids": TOKENS}, 12, 0),
    "omdet_turbo": (omdet_turbo, PROMPTED, 54, 0),
    "oneformer": (oneformer, {**images(64), "task_inputs": TOKENS}, 12, 0),
    "pp_doclayout_v3": (pp_doclayout_v3, images(64), 71, 0),
    "pp_ocrv5_mobile_det": (
        pp_ocr("V5MobileDet", pp_lcnet("_v3"), neck_out_channels=16, layer_list_out_channels=[8] * 4),
        images(64),
        57,
        7,
    ),
    "pp_ocrv5_mobile_rec": (pp_ocr("V5MobileRec", pp_lcnet("_v3", FOR_LINES), **LINES), LINE, 60, 8),
    "pp_ocrv5_server_det": (pp_ocr("V5ServerDet", hgnet(HGNET_FOUR), **LARGE_KERNELS), images(64), 29, 0),
    "pp_ocrv5_server_rec": (pp_ocr("V5ServerRec", hgnet(HGNET_FOR_LINES), **LINES), LINE, 28, 0),
    "pp_ocrv6_medium_det": (pp_ocr("V6MediumDet", pp_lcnet_v4(), **LARGE_KERNELS), images(64), 22, 0),
    "pp_ocrv6_small_det": (
        pp_ocr("V6SmallDet", pp_lcnet_v4(), neck_out_channels=16, layer_list_out_channels=[16] * 4),
        images(64),
        18,
        0,
    ),
    "pp_ocrv6_small_rec": (pp_ocr("V6SmallRec", pp_lcnet_v4(FOR_LINES_V4), **LINES), LINE, 18, 0),
    "pp_ocrv6_tiny_rec": (
        pp_ocr("V6TinyRec", pp_lcnet_v4(FOR_LINES_V4), hidden_size=16, head_out_channels=6),
        LINE,
        17,
        0,
    ),
    "sam3_lite_text": (
        lambda: t.Sam3LiteTextTextModel(
            t.Sam3LiteTextTextConfig(**TEXT, projection_dim=8, repmixer_kernel_size=3, layer_scale_init_value=1.0)
        ),
        {"input_ids": TOKENS},
        2,
        2,
    ),
    "slanet": (slanet, images(64), 59, 0),
    "superglue": (superglue, PAIRS, 4, 0),
    "tvp": (tvp, FILM, 12, 0),
    "uvdoc": (
        of(
            "UVDoc",
            backbone_config=UVDOC,
            kernel_size=5,
            bridge_connector=[16, 16],
            out_point_positions2D=[[16, 8], [8, 2]],
        ),
        images(64),
        14,
        0,
    ),
    "vitpose": (vitpose, images(), 2, 0),
    "zoedepth": (zoedepth, images(), 14, 2),
}

LEFT_OUT = {"layoutlmv2": "needs detectron2", "timm_backbone": "needs timm"}


@pytest.mark.parametrize("name", CASES)
def test_architecture(name):
    build, sample, count, stay = CASES[name]
    torch.manual_seed(0)
    model = lively(build())
    before = outputs(model, sample)
    settle(model)
    effect = max(map(relative_difference, before, outputs(model, sample)))
    assert effect > 0.05 or not count
    # what folding gets wrong is small beside what the norms do
    _, plan = folded(model, sample, count, stay, rtol=min(1e-4, effect / 100) if count else 1e-4)
    assert all(refused.reason for refused in plan.refused)


def test_no_architecture_is_missing():
    """Every folder of transformers whose source speaks of batch normalization has a case, or a reason for none."""
    models = Path(t.__file__).parent / "models"
    calls = re.compile(r"BatchNorm\dd\(|batch_norm\(|SyncBatchNorm")
    found = {path.parent.name for path in models.glob("*/modeling_*.py") if calls.search(path.read_text())}
    named = {case if (models / case).is_dir() else case.rpartition("_")[0] for case in CASES}
    assert len(found) > 70
    assert found - named == set(LEFT_OUT)
