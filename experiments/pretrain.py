"""The same command as `seed-tf pretrain`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "pretrain"]
    from seed_tf.cli.main import main

    main()
