"""Goldens of scoring rules: verify/goldens/benchmark.json.

    git clone https://github.com/open-compass/VLMEvalKit
    python tools/golden_benchmark.py VLMEvalKit

VLMEvalKit's own functions decide: `can_infer` (which option an answer means), `YOrN_Extraction` (yes or no), and
`process_answer` (whether a short answer equals the right one). Their files are run alone, without the package's other
parts, which need a GPU's worth of libraries. Answers are drawn from a seed out of the ways in which models answer.
"""

import copy
import json
import logging
import os
import random
import re
import string
import subprocess
import sys
from pathlib import Path

OUT = Path(__file__).resolve().parent.parent / "verify" / "goldens" / "benchmark.json"


def functions(path, names, beside):
    """The top-level functions and constants of a file, from `def` or assignment to the next line that is not indented."""
    text = path.read_text()
    space = dict(beside)
    for name in names:
        found = re.search(rf"^(def {name}\(|{name} = ).*?(?=^\S(?!\)))", text + "\nend", re.M | re.S)
        exec(found.group(0), space)
    return space


def rules(root):
    misc = functions(root / "vlmeval/smp/misc.py", ["process_punctuation"], {})
    beside = {"process_punctuation": misc["process_punctuation"]}
    matching = {"re": re, "os": os, "string": string, "cp": copy, "logger": logging}
    names = ["_VERBOSE_ANSWER_RE", "can_infer_option", "can_infer_text", "can_infer"]
    matching = functions(root / "vlmeval/utils/matching_util.py", names, matching)
    yes_no = functions(root / "vlmeval/dataset/utils/yorn.py", ["YOrN_Extraction"], beside)
    names = ["_process_digit_article", "process_answer"]
    short = functions(root / "vlmeval/dataset/utils/vqa_eval.py", names, beside)
    return matching["can_infer"], yes_no["YOrN_Extraction"], short["process_answer"]


OPTIONS = [
    {"A": "a cat", "B": "a dog", "C": "a red fox", "D": "an owl"},
    {"A": "red", "B": "blue", "C": "green"},
    {"A": "2", "B": "3", "C": "12", "D": "none of them"},
    {"A": "yes", "B": "no"},
    {"A": "Paris, France", "B": "A", "C": "Rome (Italy)", "D": "Paris", "E": "Oslo"},
]

CHOICES = [
    "{L}", "{L}.", "({L})", "{L}: {t}", "{L}. {t}", "Answer: {L}", "The answer is {L}", "the answer is {l}", "**{L}**",
    "The correct answer is **{L}**. Here is why: it is seen on the left of the picture, beside {u}", "{t}", "It is {t}.",
    "It is {t} and not {u}.", "{T}", "A {t} is what I see in the lower corner of it", "I think {L} or {M}", "{L}, {M}",
    "Sorry, I can't help with images of people yet.", "Cannot determine the answer, perhaps {t}", "Z", "", "option {L} it is",
    "{L} because there is something that looks like it in the picture", "I choose {L}\n", "\\boxed{{{L}}}", "[{L}]", "{L};{t}",
    "It shows what could well be {t}, although the picture is so dark that nothing about it can be said for certain by anyone",
    "The answer is {L}. {M} is wrong, because of what the picture shows us there", "#{L}", "{l}", "{t}!", "A picture of {t}",
]

YES_NO = [
    "Yes", "no.", "Yes, it is", "No, there is no cat", "yes and no", "maybe", "", "**Yes**", "It is; yes", "not at all", "yes!",
    "(no)", "Answer: yes", "yes:", "noon", "Yes/No", "the answer is no\n", "yesterday", "No - it is not", "yes-man", "NO,YES",
    "I see no reason to say yes", "1.no", "no.5", "'yes'", "\"No\"", "yes_", "is it? yes?",
]

SHORT = [
    "three", "3", "3.", "the owl", "An owl", "owl.", "a", "the", "red-brown", "red brown", "red - brown", "1,000", "1000", "3.5",
    "3,5", "50%", "50", "$5", "5", "10:30", "10.30", "it's", "its", "don't", "dont", "can't", "cant", "we'll", "well", "two dogs",
    "2 dogs", "dogs, cats", "dogs cats", "dogs,cats", "dogs/cats", "none", "zero", "0", "Yes", "yes!", "(left)", "left",
    "left;right", "left; right", "U.S.A.", "USA", "usa", "no one", "no 1", "what's", "whats", "\"red\"", "red", "Red", "red\n",
    "re d", "ten", "10", "tenth", "a_b", "a b", "St. John", "St John", "isn't", "isnt", "1, 2", "1 2", "y'all", "yall", "",
]


def main():
    root = Path(sys.argv[1])
    infer, yes_no, short = rules(root)
    draw = random.Random(20261128)
    choices = []
    for options in OPTIONS:
        for form in CHOICES:
            one, other = draw.sample(sorted(options), 2)
            words = {
                "L": one, "l": one.lower(), "M": other, "t": options[one], "T": options[one].upper(), "u": options[other],
            }
            answer = form.format(**words)
            found = infer(answer, dict(options))
            choices.append([list(options.items()), answer, found if found in options else None])
    yes_no = [[answer, {"Yes": True, "No": False}.get(yes_no(answer))] for answer in YES_NO]
    equal = [[given, wanted, short(given) == short(wanted)] for given in SHORT for wanted in SHORT]
    same = [[given, wanted] for given, wanted, same in equal if same and given < wanted]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    OUT.write_text(
        json.dumps(
            {
                "made_by": "tools/golden_benchmark.py",
                "vlmevalkit": commit.stdout.strip() or "unknown",
                "choices": choices,
                "yes_no": yes_no,
                "short": {"answers": SHORT, "equal": same},
            },
            ensure_ascii=False,
            indent=1,
        )
        + "\n"
    )
    print(f"{OUT.name}: {len(choices)} choices, {len(yes_no)} yes or no, {len(SHORT)} short answers, {len(same)} pairs equal")


main()
