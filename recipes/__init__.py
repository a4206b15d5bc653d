"""The photos of the bundled checkpoint, and its next round on a GPU."""
