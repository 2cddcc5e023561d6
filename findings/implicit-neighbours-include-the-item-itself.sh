#!/usr/bin/env bash
# implicit's item-item recommender with K neighbours has K - 1: the item itself is one of them.
#
# Versions: implicit 0.7.3, scipy 1.15 or newer.
# Source: https://github.com/benfred/implicit, implicit/nearest_neighbours.py, ItemItemRecommender.fit.
#
# One would expect: `K` is documented as the number of neighbours to include, so with K=1 each item has its nearest other
# item, and K=20 can be compared with 20 neighbours elsewhere (RecBole's ItemKNN and most papers do not count the item).
#
# Seen: the similarity matrix keeps its diagonal, and the item's similarity to itself is usually the largest, so it takes
# one of the K places. With K=1 the matrix is diagonal, and a user gets no item that is new to them. The score of an item
# that the user already has also contains its own diagonal element.
#
# Output:
#   K=1: neighbours of item 0: [0]
#   K=2: neighbours of item 0: [0, 1]
#   K=3: neighbours of item 0: [0, 1, 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "implicit==0.7.3" "numpy==2.4.*" scipy
"$folder/venv/bin/python" -W ignore - >"$folder/output" <<'PYTHON'
import numpy as np
from implicit.nearest_neighbours import ItemItemRecommender
from scipy.sparse import csr_matrix

users = [0, 0, 0, 1, 1, 2, 2, 3, 3]
items = [0, 1, 2, 0, 1, 1, 2, 0, 3]
log = csr_matrix((np.ones(9), (users, items)), shape=(4, 4))
for neighbours in (1, 2, 3):
    model = ItemItemRecommender(K=neighbours)
    model.fit(log, show_progress=False)
    print(f"K={neighbours}: neighbours of item 0: {sorted(model.similarity[0].indices.tolist())}")
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
K=1: neighbours of item 0: [0]
K=2: neighbours of item 0: [0, 1]
K=3: neighbours of item 0: [0, 1, 3]
EXPECTED
echo "As described."
