#!/usr/bin/env python3
"""Write the Unicode tables of run.c, section 11, as C string literals.

    pip install tokenizers==0.23.3
    python3 tests/make_unicode.py       the enum and the three strings, to be pasted over those in run.c

Token ids have to equal those of HuggingFace tokenizers, so the facts are asked of that library, one code point
at a time: its regex engine for the categories of characters (release 0.23 answers as Unicode 16.0), its NFC
for what it composes and reorders (as Unicode 9.0: marks added later stay where they are). Python's unicodedata only
says which question to ask: the canonical decompositions and combining classes, which never change once assigned.

A table is a stream of numbers in printable characters. '#' to '>' are digits in base 28 with more to follow; '@' to
'[' and ']' to '~' are the last digit, in base 62. The characters '"', '\\' and '?' (trigraphs) stay out.
"""
import sys
import unicodedata

from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
HANGUL = range(0xAC00, 0xAC00 + 11172)      # composed by arithmetic, not by table
WIDTH = 112                                 # characters of table per source line
LAST_DIGIT = [chr(c) for c in range(0x40, 0x7F) if c != 0x5C]


def number(v: int) -> str:
    """One number of the stream."""
    assert v >= 0
    out = LAST_DIGIT[v % 62]
    v //= 62
    while v:
        out = chr(0x23 + v % 28) + out
        v //= 28
    return out


def zigzag(v: int) -> int:
    return 2 * v if v >= 0 else -2 * v - 1


def matching(regex: str) -> set[int]:
    """The code points that the reference regex engine matches."""
    found: set[int] = set()
    split = pre_tokenizers.Split(Regex(regex), "removed", invert=True)
    for i in range(0, len(CODE_POINTS), 4096):
        for text, _ in split.pre_tokenize_str("".join(map(chr, CODE_POINTS[i:i + 4096]))):
            found.update(map(ord, text))
    return found


def nfc_facts() -> tuple[dict[int, int], dict[int, tuple[int, int, int]]]:
    """Combining classes, and decompositions c -> (kind, a, b), as the reference NFC has them.
    kind 0: c is written a;  1: a b composes to c;  2: c is written a b, which does not compose."""
    nfc = normalizers.NFC().normalize_str
    ccc: dict[int, int] = {}
    for c in CODE_POINTS:
        own = unicodedata.combining(chr(c))
        if own:     # a mark of another class before or after it must change places with it
            low, high = sorted([chr(c), "\u0301" if own == 1 else "\u0334"], key=unicodedata.combining)
            wrong = "\u0378" + high + low   # an unassigned base, so that nothing composes
            if nfc(wrong) != wrong:
                ccc[c] = own
    parts: dict[int, tuple[int, int, int]] = {}
    for c in CODE_POINTS:
        d = unicodedata.decomposition(chr(c))
        if not d or d[0] == "<" or c in HANGUL:
            continue
        ab = [int(x, 16) for x in d.split()]
        if nfc("".join(map(chr, ab))) == chr(c):
            parts[c] = (1, ab[0], ab[1])
        elif nfc(chr(c)) != chr(c):
            parts[c] = (0, ab[0], 0) if len(ab) == 1 else (2, ab[0], ab[1])
    return ccc, parts


# The classes of run.c in their order (CH_UPPER ... CH_SPACE): what they match, and whether \w matches it, too (None: all or none).
CLASSES = ((r"\p{Lu}", None), (r"\p{Ll}", None), (r"\p{Lt}", None), (r"\p{Lm}", None), (r"\p{Lo}", None), (r"\p{M}", None),
           (r"\p{Nd}", None), (r"[\p{N}&&\P{Nd}]", False), (r"[\p{N}&&\P{Nd}]", True), (r"\p{P}", False), (r"\p{P}", True),
           (r"\p{S}", False), (r"\p{S}", True), (r"\s", None))
PAIRS, HAN, UNSETTLED = 15, 16, 32


def class_runs(value: list[int]) -> list[tuple[int, int]]:
    """(start, value) of each run. Capital and small letters that take turns are one run, of value PAIRS."""
    runs: list[tuple[int, int]] = []
    c = 0
    while c < 0x110000:
        end, pairs = c + 1, c
        while pairs + 1 < 0x110000 and value[pairs] == 1 and value[pairs + 1] == 2:
            pairs += 2
        if pairs - c >= 4:
            runs.append((c, PAIRS))
            c = pairs
            continue
        while end < 0x110000 and value[end] == value[c]:
            end += 1
        runs.append((c, value[c]))
        c = end
    return runs


def main() -> None:
    kind = bytearray(0x110000)
    words = matching(r"\w")
    for k, (regex, word) in enumerate(CLASSES, 1):
        for c in matching(regex):
            if word is None or word == (c in words):
                assert kind[c] == 0
                kind[c] = k
    han = matching(r"\p{Han}")
    ccc, parts = nfc_facts()
    unsettled = set(ccc)                    # NFC quick check: not a plain "yes"
    unsettled |= {c for c, p in parts.items() if p[0] != 1} | {p[2] for p in parts.values() if p[0] == 1}
    unsettled |= set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))        # Hangul vowels and finals
    assert min(unsettled) >= 0x300

    runs = class_runs([kind[c] + HAN * (c in han) + UNSETTLED * (c in unsettled) for c in range(0x110000)])
    ends = [start for start, _ in runs[1:]] + [0x110000]
    classes = "".join(number((end - start) * 64 + value) for (start, value), end in zip(runs, ends))
    n_classes = len(runs)

    combining, at, n_combining = "", 0, 0
    for c in sorted(ccc):
        if c < at:
            continue
        end = c + 1
        while ccc.get(end) == ccc[c]:
            end += 1
        combining += number(c - at) + number(end - c) + number(ccc[c])
        n_combining += 1
        at = end

    decompositions, prev_c, prev_a = "", 0, 0
    for c, (k, a, b) in sorted(parts.items()):
        decompositions += number((c - prev_c) * 3 + k) + number(zigzag(a - prev_a))
        decompositions += number(zigzag(b - 0x300)) if k else ""
        prev_c, prev_a = c, a

    out = sys.stdout
    out.write(f"enum {{ N_CLASSES = {n_classes}, N_COMBINING = {2 * n_combining + 1}, N_COMPOSITES = {len(parts)} }};\n")
    for name, text in (("classes", classes), ("combining", combining), ("decompositions", decompositions)):
        out.write(f"static const char unicode_{name}[] =\n")
        lines = [text[i:i + WIDTH] for i in range(0, len(text), WIDTH)]
        out.write("\n".join(f'    "{line}"' for line in lines) + ";\n")


if __name__ == "__main__":
    main()
