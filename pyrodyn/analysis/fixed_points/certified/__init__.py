"""Every fixed point and short cycle of a piecewise-linear network, with a certificate.

The noiseless dynamics of a low-rank network with N units and rank R, or of a shallow PLRNN with N
units and R latents, are::

    F(z) = a z + n phi(m z + drive) + offset        z, a, offset: R;  n: R x N;  m: N x R

With a piecewise-linear phi, F is linear in each of the regions into which the units' kinks divide
latent space. Each region contains at most one isolated fixed point z = F(z), the solution of an
R x R system, but there are of the order of N^R regions. Minimising the size of z - F(z) from many
starts is fast and may miss fixed points. Statements such as "this network stores three memories" or
"there is no other attractor" need a complete list.

Branch and bound supplies it. In a box of latent space most units stay on one piece and are linear;
each of the others is its chord plus a remainder in an interval, so that all z = F(z) of the box
satisfy::

    G z = q + sum_u g_u e_u,  |e_u| <= 1            G = I - a - n S m  (S: slopes and chords)
    z in c - Y (G c - q) +- (|I - Y G| w + sum_u |Y g_u| + |Y| eta)

for centre c, half-widths w, any matrix Y and a bound eta on all rounding (Krawczyk's operator). The
box is reduced to its intersection with this set, or discarded. Y is the Kalman gain of a prior with
covariance diag(w^2) under noise sum_u g_u g_u': the inverse of G where the remainders are small,
without the directions in which they dominate. If few units have a kink in the box, each combination
of their pieces is solved; otherwise the box is halved. Bounded units confine all fixed points to a
box. For others, a lower bound on the residual of the network at infinity over the faces of the unit
cube gives the box. Cycles z_2 = F(z_1), ..., z_1 = F(z_p) are fixed points of a network on
(z_1, ..., z_p).

Rounding is covered by a-priori bounds on floating-point sums, not by directed rounding. Each
solution is solved again on the region in which it lies, and solutions in one region are merged. For
bounded units the sum of the indices, sign det(I - dF/dz), must be sign det(I - a), +1 for decays,
which checks the list independently of the search. A point on kinks, where F has no derivative, gets
a stability only if one norm is proved to shrink, or one to grow, in all adjoining regions:
eigenvalues inside the unit circle in each of them do not exclude growth by switching between the
regions.

Files: `network` (the networks), `equation` (the equation solved, and a bound on its rounding),
`boxes` (relax, contract, halve), `leaves` (solve piece by piece), `search` (all boxes within a
budget, and the box that contains all solutions), `refine` (solve again, merge), `adjoining` (the
regions around a solution), `listing` (the result as a dataset).

    >>> from pyrodyn.analysis.fixed_points.certified import PiecewiseLinear, fixed_points_of
    >>> bistable = PiecewiseLinear.hard_tanh(0.5, [[1.0]], [[4.0]], 0.0)
    >>> found = fixed_points_of(bistable)  # -2, 0 and 2
    >>> found["stability"].values.tolist(), found.attrs["complete"]
    (['stable', 'unstable', 'stable'], 1)

Sources: Pals, Sagtekin, Pei, Gloeckler & Macke (NeurIPS 2024) and Hess, Monfared, Brenner &
Durstewitz (ICML 2023) for these networks and the question;
Krawczyk (1969, Computing 4) for the contraction. The algorithm is written from these equations.
"""

from pyrodyn.analysis.fixed_points.certified.listing import MARGIN, fixed_points_of
from pyrodyn.analysis.fixed_points.certified.network import PiecewiseLinear

__all__ = ["MARGIN", "PiecewiseLinear", "fixed_points_of"]
