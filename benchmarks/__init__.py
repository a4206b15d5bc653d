"""How fast lightglue_hf is, beside other implementations of LightGlue: `python -m benchmarks`."""
