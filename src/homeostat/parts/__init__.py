"""The parts: every technique that homeostat studies, each one usable alone in anybody's PyTorch loop.

Here a part is a function over tensors, parameters or a whole model: initialization (`init`), normalization (`norm`),
activation (`activation`), dropout (`dropout`), penalties and weight decay (`penalty`), gradient clipping (`clip`),
early stopping (`stopping`), augmentation (`augment`, `mixing`), corruption (`corrupt`), statistics and test-time
adaptation (`population`, `adapt`), ensembles (`ensemble`), folding (`fold`). `layers` and `dataflow` find out what a
model does by running it, `surgery` and `use` change what somebody else wrote. A part never knows that it is studied.
"""
