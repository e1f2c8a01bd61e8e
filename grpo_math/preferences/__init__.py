"""Losses on preferences: pairs of a chosen and a rejected completion, or single completions with a label.

table.py is the list of them, and where to start reading.
"""
