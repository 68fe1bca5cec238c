"""What people see of a study: the page and its figures, the terminal, CSV files. Nothing is computed here."""
