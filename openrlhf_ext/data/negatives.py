"""Wrong answers made from right ones by rules: pairs for DPO that need no second model.

A rule changes an answer or says that it cannot; what it changes depends on the seed, the row and nothing else. The
word lists are small and medical: a rule that finds none of its words in a text leaves the row alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Literal, get_args

from openrlhf_ext.data.tables import load_rows, require_columns
from openrlhf_ext.data.tokens import text_of
from openrlhf_ext.errors import DataError
from openrlhf_ext.types import derive_seed

RuleName = Literal["entity_swap", "negation", "fabricated_finding"]
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)

# Words of one kind stand for each other, so all are singular.
KINDS: Mapping[str, tuple[str, ...]] = {
    "drug": (
        "aspirin", "ibuprofen", "paracetamol", "morphine", "metformin", "insulin", "warfarin", "heparin", "amiodarone",
        "digoxin", "furosemide", "lisinopril", "metoprolol", "atorvastatin", "prednisone", "methotrexate",
        "amoxicillin", "vancomycin", "ceftriaxone", "ciprofloxacin", "doxycycline", "fluconazole", "acyclovir",
        "levothyroxine", "omeprazole", "lithium", "haloperidol", "fluoxetine", "diazepam", "phenytoin", "tamoxifen",
        "cisplatin", "oxytocin", "epinephrine",
    ),
    "organism": (
        "Escherichia coli", "Staphylococcus aureus", "Streptococcus pneumoniae", "Pseudomonas aeruginosa",
        "Klebsiella pneumoniae", "Helicobacter pylori", "Listeria monocytogenes", "Neisseria meningitidis",
        "Candida albicans", "Mycobacterium tuberculosis", "Clostridioides difficile", "Legionella pneumophila",
    ),
    "condition": (
        "pneumonia", "asthma", "sepsis", "meningitis", "hepatitis", "pancreatitis", "appendicitis", "diabetes",
        "hypertension", "hypotension", "anemia", "obesity", "depression", "schizophrenia", "dementia", "epilepsy",
        "osteoporosis", "psoriasis", "lupus", "tuberculosis", "malaria", "hypothyroidism", "hyperthyroidism",
        "endometriosis", "glaucoma", "migraine", "cirrhosis", "sarcoidosis",
    ),
    "organ": (
        "heart", "liver", "kidney", "lung", "brain", "stomach", "pancreas", "spleen", "bladder", "prostate", "thyroid",
        "colon", "uterus", "esophagus",
    ),
    "adjective": ("cardiac", "renal", "hepatic", "pulmonary", "gastric", "cerebral", "pancreatic", "splenic"),
    "procedure": (
        "ultrasound", "biopsy", "chemotherapy", "radiotherapy", "laparoscopy", "colonoscopy", "bronchoscopy",
        "dialysis", "transplantation", "immunotherapy",
    ),
}  # fmt: skip
KIND_OF = {word.lower(): kind for kind, words in KINDS.items() for word in words}
ENTITY = re.compile(r"\b(" + "|".join(sorted(map(re.escape, KIND_OF), key=len, reverse=True)) + r")\b", re.IGNORECASE)

UNITS = r"mcg|µg|mg|kg|g|ml|mL|dl|dL|L|IU|units?|mmol|mEq|mmHg"
DOSE = re.compile(rf"(?<![\d.,])(\d+(?:\.\d+)?)(?=[ -]?(?:{UNITS})\b)")
FACTORS = tuple(map(Decimal, ("0.1", "0.5", "2", "5", "10")))

AUXILIARIES = "is|are|was|were|does|do|did|has|have|had|can|could|should|may|might|must|will|would"
# Each with what it becomes: the negation is taken away.
AFFIRM: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), becomes)
    for pattern, becomes in (
        (rf"\b({AUXILIARIES}) not(?! only\b)(?= [a-z])", r"\1"),
        (r"\b(is|are|was|were|does|do|did|has|have|had|could|should|would)n't\b", r"\1"),
        (r"\b(can)not\b", r"\1"),
        (r"\b(with)out\b", r"\1"),
        (r"\bno (evidence)\b", r"clear \1"),
        (r"\bno ((?:significant|clinical|statistical|major|relevant) \w+s)\b", r"\1"),
        (r"\bno (significant|clear|major|relevant|difference|correlation|relationship|benefit)\b(?! \w+s\b)", r"a \1"),
        (r"\bno (association|effect|improvement|increase|influence|impact|advantage)\b", r"an \1"),
    )
)
DENY = re.compile(r"\b(is|are|was|were|could|should|may|might|must|will|would|can)(?= [a-z])(?! (?:not|no)\b)")

FINDINGS = (
    "A follow-up of {n} patients confirmed this with a relative risk of {risk} (p = 0.00{digit}).",
    "The same was seen in {percent}% of the cases in a registry of {n} patients.",
    "Biopsy additionally showed infiltration of the {organ} in {percent}% of the specimens.",
    "Cultures grew {organism} in {percent}% of the samples.",
    "Adding {drug} at {dose} mg daily doubled the effect.",
    "Imaging revealed an incidental mass of {small} cm in the {organ}.",
    "A genome-wide study of {n} people traced this to a single variant on chromosome {small}.",
    "Serum levels of {drug} predicted the outcome with a sensitivity of {percent}%.",
    "Patients with {condition} were affected {small} times as often.",
)
LEAST_WORDS = 5  # a shorter answer (a letter, a number, yes) has no place for a finding
SENTENCE_END = re.compile(r"(?<=[a-z0-9)%][.!?])(?=\s|$)")


@dataclass(frozen=True, slots=True)
class NegativeSettings:
    """`one_per_row`: of the rules that can change an answer, one drawn at random; else each gives a row."""

    dataset: str
    split: str = "train"
    prompt_key: str = "prompt"
    chosen_key: str = "chosen"
    rules: tuple[RuleName, ...] = RULE_NAMES
    one_per_row: bool = False
    max_samples: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MadeNegatives:
    """Rows of `prompt`, `chosen`, `rejected` and `rule`. `counts`: rows read, `unchanged` (no rule could change
    the answer), and for each rule the rows that it made."""

    rows: list[dict[str, Any]]
    counts: Mapping[str, int]


def make_negatives(settings: NegativeSettings) -> MadeNegatives:
    """Raises DataError for rows that cannot be read or have no text to change, and if no rule could change any."""
    assert settings.rules and set(settings.rules) <= RULES.keys()
    rows = load_rows(settings.dataset, split=settings.split, max_samples=settings.max_samples)
    require_columns(rows, {settings.prompt_key: "--prompt-key", settings.chosen_key: "--chosen-key"})
    counts: Counter[str] = Counter({"rows": len(rows), "unchanged": 0} | dict.fromkeys(settings.rules, 0))
    made = []
    for row in rows:
        answer = text_of(row, settings.chosen_key)
        wrong = {}
        for name in settings.rules:
            text = RULES[name](answer, Random(derive_seed(settings.seed, name, row.source, row.index)))
            if text is not None and text != answer:
                wrong[name] = text
        if wrong and settings.one_per_row:
            name = Random(derive_seed(settings.seed, "rule", row.source, row.index)).choice(sorted(wrong))
            wrong = {name: wrong[name]}
        counts["unchanged"] += not wrong
        for name, text in wrong.items():
            counts[name] += 1
            made.append({"prompt": row[settings.prompt_key], "chosen": answer, "rejected": text, "rule": name})
    if not made:
        raise DataError(
            f"no rule of {', '.join(settings.rules)} could change any of the {len(rows)} answers of "
            f"{settings.dataset}: name the column of the right answers with --chosen-key, or use other rules."
        )
    return MadeNegatives(made, dict(counts))


def entity_swap(text: str, random: Random) -> str | None:
    """Another drug, organism, condition, organ or procedure, everywhere in the text, and one dose another one."""
    found = sorted({match[0].lower() for match in ENTITY.finditer(text)})
    if found:
        old = random.choice(found)
        new = random.choice([word for word in KINDS[KIND_OF[old]] if word.lower() not in found])
        text = _replaced(text, old, new)
    doses = list(DOSE.finditer(text))
    if doses:
        dose = random.choice(doses)
        changed = (Decimal(dose[1]) * random.choice(FACTORS)).normalize()
        text = f"{text[: dose.start()]}{changed:f}{text[dose.end() :]}"
    return text if found or doses else None


def negation(text: str, random: Random) -> str | None:
    """One negation taken away, or, where there is none, one put in."""
    sites = [(match, becomes) for pattern, becomes in AFFIRM for match in pattern.finditer(text)]
    if not sites:
        sites = [(match, r"\1not" if match[0] == "can" else r"\1 not") for match in DENY.finditer(text)]
    if not sites:
        return None
    match, becomes = random.choice(sites)
    changed = match.expand(becomes)
    if match[0][0].isupper():
        changed = changed[0].upper() + changed[1:]
    return f"{text[: match.start()]}{changed}{text[match.end() :]}"


def fabricated_finding(text: str, random: Random) -> str | None:
    """A sentence with a finding that nobody made, after one of the text's own."""
    ends = [match.start() for match in SENTENCE_END.finditer(text)]
    if not ends or len(text.split()) < LEAST_WORDS:
        return None
    words = {
        kind: random.choice([w for w in KINDS[kind] if w.lower() not in text.lower()] or KINDS[kind]) for kind in KINDS
    }
    finding = random.choice(FINDINGS).format(
        **words,
        n=random.randrange(120, 9000),
        risk=f"{random.uniform(1.5, 6):.1f}",
        digit=random.randrange(1, 10),
        percent=random.randrange(21, 97),
        dose=random.choice((5, 20, 40, 75, 250)),
        small=random.randrange(2, 10),
    )
    end = random.choice(ends)
    return f"{text[:end]} {finding}{text[end:]}"


Rule = Callable[[str, Random], str | None]
RULES: Mapping[RuleName, Rule] = {
    "entity_swap": entity_swap,
    "negation": negation,
    "fabricated_finding": fabricated_finding,
}


def _replaced(text: str, old: str, new: str) -> str:
    """`new` for `old`, with its capital and the article before it."""

    def one(match: re.Match[str]) -> str:
        article, space, word = match[1] or "", match[2] or "", match[3]
        if article:
            article = article[0] + ("n" if new[0].lower() in "aeiou" else "")
        if word[0].isupper():
            return article + space + new[0].upper() + new[1:]
        return article + space + new

    return re.sub(rf"\b(?:(an?)(\s+))?({re.escape(old)})\b", one, text, flags=re.IGNORECASE)
