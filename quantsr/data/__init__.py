"""Pictures in: resizing, data sets, loaders and preparation.

`loader.build_train_loader` and `evaluation.build_eval_dataset` are what training and evaluation ask
for.
"""
