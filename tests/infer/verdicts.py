"""What works where: the verdict on every cell of the matrix, and the table of it in the documentation."""

import itertools

ROLES = ("latent", "observed")
CONTEXTS = ("plate", "expand", "to_event", "mask", "scan", "enumeration", "subsample")
ENGINES = ("NUTS", "BlackJAXKernel", "SVI")

EXACT = "exact"
SAMPLER = "exact, needs `sampler=`"
REFUSED = "refused"

# The same for every support: real, positive, simplex, circular.
VERDICTS = dict.fromkeys(itertools.product(ROLES, CONTEXTS, ENGINES), EXACT)
VERDICTS |= {(role, "subsample", engine): REFUSED for role in ROLES for engine in ("NUTS", "BlackJAXKernel")}
VERDICTS |= {("latent", context, "SVI"): SAMPLER for context in ("scan", "enumeration")}


def table():
    """The verdicts as a table in Markdown."""
    lines = [f"| energy | context | {' | '.join(f'`{engine}`' for engine in ENGINES)} |", "|---" * 5 + "|"]
    for role, context in itertools.product(ROLES, CONTEXTS):
        cells = " | ".join(VERDICTS[role, context, engine] for engine in ENGINES)
        lines.append(f"| {role} | {context} | {cells} |")
    return "\n".join(lines)
