"""What a compiled function costs: seconds, bytes and floating-point operations, compilation apart."""

import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.extend.core as jex
import numpy as np


class Program(NamedTuple):
    """A compiled function and what the compiler says of it.

    Attributes:
      call: the compiled function.
      compile_seconds: tracing, lowering and compiling.
      peak_bytes: arguments, results and temporaries together.
      temporary_bytes: what it sets aside besides arguments and results.
      flops: see `flops`.
    """

    call: Callable
    compile_seconds: float
    peak_bytes: int
    temporary_bytes: int
    flops: int


def compile(function, *args) -> Program:
    """Compiles a jitted function for arguments of these shapes."""
    start = time.perf_counter()
    traced = function.trace(*args)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    # What is written over donated arguments is counted in both arguments and results.
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes - plan.alias_size_in_bytes
    return Program(compiled, seconds, int(peak), int(plan.temp_size_in_bytes), flops(traced.jaxpr))


def measure(call, *args, seconds=0.5, least=3, most=50):
    """Times calls of a compiled function, each ended by `block_until_ready`, after one call to warm up.

    Args:
      call: the compiled function; it must not donate its arguments.
      *args: its arguments.
      seconds: calls are repeated for this long,
      least: but not fewer times than this,
      most: nor more often than this.

    Returns:
      {"median", "p95"}, in seconds a call.
    """
    jax.block_until_ready(call(*args))
    times = []
    while len(times) < least or (sum(times) < seconds and len(times) < most):
        start = time.perf_counter()
        jax.block_until_ready(call(*args))
        times.append(time.perf_counter() - start)
    return spread(times)


def spread(times):
    """Median and 95th percentile of seconds, {"median", "p95"}.

    >>> spread([1.0, 2.0, 9.0])["median"]
    2.0
    """
    return {"median": float(np.median(times)), "p95": float(np.percentile(times, 95))}


def flops(jaxpr):
    """Floating-point operations in the matrix products of a traced function, loops counted as often as they run.

    XLA's own `cost_analysis` counts the body of a loop once, which hides the depth of a scanned model and nearly all
    the work of a blockwise attention. This walks the traced program instead: 2 M N K for a product, times the length of
    the scans around it, the dearest branch of a conditional. A `while` says its mean trips in its scope, `trips=2.5`,
    as the blockwise engine's do, or counts once.

    >>> import jax.numpy as jnp
    >>> flops(jax.make_jaxpr(lambda a, b: a @ b)(jnp.zeros((2, 3)), jnp.zeros((3, 5))))
    60
    """
    return sum(_flops_of(equation) for equation in jaxpr.eqns)


def exponent(lengths, values):
    """Least-squares slope of log(value) over log(length) on the upper half of the lengths: 1 = linear, 2 = quadratic.

    Short lengths are left out because fixed costs hide the growth there. None with fewer than two lengths.

    >>> round(exponent([1, 2, 4, 8], [9, 9, 16, 64]), 3)
    2.0
    """
    if len(lengths) < 2 or min(values) <= 0:
        return None
    upper = slice(min(len(lengths) // 2, len(lengths) - 2), None)
    return float(np.polyfit(np.log(lengths[upper]), np.log(values[upper]), 1)[0])


def _flops_of(equation):
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        terms = [equation.invars[0].aval.shape[axis] for axis in summed]
        return int(2 * np.prod(terms, dtype=int) * np.prod(equation.outvars[0].aval.shape, dtype=int))
    inner = [flops(program) for value in params.values() for program in _programs(value)]
    if name == "cond":
        return max(inner)
    if name == "while":
        trips = re.findall(r"trips=([\d.e+-]+)", str(equation.source_info.name_stack))
        return round(sum(inner) * float(trips[-1] if trips else 1))
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _programs(value):
    """The programs inside an equation's parameter: one, or a tuple of them, or none."""
    if isinstance(value, (jex.ClosedJaxpr, jex.Jaxpr)):
        return [value]
    return [program for item in value for program in _programs(item)] if isinstance(value, (tuple, list)) else []
