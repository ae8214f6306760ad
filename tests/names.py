#!/usr/bin/env python3
"""How often a story of model.bin keeps its cast: a made-up story names two characters at most, so a third name is a slip.

    python3 tests/names.py [STORIES]        run from the top folder, after make
"""
import re
import subprocess
import sys

NAMES = """Lily Mia Anna Emma Lucy Nina Zoe Ruby Tom Ben Max Sam Leo Tim Finn Jack
           Hazel Poppy Coco Dot Pip Bruno Rusty Benny""".split()
count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
kept = 0
for seed in range(count):
    story = subprocess.run(["./run", "model.bin", "-i", "Once upon a time", "--echo", "-n", "0", "-s", str(seed)],
                           capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    kept += sum(bool(re.search(rf"\b{name}\b", story)) for name in NAMES) <= 2
print(f"{kept} of {count} stories keep their names")
