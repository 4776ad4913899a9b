"""Search for images by image: an index of a folder, and a page to look at it.

`build` embeds the images of a folder, `Index` finds neighbours among them,
`ImageSearch` finds those of any picture, and `make_server` shows all that in a
browser. Indexing and search are faiss's: the extra `search`.
"""

from seed_tf.search.building import build
from seed_tf.search.index import ImageSearch, Index
from seed_tf.search.server import make_server

__all__ = ["ImageSearch", "Index", "build", "make_server"]
