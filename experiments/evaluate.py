"""The same command as `seed-tf evaluate`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "evaluate"]
    from seed_tf.cli.main import main

    main()
