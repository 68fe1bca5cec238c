"""The sharpness of the loss, and what the optimizer stands of it."""
