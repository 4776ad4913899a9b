"""The same command as `seed-tf search`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "search"]
    from seed_tf.cli.main import main

    main()
