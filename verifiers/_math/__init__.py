"""The rooms of the math verifier, in the order in which an answer walks through them.

extract (completion -> answer text), clean (one spelling), read (answer text -> typed value, by way of cut, words,
brackets, relations, scalars, units, grammar, names, literals and tree), compare and quantities (value against value,
as conventions say), evaluate (formulas at points: exact, else numeric), echo (is it the question's own formula).
"""
