"""Backbones, projection heads, and encoders.

Every layer with weights is named after its PyTorch module: the parts of the
module's path, joined by underscores, without the underscore that a part may
start with. So `layer1.0.conv1` becomes `layer1_0_conv1`, and `_blocks.0._bn1`
becomes `blocks_0_bn1`, since a scope of a TensorFlow graph must not start with
an underscore. The layers of a projection head are `fc_0`, `fc_1`, ...
"""

from seed_tf.encoders.backbones import backbone
from seed_tf.encoders.encoder import Encoder

__all__ = ["Encoder", "backbone"]
