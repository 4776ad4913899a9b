"""Searches a folder of images by image.

    seed-tf search index --data_dir=photos --encoder=runs/student \\
        --index=photos.index
    seed-tf search query --index=photos.index --image=holiday.jpg \\
        --output=neighbours.png
    seed-tf search serve --index=photos.index

You can stop `index` at any time. Repeat `index` when the folder has changed.
`serve` serves a page to browsers of this machine. See docs/search.md.
"""

from __future__ import annotations

import dataclasses

import seed_tf
from seed_tf.cli.flags import Call, Command, repeated
from seed_tf.config import setting

ENCODER = "A .keras file, run folder or published checkpoint."
MOVED = f"{ENCODER} Needed only if it has moved since the index was made."


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndexSettings:
    data_dir: str = setting(
        None,
        "Folder of images, with any other files.",
        required=True,
        path="read",
    )
    encoder: str = setting(None, ENCODER, required=True, path="read")
    index: str = setting(
        None, "Folder of the index.", required=True, path="written"
    )
    output_layer: str = setting(
        "features",
        "'features', before the projection head, as the paper evaluates; or "
        "the smaller 'embeddings', after the head.",
        choices=("features", "embeddings"),
    )
    image_size: int | None = setting(
        None,
        "Pixels of centre crops; by default the encoder's training size.",
        minimum=1,
    )
    batch_size: int = setting(64, "Images run at a time.", minimum=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuerySettings:
    index: str = setting(
        None, "Folder of the index.", required=True, path="read"
    )
    image: tuple[str, ...] = repeated(
        (), "A picture.", required=True, path="read"
    )
    encoder: str | None = setting(None, MOVED, path="read")
    k: int = setting(10, "Neighbours.", minimum=1)
    output: str | None = setting(
        None, "A PNG to draw neighbours to.", path="written"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeSettings:
    index: str = setting(
        None, "Folder of the index.", required=True, path="read"
    )
    encoder: str | None = setting(None, MOVED, path="read")
    port: int = setting(
        8000, "Port of the page, 0 for any.", minimum=0, maximum=65535
    )


def index(call: Call[IndexSettings]) -> None:
    settings = call.settings
    found = seed_tf.search.build(
        settings.index,
        settings.data_dir,
        settings.encoder,
        image_size=settings.image_size,
        output=settings.output_layer,
        batch_size=settings.batch_size,
    )
    corrupt = found.config["corrupt"]
    if corrupt:
        print(f"{len(corrupt):,} files cannot be read and were left out:")
    for name, reason in list(corrupt.items())[:20]:
        print(f"  {name}: {reason}")
    if len(corrupt) > 20:
        print(f"  and more, see {settings.index}/index.json")


def query(call: Call[QuerySettings]) -> None:
    from seed_tf.reporting import tables
    from seed_tf.search.drawing import draw

    settings = call.settings
    pictures = []
    for name in settings.image:
        with open(name, "rb") as file:
            pictures.append(file.read())
    images = seed_tf.search.ImageSearch(
        seed_tf.search.Index(settings.index), settings.encoder
    )
    results = []
    for name, picture in zip(settings.image, pictures, strict=True):
        try:
            results.append(images.search(picture, settings.k))
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        rows = [
            {
                "rank": str(rank),
                "similarity": f"{similarity:.4f}",
                "path": images.index.paths[row],
            }
            for rank, (similarity, row) in enumerate(
                zip(*results[-1], strict=True), 1
            )
        ]
        print(f"\n{name}\n")
        print(tables.table(rows, list(rows[0])))
    if settings.output:
        draw(settings.image, results, images.index).savefig(settings.output)
        print(f"\nDrawn in {settings.output}")


def serve(call: Call[ServeSettings]) -> None:
    settings = call.settings
    found = seed_tf.search.Index(settings.index)
    server = seed_tf.search.make_server(
        lambda: seed_tf.search.ImageSearch(found, settings.encoder),
        settings.port,
    )
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nStopped.")
    finally:
        server.server_close()


COMMAND = {
    "index": Command(IndexSettings, index, resumable=True),
    "query": Command(QuerySettings, query),
    "serve": Command(ServeSettings, serve),
}
