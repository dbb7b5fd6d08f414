"""Weights by least squares, each step written as the problem it solves, in double precision."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


def patches(picture: Matrix, kernel: int, padding: int, stride: int) -> Matrix:
    """(C * k * k, n): what a convolution's weight multiplies at each place of (C, h, w)."""
    padded = np.pad(picture, ((0, 0), (padding, padding), (padding, padding)))
    found = []
    for top in range(0, padded.shape[1] - kernel + 1, stride):
        for left in range(0, padded.shape[2] - kernel + 1, stride):
            found.append(padded[:, top : top + kernel, left : left + kernel].ravel())
    return np.array(found).T


def ridge(weight: Matrix, x: Matrix, z: Matrix, damping: float) -> Matrix:
    """The matrix W' of least ``|Z - W' X|^2 / N + d |W' - W|^2``: one problem of least squares in
    W' - W, with a row for each place and one for each entry."""
    count = x.shape[1]
    rows = np.vstack([x.T / np.sqrt(count), np.sqrt(damping) * np.eye(len(x))])
    wanted = np.vstack([(z - weight @ x).T / np.sqrt(count), np.zeros((len(x), len(weight)))])
    return weight + np.linalg.lstsq(rows, wanted, rcond=None)[0].T


def rounded(weight: Matrix, second: Matrix, step: Matrix, qmin: int, qmax: int) -> Matrix:
    """Codes of a matrix (O, K), column after column in the order of falling ``second[i, i]``.

    After each one, the columns that are left are those of least ``e second e^T``, where e is the
    distance from `weight` and its part of the rounded columns is given.
    """
    order = sorted(range(len(second)), key=lambda i: -second[i, i])
    codes = np.zeros_like(weight)
    for row in range(len(weight)):
        error = np.zeros(len(second))  # of the columns that are rounded
        for done, i in enumerate(order):
            fixed, left = order[:done], order[done:]
            moved = np.zeros(len(second))
            if fixed:
                moved[left] = -np.linalg.solve(
                    second[np.ix_(left, left)], second[np.ix_(left, fixed)] @ error[fixed]
                )
            value = (weight[row, i] + moved[i]) / step[row]
            codes[row, i] = np.rint(np.clip(value, qmin, qmax))
            error[i] = codes[row, i] * step[row] - weight[row, i]
    return codes
