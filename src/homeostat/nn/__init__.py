"""Layers with torch.nn's names and arguments on homeostat's kernels: changing the import is all it takes."""
