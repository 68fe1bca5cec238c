"""What reports have in common, whatever they report: the page and its look, drawings in it, and text on a terminal.

A page stands alone: it loads nothing, runs no script, and its content security policy says so. Nothing is random.
"""
