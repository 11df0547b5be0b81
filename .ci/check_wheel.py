"""Check that a wheel holds moe_placer, its solvers and its type marker, and nothing else."""

import sys
import zipfile

(wheel,) = sys.argv[1:]
names = zipfile.ZipFile(wheel).namelist()
strangers = [name for name in names if not name.startswith(("moe_placer/", "moe_placer-"))]
missing = {
    "moe_placer/__init__.py",
    "moe_placer/py.typed",
    "moe_placer/cli/commands.py",
    "moe_placer/dag/page/page.html",
    "moe_placer/experiments/report/report.html.j2",
    "moe_placer/schedule/simulate.py",
    "moe_placer/solvers/auto.py",
    "moe_placer/verifier/check.py",
} - set(names)
if strangers or missing:
    sys.exit(f"{wheel}: unexpected {strangers}, missing {sorted(missing)}")
print(f"{wheel}: {len(names)} files, all in moe_placer")
