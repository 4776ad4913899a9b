"""The same command as `seed-tf advise`."""

import sys

if __name__ == "__main__":
    sys.argv[:1] = ["seed-tf", "advise"]
    from seed_tf.cli.main import main

    main()
