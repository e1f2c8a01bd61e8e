"""One verifier per file: verify(problem, completion, **options) -> Verdict, EXAMPLES, and perhaps check(problem).

Found by name in this folder; nothing is registered. A name with a leading underscore is a helper, not a verifier.
"""
