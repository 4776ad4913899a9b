"""The same command as `seed-tf cache`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "cache"]
    from seed_tf.cli.main import main

    main()
