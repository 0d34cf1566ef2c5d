"""A bill of materials with only what `cargo tree` finds in the binary: `sbom.py BILL TREE`, for deploy/image/build."""

import json
import sys

bill = json.load(open(sys.argv[1], encoding="utf-8"))
# "name v1.2.3", perhaps followed by "(proc-macro)" or a path.
present = {tuple(line.split()[:2]) for line in open(sys.argv[2], encoding="utf-8") if line.strip()}
bill["components"] = [part for part in bill["components"] if (part["name"], f"v{part['version']}") in present]
kept = {part["bom-ref"] for part in bill["components"]} | {bill["metadata"]["component"]["bom-ref"]}
bill["dependencies"] = [
    {**entry, "dependsOn": [ref for ref in entry.get("dependsOn", []) if ref in kept]}
    for entry in bill["dependencies"]
    if entry["ref"] in kept
]
found = {(part["name"], f"v{part['version']}") for part in bill["components"]}
missing = {name for name, version in present - found if name != bill["metadata"]["component"]["name"]}
assert not missing, f"in the binary and not in the bill: {sorted(missing)}"
json.dump(bill, sys.stdout, indent=1)
