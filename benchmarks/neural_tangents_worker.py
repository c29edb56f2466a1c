"""Time neural-tangents' structured kernel; `curvature_peers.py --neural-tangents PYTHON` starts this.

It runs in an environment of its own (neural-tangents==0.6.5 with jax==0.4.23 jaxlib==0.4.23 tf2jax==0.3.5 "numpy<2"
"scipy<1.13"). Argument: an .npz file with the inputs x and the weights and biases w0, b0, w1, ... of a ReLU net.
For each line on its standard input it answers with the process time of one kernel and its top eigenvalue, and
that eigenvalue.
"""

import sys
import time

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from neural_tangents import stax
from scipy.sparse.linalg import eigsh


def flat(blocks):
    """(m, m, K, K) as (m K, m K)."""
    m, k = blocks.shape[0], blocks.shape[2]
    return blocks.transpose(0, 2, 1, 3).reshape(m * k, m * k)


def main() -> None:
    """Compile once, then answer each line."""
    data = np.load(sys.argv[1])
    weights = [(jnp.array(data[f"w{i}"].T), jnp.array(data[f"b{i}"])) for i in range(len(data.files) // 2)]
    x = jnp.array(data["x"])
    dense = [stax.Dense(b.size, b_std=1.0, parameterization="standard") for _, b in weights]
    layers = [layer for d in dense[:-1] for layer in (d, stax.Relu())] + dense[-1:]
    parameters = [part for pair in weights[:-1] for part in (pair, ())] + weights[-1:]
    structured = nt.NtkImplementation.STRUCTURED_DERIVATIVES
    net = stax.serial(*layers)[1]
    blocks = nt.empirical_ntk_fn(net, trace_axes=(), vmap_axes=0, implementation=structured)
    kernel = jax.jit(lambda x, parameters: flat(blocks(x, None, parameters)))
    kernel(x, parameters).block_until_ready()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        table = np.asarray(kernel(x, parameters))
        value = float(eigsh(table, k=1, which="LA", tol=1e-4, return_eigenvectors=False)[0]) / len(x)
        print(time.process_time() - start, value, flush=True)


if __name__ == "__main__":
    main()
