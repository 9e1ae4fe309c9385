"""What the planner must know of a checkpoint, read from wherever the checkpoint is."""

from serve_app.domain.errors import CheckpointError
from serve_app.planning.facts import CheckpointFacts
from serve_app.planning.shape import shape_from_config
from serve_app.planning.weights import weights_from_tensors
from serve_app.store.inspect import read_checkpoint
from serve_app.store.source import Source, open_source


def checkpoint_facts(place: str | Source, dtype_bytes: int = 2) -> CheckpointFacts:
    """Shape, scheme and weight bytes of a checkpoint, from its headers; no weights are fetched.

    `place` is what `open_source` takes, or a source; `dtype_bytes` is the size of the engine's
    dtype. Raises CheckpointError when the checkpoint cannot be read or planned.
    """
    source = open_source(place) if isinstance(place, str) else place
    contents = read_checkpoint(source)
    scheme = contents.checkpoint.scheme
    try:
        shape = shape_from_config(contents.config)
        weights = weights_from_tensors(shape, scheme, contents.tensors, dtype_bytes)
    except CheckpointError as error:
        raise CheckpointError(f"{source.uri}: {error}") from None
    return CheckpointFacts(source.uri, shape, scheme, weights)
