"""CLIPSeg, Grounding DINO and SAM: their real classes and processors at toy size, with random weights."""

from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    SamConfig,
    SamModel,
    SamProcessor,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import GroundingDinoImageProcessorPil
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from support.seeds import seeded

SIDE = 24  # pixels of an image, which no processor has to resize
WORDS = ("ship", "person", "a", "the")


def clipseg(folder: Path, tokenizer: CLIPTokenizer) -> Path:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**small, **ends, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**small, "image_size": SIDE, "patch_size": 4},
        projection_dim=8,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    CLIPSegForImageSegmentation(config).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPSegProcessor(ViTImageProcessorPil(size=size), tokenizer).save_pretrained(folder)
    return folder


def detector(folder: Path) -> Path:
    words = [f"[unused{i}]" for i in range(1100)]
    known = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?"}  # as in BERT
    for place, word in known.items() | dict(enumerate(WORDS, 200)).items():
        words[place] = word
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=SIDE, patch_size=2, embed_dim=8, depths=[1, 1, 1], num_heads=[1, 1, 2], window_size=2,
            out_indices=[2, 3],
        ),
        text_config=BertConfig(vocab_size=len(words), max_position_embeddings=32, **size),
        d_model=32,  # its group norms have 32 groups
        num_feature_levels=2,
        num_queries=6,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_text_len=16,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessorPil(size={"shortest_edge": SIDE, "longest_edge": SIDE})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def segmenter(folder: Path) -> Path:
    image = {"image_size": SIDE, "patch_size": 2}
    config = SamConfig(
        vision_config={
            **image, "hidden_size": 16, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_pos_feats": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 16, "initializer_range": 0.1,
        },
        prompt_encoder_config={**image, "hidden_size": 32, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 4, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    SamModel(config).save_pretrained(folder)
    pad = {"height": SIDE, "width": SIDE}
    SamProcessor(SamImageProcessorPil(size={"longest_edge": SIDE}, pad_size=pad)).save_pretrained(folder)
    return folder


def all_three(folder: Path, tokenizer: CLIPTokenizer) -> dict[str, str]:
    """The settings of :class:`mace_pl.images.segmentation.Segment` that name them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded(4))
        made = {
            "clipseg": clipseg(folder / "clipseg", tokenizer),
            "detector": detector(folder / "detector"),
            "segmenter": segmenter(folder / "segmenter"),
        }
    return {name: str(path) for name, path in made.items()}
