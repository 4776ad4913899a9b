"""Launchers: flags in, library calls, files out."""
