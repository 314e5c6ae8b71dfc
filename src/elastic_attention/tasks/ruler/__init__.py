"""RULER: thirteen generated long-context tasks at any length, written from the public description of the benchmark."""
