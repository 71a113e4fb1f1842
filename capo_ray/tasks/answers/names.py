"""Words that mean something in an answer: functions, Greek letters, and numbers as they are said.

Leaves out units (units) and how words are found (tokens).
"""

# fmt: off
FUNCTIONS = [
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln",
    "lg", "exp", "sqrt", "floor", "ceil", "abs", "arccot", "arcsec", "arccsc", "coth",
]
ALIASES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "cosec": "csc",
    "tg": "tan", "ctg": "cot", "ceiling": "ceil",
}
"""Other names of functions."""
GREEK = [
    "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu",
    "xi", "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi",
    "Pi", "Sigma", "Upsilon", "Phi", "Psi", "Omega", "ell", "hbar",
]
NUMBER_WORDS = {
    name: value
    for value, name in enumerate((
        "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
        "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
    ))
}
# fmt: on
