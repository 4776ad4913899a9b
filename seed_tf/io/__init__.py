"""Files, locks, fingerprints, progress and units."""
