"""Vitals in anybody's loop, at a cost that is kept, and what they give away by themselves."""
