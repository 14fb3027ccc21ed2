"""{latent, observed} x contexts x supports: models around one energy, and their joint densities in closed form.

Latent energies have a conjugate likelihood, so that their posterior is known too. Observed energies have one latent
parameter that their log Z depends on; its posterior is an integral over one real number.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.special import gammaln, i0e, logsumexp
from numpyro.contrib.control_flow import scan
from numpyro.distributions import constraints

import ebm_ppl as ebm
from tests.infer.verdicts import CONTEXTS, ROLES

MCMC_ENGINES = ("NUTS", "BlackJAXKernel")

PARAMETER = 0.2  # of the latent energies; the observed ones have a latent parameter ~ N(0, 1)
OFFSETS = jnp.array([-0.4, 0.3])
WEIGHTS = jnp.array([0.3, 0.7])
KEPT = jnp.array([True, False])
FIRST = np.arange(2)


@dataclasses.dataclass(frozen=True)
class Law:
    """One parameter t, one support: as an energy, as a NumPyro distribution, with a conjugate likelihood and data."""

    event_shape: tuple[int, ...]
    support: Any
    energy: Callable[..., Any]
    log_normalizer: Callable[..., Any]
    reference: Callable[..., dist.Distribution]
    likelihood: Callable[..., dist.Distribution]
    outcomes: Any
    values: Any


def normal_energy(t, x):
    return (x - 0.3) ** 2 * jnp.exp(-2 * t) / 2


def gamma_energy(t, x):
    return jnp.exp(t) * x - 2 * jnp.log(x)


def concentration(t):
    return jnp.stack(jnp.broadcast_arrays(2.0, 3.0, 1 + jnp.exp(t)), -1)


def dirichlet_energy(t, x):
    return -jnp.sum((concentration(t) - 1) * jnp.log(x))


def dirichlet_log_normalizer(t):
    return jnp.sum(gammaln(concentration(t)), -1) - gammaln(jnp.sum(concentration(t), -1))


def von_mises_energy(t, x):
    return -jnp.exp(t) * jnp.cos(x - 0.5)


LAWS = {
    "real": Law(
        (),
        constraints.real,
        normal_energy,
        lambda t: t + jnp.log(2 * jnp.pi) / 2,
        lambda t: dist.Normal(0.3, jnp.exp(t)),
        lambda x: dist.Normal(x, 0.5),
        jnp.array([0.9, -0.4, 0.1, 1.7]),
        jnp.array([0.6, -1.1, 0.2, 2.0]),
    ),
    "positive": Law(
        (),
        constraints.positive,
        gamma_energy,
        lambda t: jnp.log(2.0) - 3 * t,
        lambda t: dist.Gamma(3.0, jnp.exp(t)),
        dist.Poisson,
        jnp.array([4, 1, 0, 2]),
        jnp.array([0.6, 2.1, 1.2, 3.0]),
    ),
    "simplex": Law(
        (3,),
        constraints.simplex,
        dirichlet_energy,
        dirichlet_log_normalizer,
        lambda t: dist.Dirichlet(concentration(t)),
        lambda x: dist.Multinomial(5, x),
        jnp.array([[3, 1, 1], [0, 4, 1], [2, 2, 1], [1, 0, 4]]),
        jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.4, 0.3]]),
    ),
    "circular": Law(
        (),
        constraints.circular,
        von_mises_energy,
        lambda t: jnp.log(2 * jnp.pi) + jnp.log(i0e(jnp.exp(t))) + jnp.exp(t),
        lambda t: dist.VonMises(0.5, jnp.exp(t)),
        lambda x: dist.VonMises(x, 2.0),
        jnp.array([1.9, -1.4, 0.1, 3.0]),
        jnp.array([0.6, -2.1, 0.2, 1.4]),
    ),
}


def as_energy(law, *, log_z, cls=ebm.EnergyDistribution, draws=False, **kwargs):
    """The law as an energy, with its log Z and its draws or without."""

    def draw(energy, key, sample_shape):
        return law.reference(energy.params).sample(key, sample_shape)

    def make(t, batch_shape=()):
        t = jnp.broadcast_to(jnp.asarray(t, float), batch_shape)
        energy = ebm.FunctionEnergy(law.energy, law.event_shape, t)
        log_normalizer = law.log_normalizer(t) if log_z else None
        return cls(
            energy,
            batch_shape=batch_shape,
            support=law.support,
            log_normalizer=log_normalizer,
            sampler=draw if draws else None,
            **kwargs,
        )

    return make


# --- latent energies: x, and one outcome y of each --------------------------------------------------------------------


def latent_plate(law, make):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", make(PARAMETER))
        numpyro.sample("y", law.likelihood(x), obs=law.outcomes[:2])


def latent_expand(law, make):
    x = numpyro.sample("x", make(PARAMETER).expand([2]))
    numpyro.sample("y", law.likelihood(x), obs=law.outcomes[:2])


def latent_to_event(law, make):
    x = numpyro.sample("x", make(PARAMETER + OFFSETS, (2,)).to_event(1))
    numpyro.sample("y", law.likelihood(x).to_event(1), obs=law.outcomes[:2])


def latent_mask(law, make):
    with numpyro.plate("n", 2):
        x = numpyro.sample("x", make(PARAMETER).mask(KEPT))
        numpyro.sample("y", law.likelihood(x), obs=law.outcomes[:2])


def latent_scan(law, make):
    def step(carry, row):
        offset, outcome = row
        x = numpyro.sample("x", make(PARAMETER + offset))
        numpyro.sample("y", law.likelihood(x), obs=outcome)
        return carry, None

    scan(step, None, (OFFSETS, law.outcomes[:2]))


def latent_enumeration(law, make):
    with numpyro.plate("n", 2):
        c = numpyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        x = numpyro.sample("x", make(PARAMETER + OFFSETS[c], jnp.shape(c)))
        numpyro.sample("y", law.likelihood(x), obs=law.outcomes[:2])


def latent_subsample(law, make):
    with numpyro.plate("n", 4, subsample_size=2) as index:
        x = numpyro.sample("x", make(PARAMETER))
        numpyro.sample("y", law.likelihood(x), obs=law.outcomes[index])


# --- observed energies: their parameter t is latent, and log Z depends on it ------------------------------------------


def parameter():
    return numpyro.sample("t", dist.Normal(0.0, 1.0))


def observed_plate(law, make):
    t = parameter()
    with numpyro.plate("n", 2):
        numpyro.sample("y", make(t), obs=law.values[:2])


def observed_expand(law, make):
    numpyro.sample("y", make(parameter()).expand([2]), obs=law.values[:2])


def observed_to_event(law, make):
    numpyro.sample("y", make(parameter() + OFFSETS, (2,)).to_event(1), obs=law.values[:2])


def observed_mask(law, make):
    t = parameter()
    with numpyro.plate("n", 2):
        numpyro.sample("y", make(t).mask(KEPT), obs=law.values[:2])


def observed_scan(law, make):
    def step(t, row):
        offset, value = row
        numpyro.sample("y", make(t + offset), obs=value)
        return t, None

    scan(step, parameter(), (OFFSETS, law.values[:2]))


def observed_enumeration(law, make):
    t = parameter()
    with numpyro.plate("n", 2):
        c = numpyro.sample("c", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        numpyro.sample("y", make(t + OFFSETS[c], jnp.shape(c)), obs=law.values[:2])


def observed_subsample(law, make):
    t = parameter()
    with numpyro.plate("n", 4, subsample_size=2) as index:
        numpyro.sample("y", make(t), obs=law.values[index])


MODELS = {(role, context): globals()[f"{role}_{context}"] for role in ROLES for context in CONTEXTS}


def varies(role, context):
    """Whether log Z depends on something unknown: then the energy must bring it."""
    return role == "observed" or context == "enumeration"


# --- the closed form --------------------------------------------------------------------------------------------------


def log_events(law, context, t, events):
    """Log density of each of two independent events, whatever the context does to them."""
    one = jax.vmap(lambda t, x: law.reference(t).log_prob(x))
    if context == "enumeration":
        each = jax.vmap(lambda offset: one(jnp.broadcast_to(t + offset, (2,)), events))(OFFSETS)
        return logsumexp(each + jnp.log(WEIGHTS)[:, None], axis=0)
    offsets = OFFSETS if context in ("to_event", "scan") else jnp.zeros(2)
    weights = KEPT.astype(float) if context == "mask" else jnp.ones(2)
    return weights * one(t + offsets, events)


def log_joints(role, context, law, latent, rows=FIRST):
    """Log joint density of the whole model at its one latent site: a sum over this array, in order of the latents.

    Of a subsampled plate, `rows` are in the minibatch, and count twice.
    """
    scale = 2.0 if context == "subsample" else 1.0
    if role == "observed":
        return dist.Normal(0.0, 1.0).log_prob(latent) + scale * jnp.sum(
            log_events(law, context, latent, law.values[rows])
        )
    likelihood = jax.vmap(lambda x, y: law.likelihood(x).log_prob(y))(latent, law.outcomes[rows])
    return scale * (log_events(law, context, PARAMETER, latent) + likelihood)


def missing_constant(role, context, law):
    """Sum of the log Z of all latent events: what an energy without log Z leaves out, and nobody needs."""
    if varies(role, context):
        return 0.0
    if context == "mask":
        return law.log_normalizer(PARAMETER)
    if context == "subsample":
        return 4 * law.log_normalizer(PARAMETER)  # two of four events, each counted twice
    offsets = OFFSETS if context in ("to_event", "scan") else jnp.zeros(2)
    return jnp.sum(law.log_normalizer(PARAMETER + offsets))


def transform_of(role, law):
    """Unconstrained numbers -> the latent site."""
    return dist.transforms.IdentityTransform() if role == "observed" else dist.biject_to(law.support)


def exact_potential(role, context, law, z):
    """What MCMC must see at the unconstrained value `z`; log |det| included, the constant left out."""
    transform = transform_of(role, law)
    x = transform(z)
    log_det = jnp.sum(transform.log_abs_det_jacobian(z, x))
    return -jnp.sum(log_joints(role, context, law, x)) - log_det - missing_constant(role, context, law)


def exact_loss(role, context, law, site, rows=FIRST):
    """What SVI must see where its guide has drawn `site`, and `rows` make the minibatch; the constant left out."""
    log_guide = jnp.sum(site["fn"].log_prob(site["value"]))
    log_guide *= 2.0 if context == "subsample" and role == "latent" else 1.0
    log_model = jnp.sum(log_joints(role, context, law, site["value"], rows))
    return log_guide - log_model - missing_constant(role, context, law)


def site_of(role):
    """The name of the one continuous latent site."""
    return "t" if role == "observed" else "x"


def unconstrained_shape(role, law):
    """The shape of that site's unconstrained value."""
    if role == "observed":
        return ()
    return (2, *transform_of(role, law).inverse_shape(law.event_shape))


# --- posteriors by quadrature -----------------------------------------------------------------------------------------


def grid_of(role, name):
    """Midpoints of equal cells that hold all the mass, and the volume of a cell."""

    def midpoints(low, high, number):
        edges = np.linspace(low, high, number + 1)
        return (edges[1:] + edges[:-1]) / 2, (high - low) / number

    if role == "observed":
        return midpoints(-6.0, 6.0, 2000)
    if name == "simplex":
        side, width = midpoints(0.0, 1.0, 400)
        grid = np.stack(np.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
        inside = grid.sum(-1) < 1 - 1e-9
        grid = grid[inside]
        return np.concatenate([grid, 1 - grid.sum(-1, keepdims=True)], -1), width**2
    low, high = {"real": (-8.0, 8.0), "positive": (0.0, 40.0), "circular": (-np.pi, np.pi)}[name]
    return midpoints(low, high, 4000)


def features(role, name, x):
    """What is compared: the mean and the second moment; on the circle those of cosine and sine."""
    x = np.asarray(x, float)
    x = np.stack([np.cos(x), np.sin(x)], -1) if name == "circular" and role == "latent" else x[..., None]
    return np.concatenate([x, x**2], -1)


def exact_posterior(role, context, name):
    """Expected features of each latent number, and the log evidence."""
    law, (grid, volume) = LAWS[name], grid_of(role, name)
    points = jnp.asarray(grid, jnp.float32)
    points = points if role == "observed" else jnp.stack([points, points], 1)
    log_density = np.asarray(jax.vmap(lambda x: log_joints(role, context, law, x))(points), np.float64)
    peak = log_density.max(0)
    weights = np.exp(log_density - peak)
    log_evidence = np.sum(np.log(weights.sum(0) * volume) + peak)
    values = features(role, name, grid)
    expected = np.tensordot(weights / weights.sum(0), values, axes=(0, 0))
    return expected, float(log_evidence)
