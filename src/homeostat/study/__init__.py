"""Studies: factorial experiments on any callable, run by supervised processes, analyzed and reported.

`homeostat.study.study.Study` is the way in. Nothing is imported here, so that each worker loads only what it needs.
"""
