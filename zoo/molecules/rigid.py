"""Rigid motion of molecules: body frames, optimal superposition, rotations, and what is left without them.

Everything takes and gives torch tensors of shape (batch, n_sites, 3), any floating dtype, in Å.
Positions are rows, so a rotation matrix R acts as ``positions @ R.mT``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def centred(positions: Tensor) -> Tensor:
    """Positions relative to their centroid."""
    return positions - positions.mean(-2, keepdim=True)


def body_frames(positions: Tensor, frame: tuple[int, int, int], sign: Tensor | None = None) -> Tensor:
    """Axes (batch, 3, 3), as columns, that move with the molecule; local = positions @ axes.

    With (a, b, c) = ``frame``: the first axis points from b to c, the second lies in the plane of the
    three on the side of a, the third is their cross product times ``sign`` (batch,).  With the
    handedness of a stereocentre as ``sign`` a molecule and its mirror image have the same local
    coordinates.

    Raises
    ------
    ValueError : the three sites are on one line in some item.
    """
    a, b, c = frame
    first = positions[:, c] - positions[:, b]
    first = first / first.norm(dim=-1, keepdim=True)
    second = positions[:, a] - positions[:, b]
    second = second - (second * first).sum(-1, keepdim=True) * first
    length = second.norm(dim=-1, keepdim=True)
    if not bool((length > 1e-6).all()):
        raise ValueError(f"the sites {frame} of the body frame are on one line")
    second = second / length
    third = torch.linalg.cross(first, second)
    if sign is not None:
        third = third * sign[:, None]
    return torch.stack([first, second, third], -1)


def superposition(mobile: Tensor, target: Tensor) -> Tensor:
    """Rotation matrices R (batch, 3, 3) for which ``centred(mobile) @ R.mT`` is nearest to the target.

    Kabsch, Acta Cryst. A32, 922 (1976), all sites with equal weight; never a reflection.
    """
    u, _, vt = torch.linalg.svd(centred(target).mT @ centred(mobile))
    flip = torch.ones_like(u[:, 0])
    flip[:, 2] = torch.linalg.det(u @ vt).sign()
    rotation: Tensor = (u * flip[:, None, :]) @ vt
    return rotation


def without_rigid_motion(displacement: Tensor, positions: Tensor) -> Tensor:
    """The part of a displacement that neither translates nor rotates ``positions`` (both (b, n, 3)).

    The orthogonal projection onto sum_i d_i = 0 and sum_i r_i x d_i = 0.  A structure that is
    superposed on ``positions`` differs from them by exactly such a displacement.
    """
    return project_out(rigid_motions(positions), displacement)


def rigid_motions(positions: Tensor) -> Tensor:
    """Orthonormal basis (b, 6, 3 n) of the translations and rotations of ``positions`` (b, n, 3)."""
    r = centred(positions)
    n = r.shape[1]
    eye = torch.eye(3, dtype=r.dtype, device=r.device)
    inertia = (r * r).sum((-1, -2))[:, None, None] * eye - r.mT @ r
    turns = torch.linalg.cross(
        eye[None, :, None, :].expand(len(r), 3, n, 3), r[:, None].expand(-1, 3, -1, -1), dim=-1
    ).flatten(2)
    # turns @ turns.mT is the inertia tensor, so this makes them orthonormal.
    factor = torch.linalg.cholesky_ex(inertia)[0]
    turns = torch.linalg.solve_triangular(factor, turns, upper=False)
    shifts = (eye[:, None, :].expand(3, n, 3) / math.sqrt(n)).reshape(1, 3, 3 * n)
    return torch.cat([shifts.expand(len(r), -1, -1), turns], 1)


def project_out(basis: Tensor, displacement: Tensor) -> Tensor:
    """Displacement (b, n, 3) without its part along the rows of an orthonormal ``basis`` (b, k, 3 n)."""
    flat = displacement.flatten(1)[:, :, None]
    result: Tensor = torch.baddbmm(flat, basis.mT, basis @ flat, alpha=-1)
    return result.view_as(displacement)


def rotation_matrix(vector: Tensor) -> Tensor:
    """Rotations (batch, 3, 3) by |vector| radians about vector (batch, 3)."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    generator = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    rotation: Tensor = torch.linalg.matrix_exp(generator)
    return rotation


def rotation_vector(rotation: Tensor) -> Tensor:
    """Inverse of `rotation_matrix` for angles below pi: (batch, 3, 3) -> (batch, 3) radians."""
    axis = torch.stack(
        [
            rotation[:, 2, 1] - rotation[:, 1, 2],
            rotation[:, 0, 2] - rotation[:, 2, 0],
            rotation[:, 1, 0] - rotation[:, 0, 1],
        ],
        -1,
    )
    sine = axis.norm(dim=-1) / 2
    cosine = (rotation.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    angle = torch.atan2(sine, cosine)
    scale = torch.where(sine > 1e-9, angle / (2 * sine).clamp_min(1e-18), torch.full_like(sine, 0.5))
    return axis * scale[:, None]
