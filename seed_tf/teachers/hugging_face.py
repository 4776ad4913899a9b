"""Vision towers in Hugging Face's format that KerasHub does not convert.

KerasHub has the layers of CLIP and SigLIP, but converts their presets only,
and a ViT only with its classifier. These functions read a local folder of
`config.json` and safetensors.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from seed_tf.io.extras import extra
from seed_tf.io.files import read_json

_ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_approximate"}


def has_tower(config: dict[str, Any]) -> bool:
    """Whether `tower` reads a model with this config.json."""
    return config.get("model_type") in _TOWERS


def tower(
    folder: str, config: dict[str, Any], weights: bool = True
) -> keras.Model:
    """Builds the vision tower of a folder.

    Args:
        folder: local folder in Hugging Face's format.
        config: content of its config.json.
        weights: whether to load the weights, or to leave them random.

    Returns:
        A backbone of KerasHub: SigLIPVisionEncoder, CLIPVisionEncoder (for
        MetaCLIP 2 as well) or ViTBackbone.

    Raises:
        ValueError: if a weight is missing or has another shape.
    """
    build, port = _TOWERS[config["model_type"]]
    network = build(config.get("vision_config", config))
    if weights:
        port(network, _Weights(folder))
    return network


class _Weights:
    """The tensors of a folder, by names without the prefix of the tower."""

    def __init__(self, folder: str):
        with extra("keras-hub", "Folders in Hugging Face's format"):
            import safetensors
        index = os.path.join(folder, "model.safetensors.index.json")
        files = {"model.safetensors"}
        if os.path.isfile(index):
            files = set(read_json(index)["weight_map"].values())
        self._folder, self._files = folder, {}
        for file in sorted(files):
            path = os.path.join(folder, os.path.basename(file))
            if not os.path.isfile(path):
                raise ValueError(f"Expected the file {path!r}, and found none.")
            opened = safetensors.safe_open(path, framework="numpy")
            for key in opened.keys():  # noqa: SIM118  a file, not a dict
                name = key.removeprefix("vision_model.").removeprefix("vit.")
                self._files[name] = opened, key

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._files:
            raise ValueError(f"{self._folder!r} has no weight {name!r}.")
        file, key = self._files[name]
        return file.get_tensor(key)

    def assign(self, layer: keras.layers.Layer, name: str) -> None:
        """Sets the weights of a layer from those of a module of PyTorch."""
        if isinstance(layer, keras.layers.LayerNormalization):
            layer.gamma.assign(self[f"{name}.weight"])
            layer.beta.assign(self[f"{name}.bias"])
        elif isinstance(layer, keras.layers.Embedding):
            layer.embeddings.assign(self[f"{name}.weight"])
        else:  # Conv2D [out, in, h, w], Dense [out, in]
            axes = (2, 3, 1, 0) if len(layer.kernel.shape) == 4 else (1, 0)
            layer.kernel.assign(self[f"{name}.weight"].transpose(axes))
            if layer.bias is not None:
                layer.bias.assign(self[f"{name}.bias"])

    def assign_attention(
        self, layer: keras.layers.MultiHeadAttention, names: Sequence[str]
    ) -> None:
        """Sets attention from PyTorch's query, key, value and output."""
        for dense, name in zip(_denses(layer), names, strict=True):
            bias = None if dense.bias is None else self[f"{name}.bias"]
            _set(dense, self[f"{name}.weight"], bias)


def _denses(attention):
    parts = ("query_dense", "key_dense", "value_dense", "output_dense")
    return [getattr(attention, part) for part in parts]


def _set(dense, matrix, bias):
    """Sets a dense layer of attention from PyTorch's `[out, in]`."""
    dense.kernel.assign(matrix.T.reshape(dense.kernel.shape))
    if bias is not None:
        dense.bias.assign(bias.reshape(dense.bias.shape))


def _sizes(config):
    size = config.get("image_size", 224)
    return {
        "patch_size": config["patch_size"],
        "hidden_dim": config["hidden_size"],
        "num_layers": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "image_shape": (size, size, 3),
    }


def _two_towers(name, config):
    """Builds the vision encoder of CLIP or SigLIP."""
    import keras_hub

    activation = config["hidden_act"]
    return getattr(keras_hub.models, name)(
        **_sizes(config),
        intermediate_dim=config["intermediate_size"],
        intermediate_activation=_ACTIVATIONS.get(activation, activation),
    )


def _port_blocks(blocks, weights, norms, attention, mlp):
    """Sets the blocks of CLIP or SigLIP, whose layers have these names."""
    for i, block in enumerate(blocks):
        prefix = f"encoder.layers.{i}"
        for n, norm in enumerate(norms, 1):
            weights.assign(getattr(block, norm), f"{prefix}.layer_norm{n}")
        parts = ("q_proj", "k_proj", "v_proj", "out_proj")
        weights.assign_attention(
            getattr(block, attention),
            [f"{prefix}.self_attn.{x}" for x in parts],
        )
        for n, dense in enumerate(mlp(block), 1):
            weights.assign(dense, f"{prefix}.mlp.fc{n}")


def _port_embedding(layer, weights):
    weights.assign(layer.patch_embedding, "embeddings.patch_embedding")
    weights.assign(layer.position_embedding, "embeddings.position_embedding")
    positions = np.arange(layer.position_ids.shape[1])
    layer.position_ids.assign(positions[None])


def _port_clip(network, weights):
    layer = network.embedding
    _port_embedding(layer, weights)
    layer.class_embedding.assign(weights["embeddings.class_embedding"])
    weights.assign(network.pre_layer_norm, "pre_layrnorm")  # sic
    _port_blocks(
        network.encoder_layers,
        weights,
        ("layer_norm_1", "layer_norm_2"),
        "attention",
        lambda block: (block.dense_1, block.dense_2),
    )
    weights.assign(network.layer_norm, "post_layernorm")


def _port_siglip(network, weights):
    _port_embedding(network.embedding, weights)
    _port_blocks(
        network.encoder_layers,
        weights,
        ("layer_norm1", "layer_norm2"),
        "self_attn",
        lambda block: (block.mlp.fc1, block.mlp.fc2),
    )
    weights.assign(network.post_layer_norm, "post_layernorm")
    head = network.head
    head.probe.assign(weights["head.probe"])
    name = "head.attention"
    matrices = np.split(weights[f"{name}.in_proj_weight"], 3)
    biases = np.split(weights[f"{name}.in_proj_bias"], 3)
    matrices.append(weights[f"{name}.out_proj.weight"])
    biases.append(weights[f"{name}.out_proj.bias"])
    for each in zip(_denses(head.attention), matrices, biases, strict=True):
        _set(*each)
    weights.assign(head.layer_norm, "head.layernorm")
    weights.assign(head.mlp.fc1, "head.mlp.fc1")
    weights.assign(head.mlp.fc2, "head.mlp.fc2")


def _vit(config):
    import keras_hub

    if config["hidden_act"] != "gelu":
        raise ValueError(
            "KerasHub's ViT has the activation gelu. Received: "
            f"hidden_act={config['hidden_act']!r}."
        )
    return keras_hub.models.ViTBackbone(
        **_sizes(config),
        mlp_dim=config["intermediate_size"],
        layer_norm_epsilon=config["layer_norm_eps"],
        use_mha_bias=config["qkv_bias"],
    )


def _port_vit(network, weights):
    embedding, encoder = network.layers[1:]
    name = "embeddings.patch_embeddings.projection"
    weights.assign(embedding.patch_embedding, name)
    embedding.class_token.assign(weights["embeddings.cls_token"])
    embedding.position_embedding.embeddings.assign(
        weights["embeddings.position_embeddings"][0]
    )
    for i, block in enumerate(encoder.encoder_layers):
        prefix = f"encoder.layer.{i}"
        weights.assign(block.layer_norm_1, f"{prefix}.layernorm_before")
        weights.assign(block.layer_norm_2, f"{prefix}.layernorm_after")
        parts = ("attention.query", "attention.key", "attention.value")
        weights.assign_attention(
            block.mha,
            [f"{prefix}.attention.{x}" for x in (*parts, "output.dense")],
        )
        weights.assign(block.mlp.dense_1, f"{prefix}.intermediate.dense")
        weights.assign(block.mlp.dense_2, f"{prefix}.output.dense")
    weights.assign(encoder.layer_norm, "layernorm")


_CLIP = functools.partial(_two_towers, "CLIPVisionEncoder"), _port_clip
_SIGLIP = functools.partial(_two_towers, "SigLIPVisionEncoder"), _port_siglip
_TOWERS: dict[str, tuple[Callable, Callable]] = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "metaclip_2": _CLIP,
    "metaclip_2_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "vit": (_vit, _port_vit),
}
