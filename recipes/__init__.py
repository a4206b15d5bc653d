"""How the bundled checkpoint is trained: its photos, and its run on a GPU."""
