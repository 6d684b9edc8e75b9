"""Encoding and decoding in pieces, for images whose activations would not fit into memory.

Cutting an image into tiles changes it in three ways, and each is undone, so that the result is that of the whole image:

- The receptive field of a convolution extends past the edge of a tile. Each tile is computed with a margin of real
  context of that width, which is then discarded.
- Group normalisation takes mean and variance over the whole image. They are computed by repeated passes over all tiles:
  each pass normalises by the statistics of the pass before, the first by each tile's own. After n passes the first n
  normalisations are exact and later ones nearly; the passes end when the statistics converge. One level is done at a
  time.
- Attention is global. The levels from the finest that has any, and always the coarsest, are computed whole: they are a
  small part of the memory, 1 / 64 of the pixels in a model of factor 8.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autoencoders.coders.blocks import Downsample, ResnetBlock, Stage, Upsample, plain_norm
from autoencoders.coders.conv import Decoder, Encoder
from autoencoders.coders.vit import ViTDecoder, ViTEncoder
from autoencoders.config import Tiling

_TOLERANCE = 3e-3  # statistics that change by less, in standard deviations, have converged


WHOLE = Tiling()


def in_pieces(network: nn.Module, x: Tensor, tiling: Tiling, factor: int) -> Tensor:
    """An encoder or decoder applied to images or latents (B, C, H, W) under `tiling`.

    Without gradients where there are tiles. A linear network, which has no activations to save, is applied whole;
    `ValueError` for tiles of a transformer, whose attention is global.
    """
    if isinstance(network, ViTEncoder | ViTDecoder):
        tiling.check(factor, "vit")
    if tiling.tile is None or not isinstance(network, Encoder | Decoder):
        slices = x.split(1) if tiling.slicing and len(x) > 1 else (x,)
        results = [network(images) for images in slices]
        return results[0] if len(results) == 1 else torch.cat(results)
    tiling.check(factor)
    with torch.no_grad():
        return torch.cat([_one_image(network, image, tiling.tile, tiling.tile_overlap) for image in x.split(1)])


def _one_image(network: Encoder | Decoder, x: Tensor, tile: int, overlap: int) -> Tensor:
    """(1, C, H, W) through the fine levels tile by tile and the coarse ones whole, in the network's order."""
    fine, coarse = _split(network)
    if isinstance(network, Decoder):
        x = _whole(coarse, x)
    remaining = sum(isinstance(layer, Upsample) for layer in fine)  # how far x is from the image's resolution
    for level in _by_level(fine):
        if isinstance(level[0], Upsample):
            x = _tiled(level, x, tile >> remaining, overlap >> remaining)
            remaining -= 1
        else:
            x = _tiled(level, x, tile, overlap)
            tile, overlap = tile // 2, overlap // 2  # there is a Downsample at its end
    return x if isinstance(network, Decoder) else _whole(coarse, x)


def _split(network: Encoder | Decoder) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers that are computed in tiles, and those that are computed whole; each list in the order of use."""
    mid = network.mid_block
    middle = [mid.resnets[0], *(mid.attentions if mid.attention else ()), mid.resnets[1]]
    last: list[nn.Module] = [network.conv_norm_out, network.conv_out]
    if isinstance(network, Encoder):
        stages = list(network.down_blocks)
        fine_levels = _fine_levels(stages)
        layers = [_layers(stage) for stage in stages]
        fine = [network.conv_in, *itertools.chain(*layers[:fine_levels])]
        return fine, [*itertools.chain(*layers[fine_levels:]), *middle, *last]
    stages = list(network.up_blocks)[::-1]  # fine to coarse, as in the encoder
    fine_levels = _fine_levels(stages)
    layers = [_layers(stage) for stage in reversed(stages)]
    whole, rest = layers[: len(stages) - fine_levels], layers[len(stages) - fine_levels :]
    # the last whole level ends before its upsampling, which would make four times as many pixels
    upsample = [whole[-1].pop()] if rest else []
    return [*upsample, *itertools.chain(*rest), *last], [network.conv_in, *middle, *itertools.chain(*whole)]


def _by_level(layers: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """Cut after every Downsample and before every Upsample: where the tensors in between are smallest.

    Level by level the passes are few, for each has few normalisations, and the margins narrow.
    """
    levels: list[list[nn.Module]] = [[]]
    for before, layer in zip([None, *layers], layers, strict=False):
        if levels[-1] and (isinstance(before, Downsample) or isinstance(layer, Upsample)):
            levels.append([])
        levels[-1].append(layer)
    return levels if layers else []


def _fine_levels(stages: Sequence[nn.Module]) -> int:
    """How many levels, counted from the finest, have no attention; never all of them."""
    with_attention = [level for level, stage in enumerate(stages) if stage.attention]
    return min([*with_attention, len(stages) - 1])


def _layers(stage: nn.Module) -> list[nn.Module]:
    assert isinstance(stage, Stage)
    return list(stage.layers())


def _apply(layer: nn.Module, x: Tensor, norm: Callable[[nn.GroupNorm, Tensor], Tensor]) -> Tensor:
    if isinstance(layer, ResnetBlock):
        return layer(x, norm)
    if isinstance(layer, nn.GroupNorm):
        return F.silu(norm(layer, x))
    return layer(x)


def _whole(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = _apply(layer, x, plain_norm)
    return x


def _receptive_field(layers: Sequence[nn.Module]) -> int:
    """Pixels of input beyond a tile's edge on which its output depends."""
    pixels = 0
    for layer in reversed(layers):
        if isinstance(layer, ResnetBlock):
            pixels += 2
        elif isinstance(layer, nn.Conv2d):
            pixels += layer.kernel_size[0] // 2
        elif isinstance(layer, Downsample):
            pixels = 2 * pixels + 1
        elif isinstance(layer, Upsample):
            pixels = -(-(pixels + 1) // 2)
    return pixels


@dataclass(frozen=True)
class _Span:
    """One tile along one axis, in pixels of the input: start <= own < own_end <= blended_end <= end."""

    start: int  # with the margin
    own: int  # from here to own_end the pixels count for the statistics, each in one tile
    own_end: int
    blended_end: int  # up to here it is blended with the next
    end: int
    risen: int  # from `own` to here it is blended with the one before

    def weights(self, up: int, down: int) -> Tensor:
        """Linear ramps over shared pixels, 1 between: (pixels of output from own to blended_end,)."""
        edges = self.own, self.risen, self.own_end, self.blended_end
        own, risen, fall, end = (edge * up // down for edge in edges)
        weights = torch.ones(end - own)
        weights[: risen - own] = (torch.arange(risen - own) + 0.5) / max(1, risen - own)
        weights[fall - own :] = 1 - (torch.arange(end - fall) + 0.5) / max(1, end - fall)
        return weights


def _spans(size: int, tile: int, overlap: int, margin: int) -> list[_Span]:
    """The tiles along an axis of `size` pixels, the last one shorter where it must be."""
    spans = []
    for own in range(0, size, tile):
        own_end = min(own + tile, size)
        blended_end = min(own_end + overlap, size)
        risen = min(own + overlap, own_end) if own else own
        spans.append(_Span(max(0, own - margin), own, own_end, blended_end, min(blended_end + margin, size), risen))
    return spans


class _Statistics:
    """Mean and variance of every group of every normalisation over the whole image, merged from tiles."""

    def __init__(self) -> None:
        self.used: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}
        self._current: dict[nn.GroupNorm, tuple[int, Tensor, Tensor]] = {}

    def norm_of(self, rows: _Span, columns: _Span) -> Callable[[nn.GroupNorm, Tensor], Tensor]:
        """Group normalisation of one tile (1, C, h, w), which also measures the tile's own pixels."""

        def own_slice(span: _Span, length: int) -> slice:
            scale = span.end - span.start
            return slice((span.own - span.start) * length // scale, (span.own_end - span.start) * length // scale)

        def norm(layer: nn.GroupNorm, x: Tensor) -> Tensor:
            own = x[0, :, own_slice(rows, x.shape[2]), own_slice(columns, x.shape[3])]  # (C, h', w')
            self._merge(layer, own.unflatten(0, (layer.num_groups, -1)))
            if layer not in self.used:
                return layer(x)
            mean, variance = (value.repeat_interleave(x.shape[1] // layer.num_groups) for value in self.used[layer])
            scale = layer.weight * torch.rsqrt(variance + layer.eps)  # (C,)
            shift = layer.bias - mean * scale
            return torch.addcmul(shift[:, None, None].to(x), x, scale[:, None, None].to(x))

        return norm

    def _merge(self, layer: nn.GroupNorm, values: Tensor) -> None:
        """Merge the moments of `values` (G, C / G, h, w) in float64, by the parallel form of Chan et al. 1979."""
        variance, mean = torch.var_mean(values.float(), (1, 2, 3), correction=0)
        count, mean, squares = values[0].numel(), mean.double(), variance.double() * values[0].numel()
        if layer in self._current:
            n, old_mean, old_squares = self._current[layer]
            delta = mean - old_mean
            squares = squares + old_squares + delta.square() * (n * count / (n + count))
            mean, count = old_mean + delta * (count / (n + count)), n + count
        self._current[layer] = count, mean, squares

    def end_pass(self) -> bool:
        """Use the statistics of this pass in the next; whether they have converged."""
        change = 0.0 if self.used else float("inf")
        for layer, (count, mean, squares) in self._current.items():
            variance = squares / count
            if layer in self.used:
                deviation = torch.sqrt(variance + layer.eps)
                old_mean, old_variance = (value.double() for value in self.used[layer])
                shift = (mean - old_mean).abs() / deviation
                scale = (torch.sqrt(old_variance + layer.eps) / deviation - 1).abs()
                change = max(change, float(torch.maximum(shift, scale).max()))
            self.used[layer] = mean.to(layer.weight), variance.to(layer.weight)
        self._current = {}
        return change < _TOLERANCE


def _tiled(layers: Sequence[nn.Module], x: Tensor, tile: int, overlap: int) -> Tensor:
    """Layers without attention on (1, C, H, W), tile by tile; `tile` and `overlap` in pixels of x."""
    down = 2 ** sum(isinstance(layer, Downsample) for layer in layers)
    up = 2 ** sum(isinstance(layer, Upsample) for layer in layers)
    margin = -(-_receptive_field(layers) // down) * down  # tiles begin where the layers' strides begin
    rows, columns = (_spans(size, tile, overlap, margin) for size in x.shape[2:])
    statistics = _Statistics()
    norms = sum(2 if isinstance(layer, ResnetBlock) else isinstance(layer, nn.GroupNorm) for layer in layers)
    for _ in range(norms + 1):  # by then all of them are exact
        out = None
        for tile_out, region, weight in _tiles(layers, x, rows, columns, statistics, up, down):
            if out is None:
                out = tile_out.new_zeros(1, tile_out.shape[1], x.shape[2] * up // down, x.shape[3] * up // down)
            out[:, :, region[0], region[1]].addcmul_(tile_out, weight.to(tile_out))
        if statistics.end_pass():
            break
    assert out is not None
    return out


def _tiles(
    layers: Sequence[nn.Module],
    x: Tensor,
    rows: Sequence[_Span],
    columns: Sequence[_Span],
    statistics: _Statistics,
    up: int,
    down: int,
) -> Iterator[tuple[Tensor, tuple[slice, slice], Tensor]]:
    """The output of each tile without its margin, its region of the whole output, and its weights (h, w)."""
    for row, column in itertools.product(rows, columns):
        norm = statistics.norm_of(row, column)
        h = x[:, :, row.start : row.end, column.start : column.end]
        for layer in layers:
            h = _apply(layer, h, norm)
        inner, region = (
            tuple(
                slice((span.own - origin) * up // down, (span.blended_end - origin) * up // down)
                for span, origin in zip((row, column), origins, strict=True)
            )
            for origins in ((row.start, column.start), (0, 0))
        )
        weight = row.weights(up, down)[:, None] * column.weights(up, down)
        yield h[:, :, inner[0], inner[1]], (region[0], region[1]), weight
