"""What a network is and does: its structure, one batch through it and back, one step of its optimizer."""
