"""The same command as `seed-tf report`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "report"]
    from seed_tf.cli.main import main

    main()
