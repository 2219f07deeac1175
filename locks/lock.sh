#!/usr/bin/env bash
# Resolve the environments anew and write their locks, with hashes. Needs uv on PATH.
#   make lock                      (PIP_FIND_LINKS may name a folder with a CPU build of torch)
# Versions already locked stay unless an .in file forbids them; UPGRADE=1 takes the newest of all.
# torch has locks of its own: torch-cpu.txt for a CPU build found through pip's configured find-links, cuda.txt for the
# ordinary wheel and the libraries only that one needs. `make setup` takes the first that pip can find (TORCH=cuda forces it).
set -euo pipefail
cd "$(dirname "$0")"
opts=(--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate -q ${UPGRADE:+--upgrade})
local_wheels=(${PIP_FIND_LINKS:+--find-links "$PIP_FIND_LINKS"})
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT

uv pip compile "${opts[@]}" orchestrate.in -o orchestrate.txt
cp ml.txt "$tmp/ml.txt"; cp cuda.txt "$tmp/cuda.txt"  # what is there is what uv prefers
uv pip compile "${opts[@]}" "${local_wheels[@]}" ml.in -o "$tmp/ml.txt"
grep '^torch==' ml.in | tee "$tmp/torch.in" >/dev/null
uv pip compile "${opts[@]}" "$tmp/torch.in" -o "$tmp/cuda.txt"
grep '^nvidia-pytriton==' triton.in >"$tmp/triton.in"
uv pip compile "${opts[@]}" --no-deps "$tmp/triton.in" -o triton.txt
uv pip compile "${opts[@]}" --no-deps kubectl.in -o kubectl.txt
uv pip compile "${opts[@]}" audit.in -o audit.txt
python3 - "$tmp" <<'PY'
import pathlib, re, sys
tmp = pathlib.Path(sys.argv[1])
def blocks(path):  # name -> (pin, [hash lines])
    found, name = {}, None
    for line in path.read_text().splitlines():
        if m := re.match(r"^([a-zA-Z0-9_.-]+)(\[[^\]]*\])?==([^ ]+)", line):
            name = m.group(1); found[name] = (m.group(3), [])
        elif name and "--hash" in line:
            found[name][1].append(line.strip().rstrip("\\").strip())
    return found
def write(path, pins):
    path.write_text("".join(f"{n}=={v} \\\n" + " \\\n".join(f"    {h}" for h in hs) + "\n" for n, (v, hs) in sorted(pins.items())))
ml, cuda = blocks(tmp / "ml.txt"), blocks(tmp / "cuda.txt")
torch = ml.pop("torch")
if "+" in torch[0]:
    write(pathlib.Path("torch-cpu.txt"), {"torch": torch})
ml = {n: p for n, p in ml.items() if not n.startswith(("nvidia-", "cuda-")) and n != "triton"}
write(pathlib.Path("ml.txt"), ml)
write(pathlib.Path("cuda.txt"), {n: p for n, p in cuda.items() if n not in ml})
PY
uv pip compile "${opts[@]}" -c orchestrate.txt dev.in -o dev-orchestrate.txt
uv pip compile "${opts[@]}" "${local_wheels[@]}" -c ml.txt dev.in dev-kube.in -o dev-ml.txt
