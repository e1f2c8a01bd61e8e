"""The rooms of the math verifier, in the order in which an answer walks through them.

extract (completion -> answer text), clean (one spelling), read (answer text -> typed value, by way of cut, scalars,
units, grammar, literals and tree), compare (value against value), evaluate (formulas at points: exact, else numeric).
"""
