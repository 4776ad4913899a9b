"""Backbones, projection heads, and the encoder that they make.

Every layer with weights is named after the PyTorch module it mirrors: drop
the underscore that starts a part of the module's path, and join the parts by
underscores. `layer1.0.conv1` is `layer1_0_conv1`, and `_blocks.0._bn1` is
`blocks_0_bn1` (a name that starts with an underscore is no valid scope of a
TensorFlow graph). The layers of a projection head are `fc_0`, `fc_1`, ...
"""

from seed_tf.encoders.backbones import backbone
from seed_tf.encoders.encoder import Encoder

__all__ = ["Encoder", "backbone"]
