"""`python -m seed_tf <command>`."""

from seed_tf.cli.main import main

main()
