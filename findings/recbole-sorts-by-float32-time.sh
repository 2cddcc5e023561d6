#!/usr/bin/env bash
# RecBole orders a log by float32 timestamps, which are 64 seconds apart in the years of MovieLens: the test item is not
# always the newest one.
#
# Versions: recbole 1.2.1, torch 2.14.1, numpy 1.26.4, pandas 2.2.3, scipy 1.13.1 (newer numpy lacks names that it uses).
# Source: https://github.com/RUCAIBox/RecBole, recbole/data/dataset/dataset.py, `_dataframe_to_interaction` and `build`: every
# column of the type `float` becomes a torch.FloatTensor before `inter_feat.sort(by=time_field)`.
#
# One would expect: with `order: TO` (temporal ordering) and the leave-one-out split, each user's newest interaction is the
# test target, whatever the order of the rows in the file. The atomic file gives the time as `timestamp:float`, which is
# the documented type for it, and the data frame that is read does hold float64.
#
# Seen: a user's five interactions are five seconds apart. In float32 they have one time, so the order of the file decides.
# If the newest row comes first, as in many exports, the test target is the user's oldest item. A file in ascending order
# gives the right one. In MovieLens-100K (with ties in the order of the file), 149 of 943 test items are not the newest for this reason.
#
# Output:
#   oldest row first: test target e, time in the split 880000000
#   newest row first: test target a, time in the split 880000000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "recbole==1.2.1" "torch==2.14.1" "numpy==1.26.4" "pandas==2.2.3" "scipy==1.13.1"
cd "$folder"
"$folder/venv/bin/python" -W ignore - >"$folder/output" 2>"$folder/errors" <<'PYTHON' || { tail -5 "$folder/errors" >&2; exit 1; }
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset

SETTINGS = {
    "data_path": "data",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
    "TIME_FIELD": "timestamp",
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full", "group_by": None},
    "train_neg_sample_args": None,
    "use_gpu": False,
    "state": "ERROR",
}
rows = [f"user\t{item}\t{880_000_000 + 5 * position}" for position, item in enumerate("abcde")]
file = Path("data/log/log.inter")
file.parent.mkdir(parents=True)
for name, ordered in (("oldest row first", rows), ("newest row first", rows[::-1])):
    file.write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *ordered]) + "\n")
    dataset = create_dataset(Config(model="SASRec", dataset="log", config_dict=SETTINGS))
    test = dataset.build()[-1].inter_feat
    target = dataset.id2token("item_id", int(test["item_id"][0]))
    print(f"{name}: test target {target}, time in the split {int(test['timestamp'][0])}")
PYTHON
diff - "$folder/output" <<'EXPECTED' || { echo "The behaviour has changed." >&2; exit 1; }
oldest row first: test target e, time in the split 880000000
newest row first: test target a, time in the split 880000000
EXPECTED
echo "As described."
