"""The layer's formulas in NumPy, written for reading: every score, every expert, no library of ours. They take complex numbers,
so that gradients follow by a step along the imaginary axis, exact to rounding."""
import numpy as np


def silu(z):
    return z / (1 + np.exp(-z))


def relu(z):
    return np.where(np.real(z) > 0, z, 0)


ACTIVATIONS = {"silu": silu, "relu": relu}


def log_softmax(logits):
    shifted = logits - np.max(np.real(logits), axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def scores(row_logits, col_logits, marginals="log_softmax"):
    """All N scores of every token, [L, N]."""
    if marginals == "log_softmax":
        row_logits, col_logits = log_softmax(row_logits), log_softmax(col_logits)
    return (row_logits[:, :, None] + col_logits[:, None, :]).reshape(len(row_logits), -1)


def best(values, top_k):
    """Ids of the K largest of every row, equal values by rising id: a stable sort."""
    return np.argsort(-values, axis=-1, kind="stable")[:, :top_k]


def gates(selected, mode):
    if mode == "softmax":
        powers = np.exp(selected - np.max(np.real(selected), axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)
    return {"probability": np.exp, "relu": relu, "score": lambda s: s}[mode](selected)


def experts(x, w_in, w_out, ids, weights, activation="silu"):
    """A dense mask: every expert for every token, gates summed where an id stands twice."""
    mask = np.zeros((len(x), len(w_in)), dtype=np.result_type(weights, x))
    for k in range(ids.shape[1]):
        mask[np.arange(len(x)), ids[:, k]] += weights[:, k]
    return (mask * ACTIVATIONS[activation](x @ w_in.T)) @ w_out


def mlp(x, gate, up, down, activation="silu"):
    return (ACTIVATIONS[activation](x @ gate.T) * (x @ up.T)) @ down.T


def layer(x, row_logits, col_logits, w_in, w_out, gate, up, down, ids, mode, activation="silu"):
    chosen = np.take_along_axis(scores(row_logits, col_logits), ids, axis=-1)
    return experts(x, w_in, w_out, ids, gates(chosen, mode), activation) + mlp(x, gate, up, down, activation)


def gradients(function, arguments, direction):
    """Of sum(direction * function(*arguments)) with respect to every argument, element by element."""
    made = []
    for index, argument in enumerate(arguments):
        gradient = np.empty_like(argument)
        for at in np.ndindex(*argument.shape):
            moved = argument.astype(complex)
            moved[at] += 1e-30j
            value = function(*arguments[:index], moved, *arguments[index + 1:])
            gradient[at] = np.imag((direction * value).sum()) / 1e-30
        made.append(gradient)
    return made
