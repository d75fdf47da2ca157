"""Every fixed point and short cycle of a piecewise-linear low-rank network, with a certificate.

The noiseless dynamics of a low-rank network with N units and rank R are::

    F(z) = a z + n phi(m z + drive) + offset        z, a, offset: R;  n: R x N;  m: N x R

With a piecewise-linear phi, F is linear in each of the regions that the units' kinks cut out of
latent space, at most one isolated fixed point z = F(z) lies in each, and it solves an R x R system.
There are of the order of N^R regions. Descending on the length of z - F(z) from many starts is
quick, and never knows what it missed; a list that is complete is what a statement such as "this
network holds three memories" or "no other attractor exists" rests on.

Branch and bound supplies it. In a box of latent space most units stay on one piece and are linear;
each other unit is its chord plus a remainder in an interval, so that all z = F(z) of the box obey::

    G z = q + sum_u g_u e_u,  |e_u| <= 1            G = I - a - n S m  (S: slopes and chords)
    z in c - Y (G c - q) +- (|I - Y G| w + sum_u |Y g_u| + |Y| eta)

for centre c, half-widths w, any matrix Y and a bound eta on all rounding (Krawczyk's operator). The
box shrinks to the part that this leaves of it, or vanishes. Y is the Kalman gain of a prior with
covariance diag(w^2) under noise sum_u g_u g_u': the inverse of G where the remainders are small,
and no use of directions that they drown. Where few units are left on a kink, each combination of
their pieces is solved; else the box is halved. Bounded units confine all fixed points to a box.
For others, a lower bound on the residual of the network at infinity over the faces of the unit cube
gives the box. Cycles z_2 = F(z_1), ..., z_1 = F(z_p) are fixed points of a network on
(z_1, ..., z_p).

Rounding is met by a-priori bounds on floating-point sums, not by directed rounding. Points that
coincide within the error of their linear systems count as one.

Sources: Pals, Sagtekin, Pei, Gloeckler & Macke (NeurIPS 2024) for these networks and the question;
Krawczyk (1969, Computing 4) for the contraction. The algorithm is written from these equations.

The chapters: `network` (what is asked about), `equation` (what is solved, and a bound on its
rounding), `boxes` (relax, contract, halve), `leaves` (solve piece by piece), `search` (all boxes
within a budget, and the box that holds everything), `listing` (what was found, as a dataset).
"""

from pyrodyn.analysis.fixed_points.certified.listing import MARGIN, fixed_points_of
from pyrodyn.analysis.fixed_points.certified.network import PiecewiseLinear

__all__ = ["MARGIN", "PiecewiseLinear", "fixed_points_of"]
