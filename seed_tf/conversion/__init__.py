"""Checkpoints explained, and converted from one format to another."""
