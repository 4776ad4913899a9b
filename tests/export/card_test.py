"""The commands of the model card and of the documentation."""

import base64
import json
import os
import pathlib
import re
import subprocess

import numpy as np
from absl.testing import absltest, parameterized

from seed_tf.export import card

ROOT = pathlib.Path(__file__).resolve().parents[2]


class CommandsTest(parameterized.TestCase):
    @parameterized.parameters(
        (card._USE.format(name="student"), "image.jpg"),
        ((ROOT / "docs/serving.md").read_text(), "photo.jpg"),
    )
    def test_curl_sends_a_photo_of_5_megabytes(self, text, name):
        (command,) = re.findall(r"```sh\n([^`]*curl[^`]*)```", text)
        folder = pathlib.Path(self.create_tempdir().full_path)
        photo = np.random.default_rng(0).bytes(5_000_000)
        (folder / name).write_bytes(photo)
        curl = folder / "curl"
        curl.write_text('#!/bin/sh\necho "$@" >arguments\ncat >body\n')
        curl.chmod(0o755)
        path = f"{folder}:{os.environ['PATH']}"
        subprocess.run(
            ["bash", "-ec", command],
            cwd=folder,
            env=os.environ | {"PATH": path},
            check=True,
        )
        sent = json.loads((folder / "body").read_text())
        self.assertEqual(sent.pop("signature_name"), "serve_bytes")
        ((name, encoded),) = sent["instances"][0].items()
        self.assertEqual(name, "b64")
        self.assertEqual(base64.b64decode(encoded), photo)
        arguments = (folder / "arguments").read_text()
        self.assertIn("-d @-", arguments)
        self.assertIn("/v1/models/student:predict", arguments)


if __name__ == "__main__":
    absltest.main()
