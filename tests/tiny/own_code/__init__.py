"""Code that a checkpoint may bring along: copied into a tiny model's folder, and run from there only."""
