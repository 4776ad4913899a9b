"""Tiny random models in Hugging Face's format, and what PyTorch computes."""

import json
import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("keras_hub")

torch.set_num_threads(1)
HALF = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]
ODD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]  # no default of any library

_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
    "image_size": 28,
}
_MLP = {"intermediate_size": 48}
_TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_TOWERS = {"vision_config": _SIZES | _MLP, "text_config": _TEXT}
_DINOV2 = {**_SIZES, "mlp_ratio": 2}
# Model, configuration, and its arguments.
MODELS = {
    "dinov2": ("Dinov2Model", "Dinov2Config", _DINOV2),
    "dinov2_with_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**_DINOV2, "num_register_tokens": 3},
    ),
    "dinov3": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {**_SIZES, **_MLP, "num_register_tokens": 4},
    ),
    "vit": ("ViTModel", "ViTConfig", {**_SIZES, **_MLP}),
    "vit_classifier": (
        "ViTForImageClassification",
        "ViTConfig",
        {**_SIZES, **_MLP},
    ),
    "clip": ("CLIPModel", "CLIPConfig", _TOWERS),
    "clip_vision": (
        "CLIPVisionModel",
        "CLIPVisionConfig",
        {**_SIZES, **_MLP, "hidden_act": "gelu"},  # as OpenCLIP's
    ),
    "metaclip_2": ("MetaClip2Model", "MetaClip2Config", _TOWERS),
    "siglip": ("SiglipModel", "SiglipConfig", _TOWERS),
}
_POOLED = ("clip", "metaclip", "siglip")  # and not the first of the tokens


def write(name, folder, *, normalisation=ODD, license="apache-2.0"):
    """Writes a model of `MODELS`; returns its folder and the model."""
    model, config, settings = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**settings)
    model = getattr(transformers, model)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms, too
            parameter += 0.1 * torch.randn_like(parameter)
    folder = pathlib.Path(folder) / name
    model.save_pretrained(folder)
    mean, std = normalisation
    processor = {
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "image_mean": mean,
        "image_std": std,
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    card = f"---\nlicense: {license}\ntags:\n- vision\n---\n# A model\n"
    (folder / "README.md").write_text(card)
    return str(folder), model


def vector(name, model, images, normalisation=ODD):
    """The class token or pooled output `[B, D]` that PyTorch gives.

    Args:
        name: key of `MODELS`.
        model: of `write`.
        images: uint8 `[B, H, W, 3]`.
        normalisation: as of `write`.
    """
    mean, std = (np.float32(x) for x in normalisation)
    pixels = (np.float32(images) / 255 - mean) / std
    pixels = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
    model = getattr(model, "vision_model", getattr(model, "vit", model))
    with torch.no_grad():
        output = model(pixel_values=pixels)
    if name.startswith(_POOLED):
        return output.pooler_output.numpy()
    return output.last_hidden_state[:, 0].numpy()
