#!/usr/bin/env bash
# faiss' exact L2 search finds other nearest neighbours for 2,000 queries at once than for 1,999.
#
# Versions: faiss-cpu 1.15.1, numpy 2.4.
# Source: https://github.com/facebookresearch/faiss, faiss/utils/distances.cpp: small calls compute the difference of each
# pair, and large ones |q|^2 + |x|^2 - 2qx in float32.
#
# One would expect: IndexFlatL2 and `faiss.knn` are exact, so the answer to a query does not depend on which other
# queries are in the same call. Embeddings of language models often have a large common offset, and nothing warns of it.
#
# Seen: with vectors around 100 and a deviation of 1, every answer is right as long as a call has fewer than 128,000
# numbers (queries times dimensions). From 128,000 on, the nearest neighbour is wrong for 2% of the queries with 64
# dimensions. The expanded formula subtracts numbers of about 640,000 that differ by about 100, which float32 cannot
# resolve. Subtracting the mean of the vectors from both sides makes every answer right again.
#
# Output:
#   1999 queries at once: all right
#   2000 queries at once: some wrong
#   2000 queries at once, mean subtracted: all right
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "faiss-cpu==1.15.1" "numpy==2.4.*"
"$folder/venv/bin/python" - >"$folder/output" <<'PYTHON'
import faiss
import numpy as np

generator = np.random.default_rng(0)
deviations = [generator.normal(size=(rows, 64)) for rows in (5000, 2000)]
vectors, queries = ((deviation + 100).astype(np.float32) for deviation in deviations)
centred = [part.astype(np.float64) - 100 for part in (vectors, queries)]
nearest = ((centred[0] ** 2).sum(axis=1) - 2 * centred[1] @ centred[0].T).argmin(axis=1)


def show(name, queries, vectors):
    found = faiss.knn(queries, vectors, 1)[1][:, 0]
    print(f"{name}: {'all right' if (found == nearest[: len(queries)]).all() else 'some wrong'}")


show("1999 queries at once", queries[:1999], vectors)
show("2000 queries at once", queries, vectors)
mean = vectors.mean(axis=0)
show("2000 queries at once, mean subtracted", queries - mean, vectors - mean)
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
1999 queries at once: all right
2000 queries at once: some wrong
2000 queries at once, mean subtracted: all right
EXPECTED
echo "As described."
