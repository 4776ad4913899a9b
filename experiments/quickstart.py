"""The same command as `seed-tf quickstart`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "quickstart"]
    from seed_tf.cli.main import main

    main()
