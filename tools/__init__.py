"""Tools for this repository's developers. Nothing here is installed."""
