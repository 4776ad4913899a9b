"""The commands, to be run from a checkout: python -m experiments.distill."""
