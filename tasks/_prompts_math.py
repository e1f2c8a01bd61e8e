"""The published ways of putting a mathematical problem to a model, word for word.

tests/test_math_tasks.py holds a hash of each: words that a result was published with never change under a name.
"""

from __future__ import annotations

from collections.abc import Sequence

from grpo_math.forms import Form


def _shots(template: str, examples: Sequence[tuple[str, str]]) -> str:
    """Worked examples, and then the problem, which the model is to go on from."""
    shown = [template.replace("{question}", question) + answer for question, answer in examples]
    return "\n\n".join([*shown, template])


INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

BOXED = Form(
    "{question}\n" + INSTRUCTION,
    source="DeepSeekMath, Shao et al. 2024, arXiv:2402.03300; what the user says in Qwen2-Math's qwen-boxed",
)

QWEN25_MATH_COT = Form(
    "{question}",
    system=INSTRUCTION,
    source="Qwen2.5-Math, Yang et al. 2024, arXiv:2409.12122; qwen25-math-cot in github.com/QwenLM/Qwen2.5-Math",
)

SIMPLE_EVALS = Form(
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$ANSWER (without quotes) where $ANSWER is the answer to the problem.\n\n{question}\n\n"
    'Remember to put your answer on its own line after "Answer:", and you do not need to use a \\boxed command.',
    source="OpenAI's simple-evals, math_eval.py in github.com/openai/simple-evals",
)

COT_8SHOT_EXAMPLES = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        " There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have "
        "been 21 - 15 = 6. The answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        " There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. The answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        " Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39. The answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        " Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. "
        "The answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        " Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
        "The answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        " There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29. The answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        " Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, "
        "he had 35 - 2 = 33 golf balls. The answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        " Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8. The answer is 8.",
    ),
)

COT_8SHOT = Form(
    _shots("Q: {question}\nA:", COT_8SHOT_EXAMPLES),
    chat=False,
    stop=("Q:", "</s>", "<|im_end|>"),
    source="Wei et al. 2022, arXiv:2201.11903, table 20; stops of gsm8k_cot in lm-evaluation-harness",
)

# The stray brace behind the first problem, double spaces and missing line breaks are in the published words.
MINERVA_4SHOT_EXAMPLES = (
    (
        r"Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.}",
        r"""
The expressions inside each square root must be non-negative. """
        r"Therefore, $x-2 \ge 0$, so $x\ge2$, and $5 - x \ge 0$, so $x \le 5$. "
        r"Also, the denominator cannot be equal to zero, so $5-x>0$, which gives $x<5$. "
        r"""Therefore, the domain of the expression is $\boxed{[2,5)}$.
Final Answer: The final answer is $[2,5)$. I hope it is correct.""",
    ),
    (
        r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find $\det (\mathbf{A} \mathbf{B}).$",
        r"""
We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = (2)(12) = \boxed{24}.$
Final Answer: The final answer is $24$. I hope it is correct.""",
    ),
    (
        "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights instead, how many times "
        "must Terrell lift them in order to lift the same total weight?",
        r"""
If Terrell lifts two 20-pound weights 12 times, he lifts a total of $2\cdot 12\cdot20=480$ pounds of weight.  """
        r"If he lifts two 15-pound weights instead for $n$ times, he will lift a total of $2\cdot15\cdot n=30n$ pounds "
        r"""of weight.  Equating this to 480 pounds, we can solve for $n$:
\begin{align*}
30n&=480\\
\Rightarrow\qquad n&=480/30=\boxed{16}
\end{align*}
Final Answer: The final answer is $16$. I hope it is correct.""",
    ),
    (
        r"""If the system of equations

\begin{align*}
6x-4y&=a,\\
6y-9x &=b.
\end{align*}has a solution $(x, y)$ where $x$ and $y$ are both nonzero,
find $\frac{a}{b},$ assuming $b$ is nonzero.""",
        r"""
If we multiply the first equation by $-\frac{3}{2}$, we obtain

$$6y-9x=-\frac{3}{2}a.$$Since we also know that $6y-9x=b$, we have

$$-\frac{3}{2}a=b\Rightarrow\frac{a}{b}=\boxed{-\frac{2}{3}}.$$
Final Answer: The final answer is $-\frac{2}{3}$. I hope it is correct.""",
    ),
)

MINERVA_4SHOT = Form(
    _shots("Problem:\n{question}\n\nSolution:", MINERVA_4SHOT_EXAMPLES),
    chat=False,
    stop=("Problem:",),
    source="Minerva, Lewkowycz et al. 2022, arXiv:2206.14858, appendix D; stop of minerva_math in "
    "lm-evaluation-harness",
)

# For tasks of competition problems; the first is the default.
MATH_PROMPTS = {
    "boxed@1": BOXED,
    "qwen25-math-cot@1": QWEN25_MATH_COT,
    "simple-evals@1": SIMPLE_EVALS,
    "minerva-4shot@1": MINERVA_4SHOT,
}

GSM8K_PROMPTS = {
    "boxed@1": BOXED,
    "qwen25-math-cot@1": QWEN25_MATH_COT,
    "cot-8shot@1": COT_8SHOT,
}
