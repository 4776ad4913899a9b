"""The same command as `seed-tf convert`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "convert"]
    from seed_tf.cli.main import main

    main()
