"""What a loss function does, found by calling it: as a black box, on outputs and targets of the doctor's making."""
