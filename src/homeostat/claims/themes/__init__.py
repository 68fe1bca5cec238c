"""The claims, one file per theme."""
