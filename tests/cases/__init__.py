"""All tiny models, by name; what each group of families adds stands in a file of its own."""

from tests.cases import dual, late_interaction, text, towers, vision, vlm
from tests.cases.case import Case

CASES: dict[str, Case] = {
    case.name: case for module in (towers, dual, text, vision, vlm, late_interaction) for case in module.CASES
}
