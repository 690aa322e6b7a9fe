"""The whole chain once, on a small embedded default, with a report.

Not here: any stage's own work; this package only calls them in order, as a user would.
"""
