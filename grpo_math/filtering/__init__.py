"""Verified samples -> data to learn from: read.py, settings.py, rules.py, choose.py, pairs.py, write.py, command.py.

Left out: sampling and verifying (evaluation/, recipes/), and the training itself (recipes/).
"""
