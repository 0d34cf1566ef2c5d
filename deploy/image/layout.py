"""Puts the code of a trained binary in order: `layout.py IDLE ALL`, where each file is what `llvm-profdata show --all-functions
--counts` says, writes a script for the linker. What never ran comes first, then what runs before the first call, then the rest.

An idle sidecar is little else than the pages of its executable that are mapped, and Linux maps 64 KiB and more around each that is
touched. So what runs at the start must not be strewn over the whole of it. The compiler tells hot from cold by itself, but to it
whatever runs once is as cold as what never does.
"""

import re
import sys


def read(path):
    """The functions that ran, and those that did not."""
    ran, never = set(), set()
    with open(path) as shown:
        for line in shown:
            if name := re.fullmatch(r"  (?:\S+;)?(\S+):\n", line):
                function = name[1]
            elif counts := re.fullmatch(r"    Block counts: \[(.*)\]\n", line):
                (ran if counts[1].strip("0, ") else never).add(function)
    if not ran:
        sys.exit(f"there are no counts in {path}")
    return ran, never - ran


def section(name, functions, where):
    print(f"SECTIONS {{ {name} : {{ *(")
    for function in sorted(functions):
        print(f".text.{function} .text.hot.{function} .text.unlikely.{function}")
    print(f") }} }} INSERT {where} .text;")


if __name__ == "__main__":
    idle, _ = read(sys.argv[1])
    ran, never = read(sys.argv[2])
    section(".text.unlikely", never, "BEFORE")
    section(".text.hot", ran - idle, "AFTER")
