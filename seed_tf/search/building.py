"""Makes an index of a folder of images, or updates an index."""

from __future__ import annotations

import contextlib
import datetime
import glob
import os
import shutil
from collections.abc import Callable

import numpy as np

from seed_tf.datasets import CorruptFiles, pipeline
from seed_tf.datasets.sampler import Sampler
from seed_tf.datasets.sources import Source
from seed_tf.embeddings import l2_normalise
from seed_tf.evaluation.features import embedder
from seed_tf.images import image_size_of, shorter_side
from seed_tf.io.arrays import checksum, read_record, write_record
from seed_tf.io.files import (
    atomic_folder,
    atomic_write,
    check_space,
    differences,
)
from seed_tf.io.fingerprints import comparable, identity
from seed_tf.io.locks import folder_lock
from seed_tf.io.progress import Progress
from seed_tf.io.text import reason
from seed_tf.search import vectors
from seed_tf.search.image_files import ImageFiles
from seed_tf.search.index import FILES, Index
from seed_tf.teachers import absolute, load_encoder

SHARD = 2048  # images that a killed process loses, at most
_BLOCK = 16384  # rows to copy at a time
# Settings that the index and new images must share.
_SAME = ("fingerprint", "output", "image_size", "resize")


def build(
    path: str,
    images: str,
    encoder: str,
    *,
    image_size: int | None = None,
    output: str = "features",
    batch_size: int = 64,
    log: Callable[[str], object] = print,
) -> Index:
    """Embeds the images of a folder, and indexes the embeddings.

    An existing index is updated to the folder's present content: `build`
    embeds new and changed images (by path, size and time of modification) and
    drops missing images. It skips and lists damaged files; the next call tries
    them again.

    A killed process loses at most its last 2,048 images, and the same call
    continues. The old index stays until the new index is whole. Memory holds
    about 100 bytes per image.

    Args:
        path: folder of the index, made if missing, with

            - `embeddings.npy`, float32 `[N, D]`, L2-normalised;
            - `paths.txt`, N lines, the images' paths below `images`;
            - `index.faiss`, the index of faiss;
            - `keys.npy`, N digests to recognise files;
            - `index.json`: `encoder`, its `fingerprint`, `output`,
              `image_size`, `resize`, `images`, `count` (N), `dim` (D),
              `corrupt`, `search`, `created`, `checksums` of the other files,
              and a checksum of its own.
        images: folder; includes all image files in its subfolders.
        encoder: see `seed_tf.teachers.load_encoder`.
        image_size: positive int, S, side of the centre crops; by default the
            encoder's training size. Before the crop, images are resized to a
            shorter side of S * 256 / 224.
        output: "features" or "embeddings", see `seed_tf.evaluation.embed`.
            The paper evaluates features; embeddings are smaller.
        batch_size: positive int, images to embed at a time.
        log: function of one str, for progress.

    Raises:
        ValueError: if a folder, the encoder or every image is unreadable, the
            index has another encoder, output or size of images, or another
            process writes the index.
        OSError: if the index cannot be written.
    """
    vectors.import_faiss()
    if batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}."
        )
    images, path = (
        os.path.abspath(os.path.expanduser(x)) for x in (images, path)
    )
    if not os.path.isdir(images):
        raise ValueError(
            f"`images` must be an existing folder. Received: {images!r}."
        )
    with folder_lock(path):
        model = load_encoder(encoder)
        image_size = image_size_of(model, image_size)
        config = {
            "encoder": absolute(encoder),
            "fingerprint": identity(model),
            "output": output,
            "image_size": image_size,
            "resize": shorter_side(image_size),
        }
        return _Builder(path, config, log).run(model, images, batch_size)


class _Builder:
    """One call of `build`.

    Beside the index lie the folders `shards`, with embeddings by this and by
    killed calls, and `ready`, with a whole index to replace the old index.
    """

    def __init__(self, path, config, log):
        self._path, self._config, self._log = path, config, log
        self._shards, self._ready = self._file("shards"), self._file("ready")
        self._take_over()
        self._compare(self._file("index.json"))
        if not self._compare(os.path.join(self._shards, "config.json")):
            shutil.rmtree(self._shards, ignore_errors=True)

    def run(self, model, images, batch_size):
        embed = embedder(model, output=self._config["output"])
        size = self._config["image_size"]
        dim = embed(np.zeros([1, size, size, 3], np.uint8)).shape[1]
        listing = ImageFiles(images)
        self._log(listing.summary)
        corrupt = CorruptFiles(1.0)
        corrupt.size = len(listing.keys) + len(listing.refused)
        for name, problem in listing.refused.items():
            corrupt.add(name, problem)
        earlier, old_keys = self._earlier()
        here = np.zeros(len(listing.keys), bool)
        here[_found(listing.find(old_keys))] = True
        kept = here.sum()
        failed = self._read_unfinished(listing, here, corrupt)
        pending = np.flatnonzero(~(here | failed))
        # Shards, then the new index: embeddings, faiss's copy, paths.
        total = len(here)
        size = 4 * dim * (len(pending) + 2 * total) + 200 * total
        check_space(self._path, size)
        self._log(
            f"{len(here):,} images in {images}: {len(pending):,} to embed, "
            f"{kept:,} in the index, {here.sum() - kept:,} from an "
            "interrupted run."
        )
        self._embed(embed, listing, pending, batch_size, corrupt, here)
        if not here.any():
            name, why = next(iter(corrupt.files.items()))
            raise ValueError(
                f"All {len(here):,} images in {images!r} are damaged. "
                f"The first: {name} ({why})."
            )
        count = int(here.sum())
        now = datetime.datetime.now(datetime.UTC)
        summary = {
            **self._config,
            "images": images,
            "count": count,
            "dim": dim,
            "corrupt": dict(sorted(corrupt.files.items())),
            "search": vectors.method(count),
            "created": now.isoformat(timespec="seconds"),
        }
        if np.array_equal(listing.keys[here], old_keys):
            self._write(self._path, summary)
            shutil.rmtree(self._shards, ignore_errors=True)
        else:
            self._assemble(listing, here, earlier, old_keys, summary)
            self._take_over()
        self._log(
            f"{count:,} images in the index, {dim} numbers each: "
            f"{count - kept:,} new or changed, {len(old_keys) - kept:,} "
            "dropped."
        )
        return Index(self._path)

    def _file(self, name):
        return os.path.join(self._path, name)

    def _compare(self, file):
        """Returns whether there is an index of the same settings.

        Raises:
            ValueError: if the settings differ.
        """
        try:
            earlier = read_record(file, dict.fromkeys(_SAME[:2], str))
        except FileNotFoundError:
            return False
        except ValueError as error:
            self._log(f"{error}. Making a new index.")
            return False
        self._config["fingerprint"] = comparable(
            self._config["fingerprint"], earlier["fingerprint"]
        )
        there, here = (
            {key: config.get(key) for key in _SAME}
            for config in (earlier, self._config)
        )
        if different := differences(there, here):
            raise ValueError(
                f"{self._path!r} holds an index by "
                f"{earlier.get('encoder')!r}, which cannot take embeddings by "
                f"{self._config['encoder']!r}. "
                f"{'; '.join(different)}. Pass the same settings, choose "
                "another folder, or remove the old index."
            )
        return True

    def _earlier(self):
        """Returns embeddings and keys of the old index, or empty arrays."""
        if os.path.exists(self._file("index.json")):
            try:
                index = Index(self._path)
                return index.embeddings, index.keys
            except ValueError as error:
                self._log(f"{error} Making a new index.")
        return np.array([]), np.array([], "S16")

    def _read_unfinished(self, listing, here, corrupt):
        """Marks files in shards, and returns a mask `[N]` of damaged files."""
        failed = np.zeros(len(here), bool)
        for shard in self._read_shards():
            here[_found(listing.find(shard["keys"]))] = True
            numbers = listing.find(shard["bad"])
            for number, why in zip(numbers, shard["reasons"], strict=True):
                if number >= 0:
                    failed[number] = True
                    corrupt.add(listing.paths[number], str(why))
        return failed

    def _read_shards(self):
        """Yields shards; removes damaged shards, whose images are pending."""
        for file in sorted(glob.glob(os.path.join(self._shards, "*.npz"))):
            if file.endswith(".unfinished.npz"):
                continue
            try:
                with np.load(file) as shard:
                    shard = dict(shard)  # with the checksums of zip
                keys, bad = shard["keys"], shard["bad"]
                if (
                    len(shard["embeddings"]) != len(keys)
                    or len(shard["reasons"]) != len(bad)
                    or {keys.dtype, bad.dtype} != {np.dtype("S16")}
                ):
                    raise ValueError("its arrays do not belong together")
            except Exception as error:  # NumPy and zipfile raise any kind
                self._log(f"{file!r} is damaged ({reason(error)}). Removed.")
                os.remove(file)
                continue
            yield shard

    def _embed(self, embed, listing, pending, batch_size, corrupt, here):
        """Embeds pending files into shards, and marks the files in `here`."""
        if not len(pending):
            return
        os.makedirs(self._shards, exist_ok=True)
        write_record(os.path.join(self._shards, "config.json"), self._config)
        names = [
            int(os.path.basename(file)[:9])
            for file in glob.glob(os.path.join(self._shards, "?????????.npz"))
        ]
        shard = max(names, default=-1) + 1
        report = Progress(len(pending), "images", self._log)
        numbers, rows, first = [], [], 0
        for step, (batch, good) in enumerate(
            self._batches(listing, pending, batch_size, corrupt)
        ):
            if len(batch):
                rows.append(l2_normalise(embed(batch.numpy())))
                numbers.append(good.numpy())
            done = min((step + 1) * batch_size, len(pending))
            if done - first >= SHARD or done == len(pending):
                kept = np.concatenate([*numbers, np.array([], np.int64)])
                bad = np.setdiff1d(pending[first:done], kept)
                why = corrupt.files if len(bad) else {}
                reasons = [why[listing.paths[i]] for i in bad]
                file = os.path.join(self._shards, f"{shard:09d}.npz")
                with atomic_write(file) as unfinished:
                    np.savez(
                        unfinished,
                        keys=listing.keys[kept],
                        embeddings=np.concatenate(rows) if rows else [],
                        bad=listing.keys[bad],
                        reasons=np.array(reasons, str),
                    )
                here[kept] = True
                numbers, rows, first, shard = [], [], done, shard + 1
            report(done)

    def _batches(self, listing, pending, batch_size, corrupt):
        """Returns batches of squares and of their files' numbers."""
        source = _Pending(listing, pending)
        sampler = Sampler.once(source.size, batch_size)
        squares = pipeline.squares(
            self._config["image_size"], self._config["resize"]
        )
        return pipeline.decoded(source, sampler, squares, corrupt).prefetch(2)

    def _assemble(self, listing, here, earlier, old_keys, summary):
        """Writes the new index to `ready`, whole or not at all."""
        place = np.cumsum(here) - 1

        def sources():
            for start in range(0, len(old_keys), _BLOCK):
                block = slice(start, start + _BLOCK)
                yield old_keys[block], earlier[block]
            for shard in self._read_shards():
                yield shard["keys"], shard["embeddings"]

        with atomic_folder(self._ready) as folder:
            embeddings, paths, keys, index, _ = (
                os.path.join(folder, name) for name in FILES
            )
            rows = np.lib.format.open_memmap(
                embeddings, "w+", np.float32, (summary["count"], summary["dim"])
            )
            missing = here.copy()
            for source_keys, source_rows in sources():
                if not len(source_keys):  # every image of a shard was damaged
                    continue
                numbers = listing.find(source_keys)
                rows[place[_found(numbers)]] = source_rows[numbers >= 0]
                missing[_found(numbers)] = False
            if missing.any():
                raise ValueError(
                    f"A file in {self._shards!r} was damaged or removed "
                    "meanwhile. Repeat the call: it embeds what is missing."
                )
            rows.flush()
            with open(paths, "wb") as file:
                for number in np.flatnonzero(here):
                    file.write(listing.paths[number].encode() + b"\n")
            np.save(keys, listing.keys[here])
            vectors.write(rows, index, self._log)
            self._write(folder, summary)

    def _write(self, folder, summary):
        """Writes `index.json` beside the other files."""
        *files, config = FILES
        sums = {name: checksum(os.path.join(folder, name)) for name in files}
        write_record(
            os.path.join(folder, config), {**summary, "checksums": sums}
        )

    def _take_over(self):
        """Moves a whole index from `ready` to its place, also after a crash."""
        if not os.path.isdir(self._ready):
            return
        for name in FILES:
            with contextlib.suppress(FileNotFoundError):
                os.replace(os.path.join(self._ready, name), self._file(name))
        shutil.rmtree(self._shards, ignore_errors=True)
        os.rmdir(self._ready)


class _Pending(Source):
    """The listed files with the given numbers, which serve as labels."""

    def __init__(self, listing, numbers):
        self._listing, self._numbers = listing, numbers
        self.size = len(numbers)

    def fetch(self, place):
        path = os.path.join(self._listing.root, self.name(place))
        with open(path, "rb") as file:
            return file.read(), self._numbers[place]

    def name(self, place):
        return self._listing.paths[self._numbers[place]]

    def contents(self):
        return map(self.name, range(self.size))


def _found(numbers):
    return numbers[numbers >= 0]
