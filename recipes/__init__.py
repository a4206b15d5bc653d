"""The next round of the bundled checkpoint: its photos, and its run on a GPU."""
