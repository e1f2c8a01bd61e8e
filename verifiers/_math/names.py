"""The words that grammar.py knows: functions, letters with names, accents, notations it refuses to judge;
and the words that units.py and words.py know."""

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
# Words that turn an answer round: none of them is a product of variables.
DENIALS = {
    "not",
    "non",
    "but",
    "nope",
    "wrong",
    "false",
    "never",
    "incorrect",
    "none",
    "except",
    "nor",
    "neither",
    "without",
}
# With one of these behind it a number is another answer, or no answer.
NOT_UNITS = {
    "untrue", "void", "invalid", "mistaken", "nothing", "factorials", "myriad", "nil", "nay", "ish", "negated",
    "inverted",
    "and", "or", "not", "no", "nor", "none", "is", "isn", "are", "aren", "was", "wasn", "if", "than", "then",
    "minus", "plus", "negative", "positive", "times", "but", "except", "maybe", "wrong", "right", "correct",
    "incorrect", "false", "true", "unknown", "unless", "error", "otherwise", "instead", "neither", "either",
    "versus", "vs", "without", "excluding", "never", "cannot", "can", "could", "may", "might", "should", "would",
    "approximately", "about", "least", "most", "more", "less", "fewer", "to", "over", "under", "above", "below",
    "divided", "mod", "modulo", "factorial", "squared", "cubed", "doubled", "tripled", "halved", "double", "triple",
    "twice", "thrice", "half", "halves", "third", "thirds", "fourth", "fourths", "fifth", "fifths", "sixth",
    "sixths", "seventh", "sevenths", "eighth", "eighths", "ninth", "ninths", "tenth", "tenths", "twentieth",
    "twentieths", "hundredth", "hundredths", "thousandth", "thousandths", "millionth", "millionths", "score",
    "gross", "choose", "off", "short", "too", "small", "large", "big", "point", "points", "fails", "fail", "base",
    "reciprocal", "opposite", "inverse", "conjugate", "nand", "xor", "nope", "rejected", "reject", "th", "st", "nd",
    "rd", "root", "roots", "bar", "prime", "percentile", "between", "from", "until", "till", "one", "two", "three",
    "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen",
    "sixteen", "seventeen", "eighteen", "nineteen", "twenty", "thirty", "forty", "fifty", "sixty", "seventy",
    "eighty", "ninety", "zero", "infinity", "by", "with", "where", "for", "all", "answer",
}  # fmt: skip
