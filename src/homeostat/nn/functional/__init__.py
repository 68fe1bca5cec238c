"""torch.nn.functional's dropout and normalization on homeostat's kernels, with the same signatures."""
