"""Searches a folder of images by image.

    python -m experiments.search index --images=photos \\
        --encoder=runs/student --index=photos.index
    python -m experiments.search query --index=photos.index \\
        --image=holiday.jpg --output=neighbours.png
    python -m experiments.search serve --index=photos.index

`index` may be stopped at any time, and given again when the folder has
changed. `serve` opens a page for the browsers of this machine. See
docs/search.md.
"""

from absl import flags

from seed_tf import search
from seed_tf.reporting import tables
from seed_tf.search.drawing import draw

FLAGS = flags.FLAGS
flags.DEFINE_string("index", None, "Folder of the index.")
flags.DEFINE_string("images", None, "For index: folder of images, any files.")
flags.DEFINE_string(
    "encoder",
    None,
    "A .keras file, run folder or published checkpoint. For query and serve "
    "only if it has moved since.",
)
flags.DEFINE_enum(
    "output_layer",
    "features",
    ["features", "embeddings"],
    "For index: 'features', before the projection head, which the paper "
    "evaluates; or 'embeddings', after it, which are smaller.",
)
flags.DEFINE_integer("image_size", 224, "For index: pixels of centre crops.", 1)
flags.DEFINE_integer("batch_size", 64, "For index: images run at a time.", 1)
flags.DEFINE_multi_string(
    "image", None, "For query: a picture; repeat it for several."
)
flags.DEFINE_integer("k", 10, "For query: neighbours.", 1)
flags.DEFINE_string("output", None, "For query: a PNG to draw neighbours to.")
flags.DEFINE_integer("port", 8000, "For serve; 0 for any.", 0, 65535)


def index():
    found = search.build(
        FLAGS.index,
        FLAGS.images,
        FLAGS.encoder,
        image_size=FLAGS.image_size,
        output=FLAGS.output_layer,
        batch_size=FLAGS.batch_size,
    )
    corrupt = found.config["corrupt"]
    if corrupt:
        print(f"{len(corrupt):,} files cannot be read and were left out:")
    for name, reason in list(corrupt.items())[:20]:
        print(f"  {name}: {reason}")
    if len(corrupt) > 20:
        print(f"  and more, see {FLAGS.index}/index.json")


def query():
    pictures = []
    for name in FLAGS.image:
        with open(name, "rb") as file:
            pictures.append(file.read())
    images = search.ImageSearch(search.Index(FLAGS.index), FLAGS.encoder)
    results = []
    for name, picture in zip(FLAGS.image, pictures, strict=True):
        try:
            results.append(images.search(picture, FLAGS.k))
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
    if FLAGS.output:
        draw(FLAGS.image, results, images.index).savefig(FLAGS.output)
        print(f"\nDrawn in {FLAGS.output}")


def serve():
    found = search.Index(FLAGS.index)
    server = search.make_server(
        lambda: search.ImageSearch(found, FLAGS.encoder), FLAGS.port
    )
    print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("\nStopped.")
    finally:
        server.server_close()


# What each command needs.
COMMANDS = {
    index: ("images", "encoder", "index"),
    query: ("index", "image"),
    serve: ("index",),
}


def main(arguments):
    for command, needed in COMMANDS.items():
        if arguments[1:] != [command.__name__]:
            continue
        missing = [f"--{name}" for name in needed if not FLAGS[name].value]
        if missing:
            raise ValueError(
                f"{command.__name__} needs {', '.join(missing)}. Try --help."
            )
        return command()
    raise ValueError(
        "Expected one of index, query, serve. "
        f"Received: {' '.join(arguments[1:]) or 'nothing'}. Try --help."
    )
