"""One spelling for what LaTeX and Unicode write in many ways. Typography only: nothing with a meaning is dropped.

After `clean`, relations and operators are single characters (≤ ≥ ≠ ∈ ∪ ± ∓ ≈ ∞), the braces of a set are ⦃ ⦄ so that
{ } always group, \\frac is the only fraction, \\text the only text macro, and there are no thousands separators.
"""

from __future__ import annotations

import re
import unicodedata

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/",
        "∕": "/", "π": r"\pi ", "√": r"\sqrt ", "°": r"^\circ ", "º": r"^\circ ", "∅": r"\emptyset ",
        "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ω": r"\omega ", "φ": r"\phi ",
        "∩": r"\cap ", "∖": r"\setminus ", "∠": r"\angle ", "△": r"\triangle ", "∑": r"\sum ", "∫": r"\int ",
        "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ",
        "τ": r"\tau ", "Δ": r"\Delta ", "Ω": r"\Omega ", "Γ": r"\Gamma ", "⌊": r"\lfloor ", "⌋": r"\rfloor ",
        "⌈": r"\lceil ", "⌉": r"\rceil ", "⩽": "≤", "⩾": "≥", "′": "'", "’": "'", "½": r"\frac{1}{2}",
        "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "€": " ", "£": " ",
        "¥": " ", "⦃": "?", "⦄": "?", "¤": "?", "⁄": "/", "≧": "≥", "≦": "≤", "∛": r"\sqrt[3]",
        "ℝ": r"\mathbb{R}", "⟨": "(", "⟩": ")", "〈": "(", "〉": ")", "¢": r"\text{ cents}", "\u200b": " ",
        "\u2061": "", "\ufeff": " ", "\u200e": " ", "\u200f": " ", "\ufe0f": " ", "⅛": r"\frac{1}{8}",
        "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}", "⅙": r"\frac{1}{6}",
        "⅚": r"\frac{5}{6}", "⅕": r"\frac{1}{5}", "⅖": r"\frac{2}{5}", "⅗": r"\frac{3}{5}",
        "⅘": r"\frac{4}{5}",
    }
)  # fmt: skip
# Before NFKC, which would turn x² into x2.
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_SUPER_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_SUB_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")

_MACROS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac", r"\nicefrac", r"\sfrac"), r"\frac"),
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **dict.fromkeys(
        (r"\mathrm", r"\textbf", r"\textit", r"\textrm", r"\texttt", r"\textsf", r"\mbox", r"\hbox", r"\operatorname",
         r"\textnormal", r"\emph"),
        r"\text",
    ),
    **dict.fromkeys(
        (r"\!", r"\displaystyle", r"\textstyle", r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl",
         r"\Bigr", r"\left", r"\right", r"\limits", r"\(", r"\)", r"\[", r"\]", r"\bf", r"\mathbf", r"\mathit",
         r"\mathsf", r"\boldsymbol", r"\bm", r"\mathnormal", r"\underline",
         r"\Large", r"\large", r"\LARGE", r"\huge", r"\Huge"),
        " ",
    ),
    **dict.fromkeys((r"\,", r"\;", r"\:", r"\>", r"\ ", r"\quad", r"\qquad", r"\hspace", r"\thinspace"), " "),
    **dict.fromkeys((r"\cdot", r"\times", r"\ast"), "*"),
    **dict.fromkeys((r"\le", r"\leq", r"\leqslant"), "≤"),
    **dict.fromkeys((r"\ge", r"\geq", r"\geqslant"), "≥"),
    **dict.fromkeys((r"\ne", r"\neq"), "≠"),
    **dict.fromkeys((r"\lvert", r"\rvert", r"\vert", r"\mid"), "|"),
    r"\$": "¤", r"\rm": r"\text", r"\notin": "∉", r"\bigcup": "∪", r"\langle": "(", r"\rangle": ")",
    r"\Bbb": r"\mathbb",
    r"\div": "/", r"\lt": "<", r"\gt": ">", r"\in": "∈", r"\cup": "∪", r"\pm": "±", r"\mp": "∓", r"\approx": "≈",
    r"\infty": "∞", r"\%": "%", r"\{": "⦃", r"\}": "⦄", r"\lbrace": "⦃", r"\rbrace": "⦄", r"\degree": r"^\circ ",
    r"\varnothing": r"\emptyset ", r"\varphi": r"\phi ", r"\varepsilon": r"\epsilon ", r"\#": "#", r"\&": "&",
    r"\ldots": "…", r"\dots": "…", r"\cdots": "…", r"\to": "→", r"\implies": "→", r"\Rightarrow": "→",
    r"\colon": ":", r"\prime": "'", r"\land": ",", r"\lor": ",", r"\wedge": ",", r"\vee": ",",
}  # fmt: skip
_MACRO = re.compile(r"\\(?:left|right)\s*\.|\\q?quad|\\[A-Za-z]+|\\.", re.DOTALL)
_GROUPED = re.compile(  # 1{,}234, 1\\,234: nothing but a separator of thousands
    r"(?<![\d.,_^])[1-9]\d{0,2}(?:(?:(?:\{ ?, ?\}(?:\\!)?|\\[,;!: ]|~)\s*\d{3}|,\\!\s*\d{2,3}))+(?!\d)"
)
_SPACED = re.compile(r"(?<![\d.,_^])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?!\d| ?/| \d)")
_TEXT_NUMBER = re.compile(r"\\text ?\{ ?([-+]?[\d.,]*\d ?(?:\\?%)?) ?\}")
_NOT_DIGITS = re.compile(r"\D+")
_ROW_GAP = re.compile(r"(?<=\\\\) ?\[ ?-?[\d.]+ ?(?:pt|mm|cm|em|ex) ?\]")  # \\\\[4pt]
_SKIP = re.compile(
    r"\\(?:text)?color ?\{[^{}]*\}|\\checkmark(?![A-Za-z])|\\[hv]space\*? ?\{[^{}]*\}|\\(?:label|tag) ?\{[^{}]*\}"
)
# After the macros have their one spelling.
_REWRITES = [
    (re.compile(r"\\not ?(?:=|\\eq)"), "≠"),
    (re.compile(r"\\not ?∈"), "∉"),
    (re.compile(r"(?<=\d) ?[xX] ?(?=10 ?\^)"), "*"),  # 3.2 x 10^5
    (re.compile(r"\{ ?:? ?: ?\}|\\text ?\{ ?: ?\}"), ":"),
    (re.compile(r"(?<=\d) ?(?:\\text ?\{ ?to ?\}|(?<= )to(?= )) ?(?=\d)"), ":"),  # 3 to 4
    (re.compile(r"(?<=\d) ?: ?(?=\d)"), ":"),
    (re.compile(r"per ?cent\b"), "percent"),
    (re.compile(r"\\frac ?\{ ?d ?([^{}^]{1,12}(?:\{[^{}]{1,6}\})?) ?\} ?\{ ?d ?[a-z] ?\}"), r"\\dot{\1}"),  # dx/dt
    (
        re.compile(
            r"\\frac ?\{ ?d ?\^ ?\{? ?2 ?\}? ?([^{}^]{1,12}(?:\{[^{}]{1,6}\})?) ?\} ?\{ ?d ?t ?\^ ?\{? ?2 ?\}? ?\}"
        ),
        r"\\ddot{\1}",
    ),
    (re.compile(r"\\(d?dot) ?([A-Za-z]|\\[a-z]+)(?![A-Za-z])"), r"\\\1{\2}"),
    (re.compile(r"(?<=\d)(?:st|nd|rd|th)(?![A-Za-z])|(?<=\d) ?\^ ?\{? ?\\text ?\{ ?(?:st|nd|rd|th) ?\} ?\}?"), ""),
    (re.compile(r"\\text ?\{ ?(%|∞|\^ ?\\circ|\^ ?\{ ?\\circ ?\}) ?\}"), r"\1"),
    (re.compile(r"(?<![A-Za-z\\])C ?\( ?([^(),]{1,20}), ?([^(),]{1,20})\)"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?:\{ ?\} ?)?[_^] ?\{? ?(\w{1,6}) ?\}? ?C ?_ ?\{? ?(\w{1,6}) ?\}?"), r"\\binom{\1}{\2}"),
]
_COMMA_THOUSANDS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
_EUROPEAN = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,|\{,\})\d+(?![\d,])|(?<![\d.,])\d{1,3}(?:\.\d{3})+(?![\d,.])"
)
_DOUBLED = re.compile(r"\\\\(?=[A-Za-z]{2})")  # \\\\frac, from JSON that was escaped twice
_INFINITY = re.compile(r"(?<![\\A-Za-z])(?:infty|infinity|inf|oo)(?![A-Za-z])")
_SPACE = re.compile(r"\s+")
_OPENING, _CLOSING = frozenset("([⦃"), frozenset(")]⦄")


def clean(text: str, decimal_comma: bool = False) -> str:
    """The answer in one spelling; white space is a single blank. decimal_comma: 1.234,5 is 1234.5."""
    if decimal_comma:
        text = _EUROPEAN.sub(lambda m: m.group().replace(".", "").replace("{,}", ",").replace(",", "."), text)
    if not text.isascii():
        text = _SUPER_RUN.sub(lambda m: "^{" + m.group().translate(_SUPER) + "}", text)
        text = _SUB_RUN.sub(lambda m: "_{" + m.group().translate(_SUB) + "}", text)
        text = unicodedata.normalize("NFKC", text.translate(_UNICODE))
    text = text.replace("\f", r"\f").replace("\b", r"\b")  # \frac and \binom, from JSON that was not escaped
    if r"\\" in text:
        text = text.replace(r"\\", "\\") if r"\\begin" in text else _unescaped(text)
    if text.startswith("**") and text.endswith("**"):
        text = text[2:-2]
    text = text.replace("**", "^")
    text = _SKIP.sub(" ", _ROW_GAP.sub("", text))
    text = _GROUPED.sub(_digits, text)
    text = _SPACED.sub(_digits, text)
    text = _MACRO.sub(_macro, text.rstrip("\\ ")).replace("$", " ").replace("~", " ").replace("`", " ")
    text = _TEXT_NUMBER.sub(r" \1 ", text).replace("<=", "≤").replace(">=", "≥").replace("!=", "≠")
    text = _INFINITY.sub("∞", text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if "," in text:
        text = _COMMA_THOUSANDS.sub(lambda m: _thousands(m, text), text)
    text = _SPACE.sub(" ", text).strip()
    return text[:-1].rstrip() if text.endswith(".") else text


def _unescaped(text: str) -> str:
    """Outside an environment, where they part rows, two backslashes before a word are one."""
    return text if r"\begin" in text else _DOUBLED.sub(r"\\", text)


def _digits(match: re.Match[str]) -> str:
    return _NOT_DIGITS.sub("", match.group())


def _macro(match: re.Match[str]) -> str:
    name = match.group()
    return " " if name.endswith(".") else _MACROS.get(name, name)


def _thousands(match: re.Match[str], text: str) -> str:
    """1,234 is a number, but (1,234) is a pair."""
    before = text[: match.start()]
    depth = sum(c in _OPENING for c in before) - sum(c in _CLOSING for c in before)
    return match.group() if depth > 0 else match.group().replace(",", "")
