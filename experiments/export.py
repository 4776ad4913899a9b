"""The same command as `seed-tf export`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "export"]
    from seed_tf.cli.main import main

    main()
