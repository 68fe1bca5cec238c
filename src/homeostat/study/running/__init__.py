"""Trials run on this machine: workers started and supervised, limits kept, progress shown."""
