"""Search for images by image: an index of a folder, and a page in a browser.

`build` embeds the images of a folder. `Index` finds the neighbours of an
embedding, `ImageSearch` the neighbours of a picture. `make_server` shows both
in a browser. faiss indexes and searches; install it with the extra `search`.
"""

from seed_tf.search.building import build
from seed_tf.search.index import ImageSearch, Index
from seed_tf.search.server import make_server

__all__ = ["ImageSearch", "Index", "build", "make_server"]
