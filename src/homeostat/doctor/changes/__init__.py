"""Alterations of a training: tried as interventions by `examine`, kept as remedies by `repair`."""
