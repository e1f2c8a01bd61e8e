"""A language model as judge: question.py, template.py, labels.py, verdict.py, cache.py, ledger.py, server.py, local.py;
`grpo-math label` and `grpo-math revise`: samples.py, label.py, constitution.py, revise.py, command.py.

Left out: the verifier (verifiers/judge.py), and training on what is judged (recipes/).
"""
