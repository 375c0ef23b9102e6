#!/usr/bin/env bash
# LightGBM trains on a label of 1.9, NaN or 0.2 without a word: as class 1, class 0 and "positive".
#
# Library:  lightgbm 4.7.0, objectives multiclass and binary; xgboost 3.2.0 beside it.
# Expected: an error for a class label that is not one of 0 .. num_class - 1 (3 and -1 do raise), and for a
#           binary label that is neither 0 nor 1; or, there, soft labels as in xgboost's binary:logistic.
# Seen:     multiclass labels are cast to int: the model trained on 1.9 and NaN is that of 1 and 0, exactly.
#           With objective=binary every label above 0 is a positive: 0.2 and 0.8 give a model that says 1.0
#           everywhere. xgboost refuses the first two and fits 0.2 and 0.8. (cross_entropy is the objective
#           for soft labels in lightgbm.)
# Matters:  distillation and label smoothing hand exactly such labels to the student.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q lightgbm==4.7.0 numpy==2.4.6 scipy==1.17.1
"$dir/venv/bin/pip" install -q --no-deps xgboost==3.2.0
"$dir/venv/bin/python" -W ignore - <<'PY'
import lightgbm
import numpy as np
import xgboost

x = np.repeat(np.eye(3), 10, axis=0)
common = dict(min_data_in_leaf=1, min_data_in_bin=1, verbose=-1)


def multiclass(labels):
    data = lightgbm.Dataset(x, labels, params=common)
    return lightgbm.train(dict(objective="multiclass", num_class=3, **common), data, 3).predict(x)


odd, meant = np.repeat([0.0, 1.0, 2.0], 10), np.repeat([0.0, 1.0, 2.0], 10)
odd[5:10], meant[5:10] = np.nan, 0
odd[25:], meant[25:] = 1.9, 1
print("labels", odd[[5, 25]], "give the model of labels", meant[[5, 25]])
assert np.array_equal(multiclass(odd), multiclass(meant))

soft = np.r_[np.full(15, 0.2), np.full(15, 0.8)]
side = np.r_[np.zeros(15), np.ones(15)][:, None]
data = lightgbm.Dataset(side, soft, params=common)
light = lightgbm.train(dict(objective="binary", **common), data, 20).predict(side)[[0, -1]]
boosted = xgboost.train(dict(objective="binary:logistic", eta=1, reg_lambda=0), xgboost.DMatrix(side, soft), 20)
boosted = boosted.predict(xgboost.DMatrix(side))[[0, -1]]
print("soft labels 0.2 and 0.8: lightgbm", light, "xgboost", boosted)
assert (light > 0.999).all() and np.allclose(boosted, [0.2, 0.8], atol=1e-3)
for label in (1.9, np.nan):
    try:
        bad = np.repeat([0.0, 1.0, label], 10)
        xgboost.train(dict(objective="multi:softprob", num_class=3), xgboost.DMatrix(x, bad), 1)
        raise SystemExit("xgboost accepted a label that it refused")
    except xgboost.core.XGBoostError:
        print("xgboost refuses", label)
PY
