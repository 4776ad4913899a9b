"""The same command as `seed-tf distill`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "distill"]
    from seed_tf.cli.main import main

    main()
