#!/usr/bin/env bash
# implicit fills a short list with items that the user already has, although it was told to filter them.
#
# Versions: implicit 0.7.3, scipy 1.15 or newer.
# Source: https://github.com/benfred/implicit, implicit/nearest_neighbours.py, ItemItemRecommender.recommend.
#
# One would expect: `recommend(..., N=4, filter_already_liked_items=True)` returns at most the items that the user does not
# have, or marks the places that stay empty.
#
# Seen: the user has items 0 and 1 of four items. The list has four entries: items 2 and 3, then the two items that the user
# has, with a score of 0. An item of the catalogue without a common user also has a score of 0, so the score alone does not
# tell the two apart. Metrics of users with few candidates count these entries as recommendations.
#
# Output:
#   not filtered: items [1, 0, 2, 3], scores [5, 5, 2, 1]
#   filtered: items [2, 3, 1, 0], scores [2, 1, 0, 0]
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
model = ItemItemRecommender(K=3)
model.fit(log, show_progress=False)


def show(name, user, filtered):
    recommended, scores = model.recommend(user, log[user], N=4, filter_already_liked_items=filtered)
    print(f"{name}: items {recommended.tolist()}, scores {scores.astype(int).tolist()}")


show("not filtered", 1, False)
show("filtered", 1, True)
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
not filtered: items [1, 0, 2, 3], scores [5, 5, 2, 1]
filtered: items [2, 3, 1, 0], scores [2, 1, 0, 0]
EXPECTED
echo "As described."
