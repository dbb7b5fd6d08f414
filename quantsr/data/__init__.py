"""Resizing, data sets, loaders, and preparation of pictures.

Training calls `loader.build_train_loader`, evaluation `evaluation.build_eval_dataset`.
"""
