"""The words that grammar.py knows: functions, letters with names, accents, and notations it refuses to judge."""

from __future__ import annotations

FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "arcsin", "arccos", "arctan",
    "asin", "acos", "atan", "ln", "exp", "log", "lg", "sqrt", "abs", "arcsinh", "arccosh", "arctanh", "arsinh",
    "arcosh", "artanh", "asinh", "acosh", "atanh", "coth", "sech", "csch", "arccot", "arcsec", "arccsc", "acot", "asec",
    "acsc", "floor", "ceil", "ceiling",
}  # fmt: skip
SAME_FUNCTION = {
    **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
    "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh", "ceiling": "ceil",
}  # fmt: skip
INVERTIBLE = {"sin", "cos", "tan", "sinh", "cosh", "tanh"}
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
    "rho", "sigma", "tau", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi",
    "Omega", "Pi", "ell", "hbar", "nabla", "partial", "odot", "angle", "triangle", "mho", "aleph", "Xi", "Upsilon",
}  # fmt: skip
GREEK_WORDS = GREEK - {"eta", "mu", "nu", "xi", "ell", "chi", "rho", "tau"}  # which may be products of letters
ACCENTS = {
    "dot", "ddot", "hat", "bar", "vec", "tilde", "overline", "underline", "mathbb", "overrightarrow",
}  # fmt: skip
# Mathematics that an answer may rightly hold and that is not read: no verdict, rather than a wrong one.
UNSUPPORTED = {
    "int", "iint", "iiint", "oint", "lim", "sup", "inf", "max", "min", "gcd", "lcm", "det", "dim", "ker", "deg", "arg",
    "limsup", "liminf", "begin", "forall", "exists", "subset", "subseteq", "setminus", "cap", "cong", "equiv", "sim",
    "pmod", "bmod", "mod", "perp", "parallel", "neg", "lnot", "circ", "otimes", "oplus", "dagger", "notin", "propto",
    "mapsto", "bigcup", "bigcap", "stackrel", "overset", "underset", "underbrace", "overbrace", "xrightarrow",
    "Re", "Im", "langle", "rangle", "Vert", "lVert", "rVert", "substack",
    "sgn", "star",
}  # fmt: skip
