"""What the swarm knows of a model without having opened it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.ids import ModelId
from p2pllm.domain.layers import LayerRange

LAYERS_MAX = 1_024
"""Above every model there is; bounds what a record may make a planner do."""

ELEMENTS_MAX = 2**53
RUNS_MAX = 64
REFERENCE_LENGTH_MAX = 512


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`count` neighbouring layers of the same size.

    Sizes count elements, not bytes, since each node chooses its own dtype.

    Attributes:
        count: number of layers in the run.
        parameters: weights of one layer.
        kv_elements: key and value elements one layer caches for one token.
    """

    count: Annotated[int, Bounds(1, LAYERS_MAX)]
    parameters: Annotated[int, Bounds(0, ELEMENTS_MAX)]
    kv_elements: Annotated[int, Bounds(0, ELEMENTS_MAX)]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model the swarm serves: enough to plan and route with, small enough to gossip.

    Attributes:
        id: the name it is served under.
        reference: where a node finds it: `builtin`, a hub id, or the folder on the adding node.
        fingerprint: 32 hex digits of SHA-256 over configuration and weight manifest; two folders
            with one fingerprint hold the same model, whatever their paths.
        architecture: the transformers class, for people.
        runs: the layers, run-length encoded, in order.
        embedding_parameters: held by whoever holds layer 0.
        head_parameters: final norm and output head (tied or not), held by whoever holds the last.
        hidden_size: width of one activation row, in elements.
        context_length_max: positions the model can attend to.
        vocabulary_size: rows of the embedding.
    """

    id: ModelId
    reference: Annotated[str, Length(REFERENCE_LENGTH_MAX)]
    fingerprint: Annotated[str, Length(64)]
    architecture: Annotated[str, Length(64)]
    runs: Annotated[tuple[LayerRun, ...], Length(RUNS_MAX)]
    embedding_parameters: Annotated[int, Bounds(0, ELEMENTS_MAX)]
    head_parameters: Annotated[int, Bounds(0, ELEMENTS_MAX)]
    hidden_size: Annotated[int, Bounds(1, 2**20)]
    context_length_max: Annotated[int, Bounds(1, 2**24)]
    vocabulary_size: Annotated[int, Bounds(1, 2**31)]

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return sum(run.count for run in self.runs)

    @property
    def layers(self) -> LayerRange:
        """All of them."""
        return LayerRange(0, self.num_layers)

    def layer_parameters(self) -> tuple[int, ...]:
        """Weights per layer; the embedding counts to the first and the head to the last."""
        sizes = [run.parameters for run in self.runs for _ in range(run.count)]
        sizes[0] += self.embedding_parameters
        sizes[-1] += self.head_parameters
        return tuple(sizes)

    def layer_kv_elements(self) -> tuple[int, ...]:
        """Key and value elements per layer and token."""
        return tuple(run.kv_elements for run in self.runs for _ in range(run.count))
