"""Engines that sample completions. engine.py has the protocol; each other file is one implementation."""
