"""Examples to learn from, out of files.

raw.py, chat.py, columns.py, complaints.py, read.py: text. example.py, tokens.py, stream.py: tokens.

Left out: how samples become examples (filtering/), and the training itself (recipes/).
"""
