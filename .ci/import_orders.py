"""Import rmac, torch, scikit-learn and faiss in each order: all of them compute, and agree.

Each brings an OpenMP runtime of its own, or takes one that is loaded already.
"""

import itertools
import subprocess
import sys

LIBRARIES = ("rmac", "torch", "sklearn.cluster", "faiss")
CODE = """
import hashlib
import numpy as np
IMPORTS
x = np.random.default_rng(0).standard_normal((8, 64, 24, 32), np.float32)
descriptors = rmac.rmac(x, workers=4)
bits = hashlib.sha256(descriptors.tobytes() + rmac.region_pool(x, workers=3).tobytes())
maxima = torch.nn.functional.max_pool2d(torch.from_numpy(x), 24).numpy()
groups = sklearn.cluster.KMeans(2, n_init=1, random_state=0).fit(descriptors).labels_
index = faiss.IndexFlatL2(64)
index.add(descriptors)
nearest = index.search(descriptors, 3)[1]
again = rmac.rmac(x, workers=2)
assert again.tobytes() == descriptors.tobytes()
print(bits.hexdigest(), float(maxima.sum()), groups.tolist(), nearest.tolist())
libraries = {line.split()[-1] for line in open("/proc/self/maps")}
runtimes = ("libgomp", "libomp", "libiomp")
print("OpenMP:", *[name for name in libraries if name.split("/")[-1].startswith(runtimes)])
"""


def main():
    """Compute in a process for each order."""
    outputs = set()
    for order in itertools.permutations(LIBRARIES):
        imports = "\n".join(f"import {name}" for name in order)
        result = subprocess.run(
            [sys.executable, "-P", "-c", CODE.replace("IMPORTS", imports)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if result.returncode:
            sys.exit(f"{' '.join(order)}: {result.returncode}\n{result.stderr}")
        computed, _, loaded = result.stdout.partition("\nOpenMP: ")
        outputs.add(computed)
        print(" ".join(order), "ok:", len(loaded.split()), "OpenMP libraries", flush=True)
        if len(outputs) > 1:
            sys.exit("this order computes something else")
    print(f"imports: {len(list(itertools.permutations(LIBRARIES)))} orders agree")


if __name__ == "__main__":
    main()
