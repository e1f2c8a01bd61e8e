"""The steps of a completion: where they end, at which token, how right they are, and files that say so.

split.py, places.py: where. values.py: Monte-Carlo values. example.py, formats.py, read.py: files. label.py and
what is beside it: the command that makes such files.
"""
