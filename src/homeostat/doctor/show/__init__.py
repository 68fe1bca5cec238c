"""How an examination and a repair are shown: page, terminal, files for other programs, pages of rules."""
