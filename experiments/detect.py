"""The same command as `seed-tf detect`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "detect"]
    from seed_tf.cli.main import main

    main()
