"""The parts: every technique that homeostat studies, each one usable alone in anybody's PyTorch loop.

Here a part is a function over tensors, parameters or a whole model: initialization (`init`), normalization (`norm`),
activation (`activation`), dropout (`dropout`), penalties and weight decay (`penalty`), gradient clipping (`clip`),
early stopping (`stopping`), augmentation (`augment`). `layers` finds a model's layers by running it, `surgery` puts
parts into a model that somebody else wrote. A part never knows that it is being studied.
"""
