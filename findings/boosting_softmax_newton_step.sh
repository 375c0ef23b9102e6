#!/usr/bin/env bash
# "One Newton step on the softmax loss" is another step in xgboost than in lightgbm and catboost.
#
# Library:  xgboost 3.2.0 (multi:softprob), lightgbm 4.7.0 (multiclass), catboost 1.2.10 (MultiClass).
# Expected: one tree, learning rate 1, no regularisation, 3 balanced classes that a stump separates, from equal
#           scores: each leaf is minus gradient / curvature. With the diagonal p(1 - p) that is [3, -1.5, -1.5].
# Seen:     xgboost [1.5, -0.75, -0.75] (it doubles the curvature); lightgbm [2, -1, -1] (times K / (K - 1));
#           catboost [2, -1, -1] (the whole Hessian, for which this is the exact step).
# Matters:  the same learning rate means different steps, and min_child_weight / min_sum_hessian, which are
#           thresholds on that curvature, count a row differently in each library.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q lightgbm==4.7.0 catboost==1.2.10 numpy==2.4.6 scipy==1.17.1
"$dir/venv/bin/pip" install -q --no-deps xgboost==3.2.0
"$dir/venv/bin/python" -W ignore - <<'PY'
import catboost
import lightgbm
import numpy as np
import xgboost

x, y = np.repeat(np.eye(3), 10, axis=0), np.repeat([0, 1, 2], 10)

data = xgboost.DMatrix(x, y)
options = dict(objective="multi:softprob", num_class=3, eta=1, reg_lambda=0, min_child_weight=0)
xgb = xgboost.train(options, data, 1).predict(data, output_margin=True)[0]

options = dict(objective="multiclass", num_class=3, learning_rate=1, lambda_l2=0, boost_from_average=False,
               min_data_in_leaf=1, min_data_in_bin=1, min_sum_hessian_in_leaf=0, verbose=-1)
lgb = lightgbm.train(options, lightgbm.Dataset(x, y, params=options), 1).predict(x, raw_score=True)[0]

model = catboost.CatBoostClassifier(loss_function="MultiClass", iterations=1, learning_rate=1, depth=2, l2_leaf_reg=0,
                                    leaf_estimation_iterations=1, verbose=0, allow_writing_files=False)
cat = model.fit(x, y).predict(x, prediction_type="RawFormulaVal")[0]

for name, leaf, expected in (("xgboost", xgb, 1.5), ("lightgbm", lgb, 2.0), ("catboost", cat, 2.0)):
    print(f"{name:9} leaf of class 0: {np.round(leaf, 4)}")
    assert np.allclose(leaf, np.array([1, -0.5, -0.5]) * expected, atol=1e-3)
PY
