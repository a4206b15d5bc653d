"""Small things that every floor uses: optional imports, whole files, and how tensors are computed."""
